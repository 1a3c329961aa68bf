"""Where a planted string could come out: what is watched while jobs run, each watcher by itself."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SAMPLE_SECONDS = 0.05
_ETH_P_ALL, _SOL_PACKET, _PACKET_STATISTICS, _PACKET_OUTGOING = 3, 263, 6, 4
_SO_RCVBUFFORCE = 33
_IPV4, _IPV6, _TCP = 0x0800, 0x86DD, 6
_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
_NO_FILES = {
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "devpts",
    "mqueue",
    "bpf",
    "tracefs",
    "securityfs",
    "debugfs",
}


@dataclass
class Served:
    """Every byte that came back inside TLS, by the port of the job that sent it."""

    by_port: defaultdict[int, bytearray] = field(default_factory=lambda: defaultdict(bytearray))

    def of(self, port: int) -> bytes:
        """What the job at this port answered: status lines, headers and bodies, as they were."""
        return bytes(self.by_port.get(port, b""))


@contextmanager
def recorded_answers() -> Iterator[Served]:
    """Keep what every TLS connection of this process receives, decrypted: TLS ends in the job and here."""
    served = Served()

    class Recording(ssl.SSLSocket):
        def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
            data = super().recv(buflen, flags)
            served.by_port[self.getpeername()[1]] += data
            return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl.SSLContext, "sslsocket_class", Recording)
        yield served


class Loopback(threading.Thread):
    """Captures what crosses `lo`, as root could: every frame once, TCP payloads put together by direction."""

    def __init__(self) -> None:
        super().__init__(name="loopback", daemon=True)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        # Whatever rmem_max says.
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.2)
        self._ended = threading.Event()
        self.streams: defaultdict[tuple[int, int], bytearray] = defaultdict(bytearray)
        self.other = bytearray()

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                frame, address = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                continue
            if address[2] == _PACKET_OUTGOING:  # on `lo` each frame is seen going out and coming in
                self._take(frame)

    def _take(self, frame: bytes) -> None:
        kind = struct.unpack_from("!H", frame, 12)[0]
        packet = frame[14:]
        if kind == _IPV4 and packet[9] == _TCP:
            segment = packet[(packet[0] & 15) * 4 : struct.unpack_from("!H", packet, 2)[0]]
        elif kind == _IPV6 and packet[6] == _TCP:
            segment = packet[40:]
        else:
            self.other += packet
            return
        ports = struct.unpack_from("!HH", segment)
        self.streams[ports[0], ports[1]] += segment[(segment[12] >> 4) * 4 :]

    def end(self) -> int:
        """Stop; returns how many frames the kernel had to drop."""
        time.sleep(0.3)
        self._ended.set()
        self.join(5)
        _, dropped = struct.unpack(
            "II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        )
        self._socket.close()
        return int(dropped)

    def between(self, port: int) -> bytes:
        """All that crossed to or from a port."""
        return b"\n".join(
            bytes(stream) for ports, stream in list(self.streams.items()) if port in ports
        )


class Processes(threading.Thread):
    """Looks, again and again, at a process and all below it: arguments, environment, files open for writing."""

    def __init__(self, pid: int) -> None:
        super().__init__(name="processes", daemon=True)
        self._pid = pid
        self._ended = threading.Event()
        self.words: set[bytes] = set()
        self.written: set[str] = set()
        self._looked_at: set[tuple[Path, bytes]] = set()

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            for pid in family(self._pid):
                self._look(Path("/proc") / str(pid))

    def _look(self, process: Path) -> None:
        try:
            arguments = (process / "cmdline").read_bytes()
            if (process, arguments) not in self._looked_at:  # the environment is that of its start
                self.words |= {
                    arguments,
                    (process / "comm").read_bytes(),
                    (process / "environ").read_bytes(),
                }
                self._looked_at.add((process, arguments))
            for number in os.listdir(process / "fd"):  # noqa: PTH208 -- many times a second, as the next line
                name = os.readlink(process / "fd" / number)  # noqa: PTH115
                if _is_on_disk(name):
                    mode = (process / "fdinfo" / number).read_text().split()[3]
                    if int(mode, 8) & os.O_ACCMODE != os.O_RDONLY:
                        self.written.add(name)
        except OSError:
            return  # it ended

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()
        self.join(5)

    def written_to_disk(self) -> set[str]:
        """Regular files that were open for writing and are not in memory."""
        return {name.removesuffix(" (deleted)") for name in self.written}


def _is_on_disk(name: str) -> bool:
    """Whether what a descriptor links to is a file, and not in memory."""
    return name.startswith("/") and not name.startswith(("/dev/", "/memfd:", "/proc/"))


def family(pid: int) -> Iterator[int]:
    """The ids of a process and all below it, as far as they still run."""
    yield pid
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from family(int(child))
    except OSError:
        return


def disks() -> list[str]:
    """Mount points of writable file systems that outlive the machine's memory."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        mount, options, kind = left.split(" ")[4], left.split(" ")[5], right.split(" ")[0]
        if kind not in _MEMORY | _NO_FILES and "rw" in options.split(","):
            found.append(mount.encode().decode("unicode_escape"))
    return found


def changed_files(mount: str, since: float, left_out: Container[str] = ()) -> Iterator[str]:
    """Everything on one file system whose inode changed at `since` (Unix seconds) or later.

    Directories in `left_out` are not entered.
    """
    device = os.lstat(mount).st_dev
    folders = [mount]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if status.st_dev != device:
                        continue
                    if entry.is_dir(follow_symlinks=False) and entry.path not in left_out:
                        folders.append(entry.path)
                    if status.st_ctime >= since:
                        yield entry.path
        except OSError:
            continue  # gone meanwhile
