"""The filter programs, run by a small interpreter: what they decide about calls that cannot be made here."""

from __future__ import annotations

import errno
import struct

import pytest

from trainer.sandbox import channels
from trainer.sandbox.filters import AUDIT_ARCH_X86_64, KERNEL_DOORS, TRACING, Filter, program
from trainer.sandbox.syscalls import LAST_KNOWN, NUMBERS, SUPPORTED

ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
I386 = 0x40000003
CLONE_THREAD, CLONE_NEWUSER, SIGCHLD = 0x10000, 0x10000000, 17

WORKER = Filter(refused=frozenset({"connect"}), own_pid=1234, pid=1234)
COMPILING = Filter(programs=True)
SUPERVISOR = Filter(families=frozenset({1}))
ON_A_GPU = Filter(families=frozenset({1}), unix_kind=5)
TOGETHER = Filter(families=frozenset({2, 10}), unix_kind=5, interfaces=True)
TOGETHER_ON_GPUS = Filter(families=frozenset({1, 2, 10}), unix_kind=5, interfaces=True)
EVERY = (WORKER, COMPILING, SUPERVISOR, ON_A_GPU, TOGETHER, TOGETHER_ON_GPUS)


def decide(filter_: Filter, number: int, *arguments: int, arch: int = AUDIT_ARCH_X86_64) -> int:
    """What the kernel would decide: classic BPF over struct seccomp_data."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", program(filter_)))
    position, accumulator = 0, 0
    while True:
        operation, if_true, if_false, value = code[position]
        position += 1
        if operation == 0x06:
            return int(value)
        if operation == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
            continue
        if operation == 0x54:
            accumulator &= value
            continue
        met = {
            0x15: accumulator == value,
            0x25: accumulator > value,
            0x45: bool(accumulator & value),
        }[operation]
        position += if_true if met else if_false


@pytest.mark.parametrize("filter_", [WORKER, COMPILING, SUPERVISOR, ON_A_GPU, TOGETHER_ON_GPUS])
def test_every_way_through_ends(filter_: Filter) -> None:
    code = list(struct.iter_unpack("=HBBI", program(filter_)))
    assert len(code) < 4096
    for position, (operation, if_true, if_false, _) in enumerate(code):
        assert operation in {0x06, 0x15, 0x20, 0x25, 0x45, 0x54}
        if operation in {0x15, 0x25, 0x45}:
            assert position + 1 + max(if_true, if_false) < len(code)
    assert code[-1][0] == 0x06
    for number in range(LAST_KNOWN + 2):
        assert decide(filter_, number) & 0xFFFF0000 in {ALLOW, REFUSE}


@pytest.mark.parametrize("name", sorted(TRACING | KERNEL_DOORS))
def test_always_refused(name: str) -> None:
    for filter_ in (WORKER, COMPILING, SUPERVISOR):
        assert decide(filter_, NUMBERS[name]) == REFUSE | errno.EPERM


def test_other_ways_into_the_kernel() -> None:
    assert decide(WORKER, 11, arch=I386) == KILL, "a 32-bit execve"
    x32 = 0x40000000
    assert decide(WORKER, x32 | 520) == REFUSE | errno.ENOSYS, "execve of x32"
    assert decide(WORKER, LAST_KNOWN + 1) == REFUSE | errno.ENOSYS
    assert decide(WORKER, -1) == REFUSE | errno.ENOSYS


def test_threads_yes_processes_where_a_compiler_runs_namespaces_never() -> None:
    clone = NUMBERS["clone"]
    assert decide(WORKER, clone, CLONE_THREAD | 0x3D0F00) == ALLOW
    assert decide(WORKER, clone, SIGCHLD) == REFUSE | errno.EPERM
    assert decide(COMPILING, clone, SIGCHLD) == ALLOW
    for filter_ in (WORKER, COMPILING):
        assert decide(filter_, clone, SIGCHLD | CLONE_NEWUSER) == REFUSE | errno.EPERM
        assert decide(filter_, clone, CLONE_THREAD | CLONE_NEWUSER) == REFUSE | errno.EPERM
        assert decide(filter_, NUMBERS["clone3"]) == REFUSE | errno.ENOSYS, (
            "its flags cannot be seen"
        )


def test_programs() -> None:
    for name in ("execve", "execveat", "fork", "vfork"):
        assert decide(WORKER, NUMBERS[name]) == REFUSE | errno.EPERM
        assert decide(COMPILING, NUMBERS[name]) == ALLOW


def test_address_families() -> None:
    for family in range(48):
        assert decide(WORKER, NUMBERS["socket"], family) == REFUSE | errno.EPERM
        expected = ALLOW if family == 1 else REFUSE | errno.EPERM
        assert decide(SUPERVISOR, NUMBERS["socket"], family) == expected
    assert decide(SUPERVISOR, NUMBERS["socket"], 1 << 32 | 2) == REFUSE | errno.EPERM, (
        "the kernel looks at 32 bits"
    )


def test_one_type_of_unix_socket() -> None:
    """What a GPU's driver listens on; the guest agent is spoken to over another type."""
    flags = 0x80000 | 0x800
    for kind in range(16):
        expected = ALLOW if kind == 5 else REFUSE | errno.EPERM
        assert decide(ON_A_GPU, NUMBERS["socket"], 1, kind) == expected
        assert decide(ON_A_GPU, NUMBERS["socket"], 1, kind | flags) == expected
        assert decide(ON_A_GPU, NUMBERS["socket"], 2, kind) == REFUSE | errno.EPERM


