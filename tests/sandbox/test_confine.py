"""Putting walls up: what is left out where the kernel offers less, and what the options open."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.conftest import ROOT
from trainer.sandbox import landlock
from trainer.sandbox.landlock import Access, handled
from trainer.sandbox.plan import Account, Role, SandboxPlan, is_readable, may_pass, software_paths
from trainer.sandbox.properties import EXPECTED, SandboxProperty
from trainer.sandbox.syscalls import SUPPORTED

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="system call filters are written for x86-64")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a network namespace")


def run(code: str, *arguments: object) -> Any:
    """Run code in a process of its own; what it passes to `tell` comes back."""
    prelude = """
        import errno, json, os, socket, subprocess, sys, threading
        from pathlib import Path
        from trainer.sandbox import confine as confining, landlock, seccomp
        from trainer.sandbox.confine import confine
        from trainer.sandbox.plan import Role, SandboxPlan
        def tell(value): print(json.dumps(value))
        def outcome(attempt):
            try:
                attempt()
            except OSError as error:
                return errno.errorcode[error.errno]
            return "worked"
    """
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            textwrap.dedent(prelude) + textwrap.dedent(code),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_kernel_without_landlock_is_told_honestly() -> None:
    walls = run("""
        landlock.abi = lambda: 0
        tell(confine(SandboxPlan(role=Role.WORKER)))
    """)
    assert not walls["worker_files_confined"]
    assert walls["worker_no_network"]
    assert {wall for wall, stands in walls.items() if stands} >= {
        w for w in EXPECTED if w.startswith("worker_")
    }


def test_a_kernel_without_seccomp_is_told_honestly() -> None:
    walls = run("""
        def refuse(_):
            raise OSError(errno.ENOSYS, "seccomp")
        seccomp.install = refuse
        tell(confine(SandboxPlan(role=Role.WORKER)))
    """)
    for wall in ("worker_no_network", "worker_no_programs", "worker_no_kernel_doors"):
        assert not walls[wall], wall
    assert walls["worker_not_dumpable"]


def test_threads_made_before_are_an_error() -> None:
    assert run("""
        go = threading.Event()
        threading.Thread(target=go.wait).start()
        try:
            confine(SandboxPlan(role=Role.WORKER))
        except RuntimeError as error:
            tell(str(error))
        go.set()
    """).startswith("a process is confined before")


def test_a_compiler_may_run_behind_the_same_walls(tmp_path: Path) -> None:
    """The program that is run has no network either, and writes where the worker may."""
    if landlock.abi() == 0:
        pytest.skip("this kernel has no Landlock")
    found = run(
        """
        out = Path(sys.argv[1])
        walls = confine(SandboxPlan(role=Role.WORKER, writable=(out,), programs=True))
        script = "import socket, sys; open(sys.argv[1], 'w').write('made'); socket.socket()"
        done = subprocess.run([sys.executable, "-c", script, str(out / "made")], capture_output=True, text=True)
        outside = subprocess.run(["/bin/sh", "-c", "echo x > /var/tmp/trainer-outside"], capture_output=True)
        tell({
            "walls": walls, "code": done.returncode, "error": done.stderr.splitlines()[-1:],
            "outside": outside.returncode, "own": outcome(lambda: os.execv(out / "made", ["made"])),
        })
        """,
        tmp_path,
    )
    assert not found["walls"]["worker_no_programs"]
    assert found["walls"]["worker_no_network"]
    assert found["walls"]["worker_no_signals"] or landlock.abi() < 6
    assert (tmp_path / "made").read_text() == "made"
    assert found["code"] != 0
    assert "PermissionError" in found["error"][0]
    assert found["outside"] != 0
    assert found["own"] == "EACCES", "what the worker wrote is not run"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_a_kernel_is_compiled_and_loaded(tmp_path: Path) -> None:
    """What torch and triton do at run time: a C compiler writes a library into the workspace, which is loaded."""
    found = run(
        """
        import ctypes
        out = Path(sys.argv[1])
        os.environ["TMPDIR"] = str(out)
        confine(SandboxPlan(role=Role.WORKER, writable=(out,), programs=True))
        (out / "k.c").write_text("int answer(void) { return 42; }")
        command = ["cc", "-shared", "-fPIC", "-o", out / "k.so", out / "k.c"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        tell(ctypes.CDLL(str(out / "k.so")).answer())
        """,
        tmp_path,
    )
    assert found == 42


def test_what_a_gpus_driver_does_when_it_starts(guest_agent: Path) -> None:
    """libcuda listens on an abstract socket and names its threads through /proc; nobody is let in, nothing out."""
    found = run(
        """
        walls = confine(SandboxPlan(role=Role.WORKER, gpu=True))
        def name_a_thread():
            ready, done = threading.Event(), threading.Event()
            thread = threading.Thread(target=lambda: (ready.set(), done.wait()))
            thread.start()
            ready.wait()
            try:
                Path(f"/proc/self/task/{thread.native_id}/comm").write_text("cuda")
            finally:
                done.set()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        tell({
            "walls": walls,
            "bind": outcome(lambda: listener.bind(chr(0) + f"cuda-uvmfd-{os.getpid()}")),
            "listen": outcome(listener.listen),
            "accept": outcome(listener.accept),
            "name": outcome(name_a_thread),
            "agent": outcome(lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[1])),
            "agent_by_packets": outcome(lambda: listener.connect(sys.argv[1])),
            "path": outcome(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).bind("/tmp/trainer-x")),
        })
        """,
        guest_agent,
    )
    assert found["walls"]["worker_no_network"]
    assert [found[name] for name in ("bind", "listen", "name")] == ["worked"] * 3
    assert [found[name] for name in ("accept", "agent", "agent_by_packets")] == ["EPERM"] * 3
    assert found["path"] == "EACCES" or landlock.abi() == 0


@needs_root
def test_loopback_is_a_network_of_its_own(servers: dict[str, int]) -> None:
    """Several processes may train together over loopback; the machine's loopback is another one."""
    found = run(
        """
        walls = confine(SandboxPlan(role=Role.WORKER, processes=2))
        server = socket.create_server(("127.0.0.1", 0))
        tell({
            "walls": walls,
            "own": outcome(lambda: socket.create_connection(server.getsockname(), 5).close()),
            "machine": outcome(lambda: socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5).close()),
            "away": outcome(lambda: socket.create_connection(("192.0.2.1", 9), 5).close()),
            "unix": outcome(lambda: socket.socket(socket.AF_UNIX).close()),
        })
        """,
        servers["tcp_port"],
    )
    assert found["walls"]["worker_own_network"]
    assert found["walls"]["worker_no_network"]
    assert found["own"] == "worked"
    assert found["machine"] == "ECONNREFUSED"
    assert found["away"] == "ENETUNREACH"
    assert found["unix"] == "EPERM"


