"""A network namespace that contains the loopback interface alone (netdevice(7))."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from trainer.sandbox.syscalls import syscall

_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP: Final = 1
_REQUEST: Final = "16sh14x"
"""`struct ifreq`: the interface's name, its flags."""
_INET, _DATAGRAM = 2, 2


def interfaces() -> list[str]:
    """Returns the names of the interfaces in this process's network namespace, from /proc/self/net/dev."""
    lines = Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()[2:]
    return [line.partition(":")[0].strip() for line in lines]


def bring_up() -> None:
    """Activates `lo`.

    Raises:
        OSError: there are other interfaces, so the namespace is shared; or it is not permitted.
    """
    if interfaces() != ["lo"]:
        raise OSError(1, "the network namespace is not this process's own")
    descriptor = syscall("socket", _INET, _DATAGRAM, 0)
    try:
        # Read, then write: SIOCSIFFLAGS replaces all flags, and only IFF_UP is to change.
        request = fcntl.ioctl(descriptor, _SIOCGIFFLAGS, struct.pack(_REQUEST, b"lo", 0))
        flags = struct.unpack(_REQUEST, request)[1]
        fcntl.ioctl(descriptor, _SIOCSIFFLAGS, struct.pack(_REQUEST, b"lo", flags | _IFF_UP))
    finally:
        os.close(descriptor)