def test_what_several_processes_find_each_other_with() -> None:
    """TCP and UDP, the kernel's list of interfaces, and on GPUs the driver's unix socket; no other socket."""
    for filter_ in (TOGETHER, TOGETHER_ON_GPUS):
        for family in range(48):
            for kind in (1, 2, 3, 5):
                for protocol in (0, 9, 15):
                    allowed = family in {2, 10} or (family == 16 and protocol == 0)
                    allowed = allowed or (family == 1 and kind == 5 and filter_ is TOGETHER_ON_GPUS)
                    found = decide(filter_, NUMBERS["socket"], family, kind, protocol)
                    assert found == (ALLOW if allowed else REFUSE | errno.EPERM), (
                        family,
                        kind,
                        protocol,
                    )


def test_signals_to_itself_only() -> None:
    for name in ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
        assert decide(WORKER, NUMBERS[name], 1234) == ALLOW
        for other in (0, 1, 1235, 2**64 - 1):
            assert decide(WORKER, NUMBERS[name], other) == REFUSE | errno.EPERM
    assert decide(WORKER, NUMBERS["tkill"], 1234) == REFUSE | errno.EPERM


@pytest.mark.parametrize("name", sorted(channels.IPC))
def test_state_that_is_found_by_number_or_name(name: str) -> None:
    for filter_ in EVERY:
        assert decide(filter_, NUMBERS[name]) == REFUSE | errno.EPERM


def test_commands_that_lock_watch_or_signal() -> None:
    for filter_ in EVERY:
        for command in channels.FCNTL:
            assert decide(filter_, NUMBERS["fcntl"], 3, command) == REFUSE | errno.EPERM
            assert decide(filter_, NUMBERS["fcntl"], 3, 1 << 32 | command) == REFUSE | errno.EPERM
        # Duplicates, flags, the size of a pipe, seals.
        for command in (
            0,
            1,
            2,
            3,
            4,
            1030,
            1031,
            1033,
        ):
            assert decide(filter_, NUMBERS["fcntl"], 3, command) == ALLOW
        for request in channels.IOCTL:
            assert decide(filter_, NUMBERS["ioctl"], 3, request) == REFUSE | errno.EPERM


def test_futexes_of_other_processes_are_not_woken() -> None:
    futex, realtime = NUMBERS["futex"], 256
    for filter_ in EVERY:
        for operation in range(16):
            assert decide(filter_, futex, 0, operation | 128) == ALLOW
            expected = ALLOW if operation in {0, 9} else REFUSE | errno.EPERM
            assert decide(filter_, futex, 0, operation) == expected
            assert decide(filter_, futex, 0, operation | realtime) == expected


@pytest.mark.parametrize("name", sorted(channels.ONLY_ITSELF))
def test_settings_of_itself_only(name: str) -> None:
    assert decide(WORKER, NUMBERS[name], 0) == decide(WORKER, NUMBERS[name], 1234) == ALLOW
    for other in (1, 1235, 2**32 - 1):
        assert decide(WORKER, NUMBERS[name], other) == REFUSE | errno.EPERM


@pytest.mark.parametrize(("name", "kind"), sorted(channels.ONLY_ITSELF_OF_KIND.items()))
def test_priorities_of_itself_only(name: str, kind: int) -> None:
    for asked in range(4):
        for pid in (0, 1, 1234):
            expected = ALLOW if asked == kind and pid != 1 else REFUSE | errno.EPERM
            assert decide(WORKER, NUMBERS[name], asked, pid) == expected


@pytest.mark.parametrize("name", sorted(channels.CLOCKS))
def test_clocks_of_no_other_process(name: str) -> None:
    for clock in range(12):
        assert decide(WORKER, NUMBERS[name], clock) == ALLOW
    for pid in (1, 1235):
        assert decide(WORKER, NUMBERS[name], (~pid << 3 | 2) & 2**64 - 1) == REFUSE | errno.EPERM


def test_dumpable_and_terminal() -> None:
    assert decide(WORKER, NUMBERS["prctl"], 4, 1) == REFUSE | errno.EPERM
    assert decide(WORKER, NUMBERS["prctl"], 15) == ALLOW, "PR_SET_NAME"
    assert decide(WORKER, NUMBERS["ioctl"], 0, 0x5412) == REFUSE | errno.EPERM
    assert decide(WORKER, NUMBERS["ioctl"], 0, 0x5413) == ALLOW


@pytest.mark.skipif(not SUPPORTED, reason="the numbers are x86-64's")
def test_numbers_are_the_kernels() -> None:
    """Against the C library's header, where a compiler's headers are installed."""
    import re
    from pathlib import Path

    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no kernel headers here")
    there = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", header.read_text()))
    known = {name: number for name, number in NUMBERS.items() if name in there}
    assert len(known) > 80
    assert known == {name: int(there[name]) for name in known}