@needs_root
def test_processes_of_one_training_reach_each_other_and_nothing_else(
    servers: dict[str, int],
) -> None:
    """Made by one that left the network; each confines itself and finds the others, over loopback alone."""
    found = run(
        """
        from trainer.sandbox.confine import own_loopback
        own_loopback()
        server = socket.create_server(("127.0.0.1", 0))
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            walls = confine(SandboxPlan(role=Role.WORKER, processes=2), in_own_network=True)
            port, udp = int(sys.argv[1]), int(sys.argv[2])
            def send(address, family=socket.AF_INET):
                one = socket.socket(family, socket.SOCK_DGRAM)
                one.connect(address)
                one.send(b"x")
                one.send(b"x")  # says what became of the first
            found = {
                "walls": walls,
                "other": outcome(lambda: socket.create_connection(server.getsockname(), 5).close()),
                "tcp": outcome(lambda: socket.create_connection(("127.0.0.1", port), 5).close()),
                "tcp6": outcome(lambda: socket.create_connection(("::1", port), 5).close()),
                "udp": outcome(lambda: send(("127.0.0.1", udp))),
                "away": outcome(lambda: send(("192.0.2.1", 9))),
                "away6": outcome(lambda: send(("2001:db8::1", 9), socket.AF_INET6)),
                "kernel": outcome(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9).close()),
                "raw": outcome(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()),
                "maker": outcome(lambda: os.kill(os.getppid(), 0)),
                "leave": outcome(lambda: os.fork()),
                "interfaces": [name for _, name in socket.if_nameindex()],
            }
            os.write(writing, json.dumps(found).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        tell(json.loads(os.read(reading, 65536)))
        """,
        servers["tcp_port"],
        servers["udp_port"],
    )
    assert found["other"] == "worked"
    assert found["interfaces"] == ["lo"]
    assert (found["tcp"], found["udp"]) == ("ECONNREFUSED", "ECONNREFUSED"), (
        "the machine's loopback is another one"
    )
    assert found["tcp6"] in {"ECONNREFUSED", "EADDRNOTAVAIL", "ENETUNREACH"}
    assert found["away"] == "ENETUNREACH"
    assert found["away6"] in {"ENETUNREACH", "EADDRNOTAVAIL"}
    assert [found[name] for name in ("kernel", "raw", "maker", "leave")] == ["EPERM"] * 4
    walls = {
        wall: stands for wall, stands in found["walls"].items() if wall != "worker_files_confined"
    }
    assert all(walls.values()), walls


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody without the right")
def test_loopback_is_refused_where_the_network_is_not_its_own(open_python: list[str]) -> None:
    code = (
        "from trainer.sandbox.confine import confine\n"
        "from trainer.sandbox.plan import Role, SandboxPlan\n"
        "confine(SandboxPlan(role=Role.WORKER, processes=2))\n"
    )
    done = subprocess.run(
        [*open_python, "-P", "-c", code],
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert "not this process's own" in done.stderr


def test_a_child_ends_with_the_process_that_started_it() -> None:
    """A worker without a supervisor would go on with plaintext that nobody waits for."""
    child = run("""
        code = (
            "import time\\n"
            "from trainer.sandbox.confine import confine\\n"
            "from trainer.sandbox.plan import Role, SandboxPlan\\n"
            "confine(SandboxPlan(role=Role.WORKER)); print('confined', flush=True); time.sleep(60)"
        )
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        child.stdout.readline()
        tell(child.pid)
        sys.stdout.flush()
        os._exit(0)
    """)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}/stat").exists():
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.05)


