"""What hostile code would try. Each attack returns where it worked and raises OSError where the kernel refused.

Imported by the processes that are confined; it uses nothing of the project but the way to make system calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import socket
import struct
import subprocess
import threading
from pathlib import Path

from tests.sandbox.attack_tools import Attack, Targets, open_path, raw
from tests.sandbox.channel_attacks import BY_FOLDER, BY_PROC, OBSERVED, OF_CHILDREN, SHARED
from trainer.sandbox.syscalls import prctl, syscall


def _connect(family: int, kind: int, address: object) -> None:
    with socket.socket(family, kind) as sock:
        sock.settimeout(2)
        sock.connect(address)  # type: ignore[arg-type]


def _datagram(family: int, address: tuple[str, int]) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"plaintext", address)


def _make_socket(family: int, kind: int, protocol: int = 0) -> None:
    socket.socket(family, kind, protocol).close()


def _bind(address: tuple[str, int]) -> None:
    with socket.socket(socket.AF_INET) as sock:
        sock.bind(address)
        sock.listen()


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _fork_and_exec() -> None:
    child = os.fork()
    if child == 0:
        try:
            os.execv("/bin/true", ["true"])
        except OSError as error:
            os._exit(error.errno or 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, "exec in the child")


def _exec_in_place() -> None:
    """A program that does not exist: whoever may run programs is told ENOENT."""
    try:
        os.execv("/nonexistent/program", ["program"])
    except FileNotFoundError:
        return


def _ptrace(pid: int) -> None:
    attach, detach = 16, 17
    syscall("ptrace", attach, pid, 0, 0)
    os.waitpid(pid, 0x40000000)
    syscall("ptrace", detach, pid, 0, 0)


def _read_memory(pid: int) -> None:
    """process_vm_readv of the first mapping of this process's own layout; the address need not be right."""
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("=QQ", ctypes.addressof(buffer), 8)
    remote = struct.pack("=QQ", 4096, 8)
    try:
        syscall("process_vm_readv", pid, local, 1, remote, 1, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:  # EFAULT: it was allowed to look
            raise


def _steal_descriptor(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        os.close(syscall("pidfd_getfd", descriptor, 0, 0))
    finally:
        os.close(descriptor)


def _signal_by_descriptor(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, 0)
    finally:
        os.close(descriptor)


def _thread_with_other_memory() -> None:
    """Walls must hold in threads that are made later, too."""
    failure: list[OSError] = []

    def attempt() -> None:
        try:
            _make_socket(socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def _through_link(inside: str, target: str) -> None:
    link = Path(inside) / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    open_path(link)


def _hard_link(inside: str, target: str) -> None:
    link = Path(inside) / "hard"
    os.link(target, link)
    open_path(link)


def _raise_core_limit() -> None:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
    except ValueError as error:
        raise PermissionError(errno.EPERM, "core limit") from error


def _regain_capabilities() -> None:
    header = struct.pack("=Ii", 0x20080522, 0)
    syscall("capset", header, struct.pack("=6I", 1 << 21, 1 << 21, 0, 0, 0, 0))  # CAP_SYS_ADMIN


def _kill_anybody() -> None:
    os.kill(-1, 0)


def _newest_call(_: Targets) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(470), None, 0, None, 0, 0) < 0:
        number = ctypes.get_errno()
        if number not in {errno.EINVAL, errno.EFAULT}:
            raise OSError(number, "listns")


NETWORK: dict[str, Attack] = {
    "connect_tcp": lambda t: _connect(
        socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", t.tcp_port)
    ),
    "connect_tcp6": lambda t: _connect(socket.AF_INET6, socket.SOCK_STREAM, ("::1", t.tcp_port)),
    "send_udp": lambda t: _datagram(socket.AF_INET, ("127.0.0.1", t.udp_port)),
    "send_udp6": lambda t: _datagram(socket.AF_INET6, ("::1", t.udp_port)),
    "bind_tcp": lambda t: _bind(("127.0.0.1", 0)),
    "raw_socket": lambda t: _make_socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "netlink": lambda t: _make_socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "packet_socket": lambda t: _make_socket(socket.AF_PACKET, socket.SOCK_RAW),
    "vsock": lambda t: _make_socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "kernel_crypto_socket": lambda t: _make_socket(socket.AF_ALG, socket.SOCK_SEQPACKET),
    "socket_from_a_thread": lambda t: _thread_with_other_memory(),
}
GUEST_AGENT: dict[str, Attack] = {
    "guest_agent": lambda t: _connect(socket.AF_UNIX, socket.SOCK_STREAM, t.agent),
    "unix_datagram": lambda t: _make_socket(socket.AF_UNIX, socket.SOCK_DGRAM),
}
SUPERVISOR: dict[str, Attack] = {
    "ptrace_supervisor": lambda t: _ptrace(t.supervisor),
    "read_supervisor_memory": lambda t: _read_memory(t.supervisor),
    "open_supervisor_memory": lambda t: open_path(f"/proc/{t.supervisor}/mem"),
    "open_supervisor_environment": lambda t: open_path(f"/proc/{t.supervisor}/environ"),
    "list_supervisor_descriptors": lambda t: os.listdir(f"/proc/{t.supervisor}/fd"),
    "steal_supervisor_descriptor": lambda t: _steal_descriptor(t.supervisor),
}
SIGNALS: dict[str, Attack] = {
    "kill_supervisor": lambda t: os.kill(t.supervisor, 0),
    "kill_supervisor_thread": raw("tgkill", 1, 1, 0),
    "kill_by_descriptor": lambda t: _signal_by_descriptor(t.supervisor),
    "kill_everybody": lambda t: _kill_anybody(),
}
PROGRAMS: dict[str, Attack] = {
    "exec": lambda t: _exec_in_place(),
    "shell": lambda t: subprocess.run(["/bin/sh", "-c", "true"], check=True, close_fds=False),
    "fork": lambda t: _fork(),
    "fork_and_exec": lambda t: _fork_and_exec(),
    "spawn": lambda t: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
}
KERNEL: dict[str, Attack] = {
    "mount": raw("mount", b"none", b"/nonexistent", b"tmpfs", 0, None),
    "mount_new_api": raw("fsopen", None, 0),
    "umount": raw("umount2", None, 0),
    "chroot": raw("chroot", None),
    "pivot_root": raw("pivot_root", None, None),
    "device_node": raw("mknodat", -1, None, 0o20600, 0x0101),
    "user_namespace": raw("unshare", 0x10000000),
    "network_namespace": raw("unshare", 0x40000000),
    "enter_namespace": raw("setns", -1, 0),
    "load_module": raw("init_module", None, 0, None),
    "load_module_file": raw("finit_module", -1, None, 0),
    "bpf": raw("bpf", -1, None, 0),
    "perf_event_open": raw("perf_event_open", None, 0, 0, -1, 0),
    "open_by_handle_at": raw("open_by_handle_at", -1, None, 0),
    "io_uring_setup": raw("io_uring_setup", 0, None),
    "keyctl": raw("keyctl", -1, 0, 0, 0, 0),
    "add_key": raw("add_key", None, None, None, 0, 0),
    "userfaultfd": raw("userfaultfd", -1),
    "kexec": raw("kexec_file_load", -1, -1, 0, None, 0),
    "personality": raw("personality", 0xFFFFFFFF),
    "kernel_log": raw("syslog", 9, None, 0),
    "ports": raw("ioperm", 0, 0, 0),
    "call_newer_than_known": _newest_call,
}
PRIVILEGES: dict[str, Attack] = {
    "setuid_root": lambda t: os.setuid(0),
    "setgid_root": lambda t: os.setgid(0),
    "setgroups": lambda t: os.setgroups([0]),
    "regain_capabilities": lambda t: _regain_capabilities(),
    "core_dumps_again": lambda t: _raise_core_limit(),
    "dumpable_again": lambda t: prctl(4, 1),
}
OTHER_FILES: dict[str, Attack] = {
    "write_outside": lambda t: open_path(
        f"{t.open_folder}/made-{os.getpid()}", os.O_WRONLY | os.O_CREAT
    ),
    "read_world_readable": lambda t: open_path(f"{t.open_folder}/world-readable"),
    "change_world_writable": lambda t: open_path(f"{t.open_folder}/world-writable", os.O_WRONLY),
    "list_var": lambda t: os.listdir("/var"),
    "open_disk": lambda t: open_path("/dev/kmsg"),
}
OF_WORKER: dict[str, Attack] = {
    "read_ciphertext": lambda t: open_path(f"{t.ciphertext}/dataset.age"),
    "list_ciphertext": lambda t: os.listdir(t.ciphertext),
    "write_ciphertext": lambda t: open_path(f"{t.ciphertext}/leak", os.O_WRONLY | os.O_CREAT),
    "read_private_log": lambda t: open_path(f"{t.workspace}/job.log"),
    "change_the_model": lambda t: open_path(f"{t.workspace}/model/added", os.O_WRONLY | os.O_CREAT),
    "change_the_dataset": lambda t: open_path(f"{t.own}/dataset/rows.jsonl", os.O_WRONLY),
    "read_the_dataset_of_another_try": lambda t: open_path(f"{t.other}/dataset/rows.jsonl"),
    "write_the_output_of_another_try": lambda t: open_path(
        f"{t.other}/output/added", os.O_WRONLY | os.O_CREAT
    ),
    "remove_the_dataset": lambda t: os.unlink(f"{t.own}/dataset/rows.jsonl"),
    "follow_a_link_outside": lambda t: _through_link(
        f"{t.own}/output", f"{t.ciphertext}/dataset.age"
    ),
    "hard_link_outside": lambda t: _hard_link(f"{t.own}/output", f"{t.open_folder}/world-readable"),
    "rename_out": lambda t: os.rename(f"{t.own}/output/own", f"{t.open_folder}/own"),
}
OF_FRONT: dict[str, Attack] = {
    "list_workspace": lambda t: os.listdir(t.workspace),
    "read_plaintext": lambda t: open_path(f"{t.own}/dataset/rows.jsonl"),
    "read_private_log": lambda t: open_path(f"{t.workspace}/job.log"),
    "read_weights": lambda t: open_path(f"{t.own}/output/own"),
    "follow_a_link_to_plaintext": lambda t: _through_link(
        t.ciphertext, f"{t.own}/dataset/rows.jsonl"
    ),
    "write_into_output": lambda t: open_path(f"{t.own}/output/added", os.O_WRONLY | os.O_CREAT),
}

ATTACKS: dict[str, dict[str, Attack]] = {
    "worker": {
        **NETWORK, **GUEST_AGENT, **SUPERVISOR, **SIGNALS, **PROGRAMS, **KERNEL, **PRIVILEGES, **OTHER_FILES,
        **OF_WORKER, **SHARED, **OF_CHILDREN, **BY_FOLDER, **BY_PROC,
    },
    "front": {
        **NETWORK, **GUEST_AGENT, **SUPERVISOR, **SIGNALS, **PROGRAMS, **KERNEL, **PRIVILEGES, **OTHER_FILES,
        **OF_FRONT, **SHARED, **OF_CHILDREN, **BY_FOLDER, **BY_PROC, **OBSERVED,
    },
    "supervisor": {**NETWORK, **PROGRAMS, **KERNEL, **PRIVILEGES, **OTHER_FILES, **BY_FOLDER},
}  # fmt: skip

ALLOWED: dict[str, dict[str, Attack]] = {
    "worker": {
        "read_the_dataset": lambda t: open_path(f"{t.own}/dataset/rows.jsonl"),
        "read_the_model": lambda t: open_path(f"{t.workspace}/model/config.json"),
        "write_its_output": lambda t: open_path(f"{t.own}/output/result", os.O_WRONLY | os.O_CREAT),
        "write_its_scratch": lambda t: open_path(
            f"{t.own}/scratch/cache", os.O_WRONLY | os.O_CREAT
        ),
        "make_threads": lambda t: threading.Thread(target=int).start(),
        "signal_itself": lambda t: os.kill(os.getpid(), 0),
    },
    "front": {
        "read_the_upload": lambda t: open_path(f"{t.ciphertext}/dataset.age"),
        "write_an_upload": lambda t: open_path(f"{t.ciphertext}/part", os.O_WRONLY | os.O_CREAT),
    },
    "supervisor": {
        "ask_the_guest_agent": lambda t: _connect(socket.AF_UNIX, socket.SOCK_STREAM, t.agent),
        "write_the_workspace": lambda t: open_path(
            f"{t.workspace}/receipt", os.O_WRONLY | os.O_CREAT
        ),
        "read_what_the_worker_wrote": lambda t: open_path(f"{t.own}/output/own"),
        "write_the_result": lambda t: open_path(
            f"{t.ciphertext}/result.tar.age", os.O_WRONLY | os.O_CREAT
        ),
    },
}
"""What each must still be able to do: a wall around everything would prove nothing."""


def try_all(attacks: dict[str, Attack], targets: Targets) -> dict[str, str]:
    """Name of each attack → name of the error that ended it, or `worked`."""
    return {name: _outcome(attack, targets) for name, attack in attacks.items()}


def _outcome(attack: Attack, targets: Targets) -> str:
    try:
        attack(targets)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "unknown")
    return "worked"