def test_landlock_versions_add_rights() -> None:
    assert handled(1) == Access(0x1FFF)
    assert handled(2) == handled(1) | Access.REFER
    assert handled(3) == handled(4) == handled(2) | Access.TRUNCATE
    assert handled(5) == handled(7) == handled(3) | Access.IOCTL_DEV


def test_software_is_no_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", ["", "/", str(tmp_path), *sys.path])
    paths = software_paths()
    assert Path("/") not in paths
    assert tmp_path not in paths
    assert ROOT not in paths
    assert ROOT / "trainer" in paths


def test_readable_by_the_mode_bits_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tmp_path.chmod(0o710)
    owner = Account(uid=tmp_path.stat().st_uid, gid=12345)
    group = Account(uid=12345, gid=tmp_path.stat().st_gid)
    (tmp_path / "file").chmod(0o640)
    assert not is_readable(tmp_path / "file", Account(uid=12345, gid=12345))
    assert not may_pass(tmp_path, Account(uid=12345, gid=12345))
    assert is_readable(tmp_path / "file", owner)
    (tmp_path / "file").chmod(0o600)
    assert not is_readable(tmp_path / "file", group)


def test_every_wall_belongs_to_somebody() -> None:
    prefixes = (
        "supervisor_",
        "front_",
        "worker_",
        "core_dumps_off",
        "workspace_in_memory",
        "swap_off",
        "separate",
    )
    assert all(wall.value.startswith(prefixes) for wall in SandboxProperty)
    assert len(SandboxProperty) <= 64, "the claims hold no more"


def test_plans_survive_the_command_line() -> None:
    plan = SandboxPlan(
        role=Role.WORKER, account=Account(uid=1, gid=2), readable=(Path("/a"),), programs=True
    )
    assert SandboxPlan.model_validate_json(plan.model_dump_json()) == plan
