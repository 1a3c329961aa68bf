"""The tar inside sealed files: the plainest there is, in one spelling.

A member is one 512-byte ustar header (POSIX.1-1988) of a regular file and its data, padded with zeros to 512
bytes. Nothing else exists: no links, devices, directories, sparse files or extension headers. Mode 0600, owner and
time 0, no owner names. Two zero blocks end the archive, and zeros fill it up to 10,240 bytes. So `tar` reads it,
`tar --format=ustar --owner=0 --group=0 --numeric-owner --mode=0600 --mtime=@0` writes the same bytes, and a reader
can demand that a header be exactly what the writer would have written for its name and size.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Final

from trainer.errors import ErrorCode, SealingError, UsageError
from trainer.sealing.age.byte_streams import write_all
from trainer.sealing.background_hash import background_hash

BLOCK_BYTES: Final = 512
RECORD_BYTES: Final = 20 * BLOCK_BYTES
MAX_NAME_BYTES: Final = 100

_COPY_BYTES: Final = 1 << 20
_OCTAL_SIZE_END: Final = 1 << 33  # eleven octal digits; larger sizes are written in base 256, as GNU tar does
_NAME, _SIZE, _TYPE = slice(0, 100), slice(124, 136), slice(156, 157)
_OCTAL: Final = re.compile(rb"[0-7]{11}\0")
_TYPES: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a directory",
    b"6": "a named pipe",
    b"S": "a sparse file",
    b"L": "an extension header",
    b"K": "an extension header",
    b"x": "an extension header",
    b"g": "an extension header",
}


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may ask of the machine that reads it.

    Args:
        max_files: members.
        max_bytes: of all members' data together.
    """

    max_files: int = 4096
    max_bytes: int = 1 << 34


@dataclass(frozen=True)
class ArchiveMember:
    """One file of an archive."""

    name: str
    size: int


def require_member_name(name: str) -> str:
    """Return `name` if it is a relative path that stays below where it is extracted.

    Raises:
        ValueError: empty, absolute, with `.`, `..` or empty parts, with characters that are not printable or a
            backslash, or longer than 100 bytes of UTF-8.
    """
    if not name.isprintable() or "\\" in name:
        raise ValueError("a file name holds a character that is not printable, or a backslash")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"a file name is longer than {MAX_NAME_BYTES} bytes")
    if any(part in {"", ".", ".."} for part in name.split("/")):
        raise ValueError("a file name is not a plain relative path")
    return name


def member_header(name: str, size: int) -> bytes:
    """The 512 bytes that announce a member; the only ones that are accepted for it."""
    header = bytearray(BLOCK_BYTES)
    encoded = name.encode()
    header[: len(encoded)] = encoded
    header[100:124] = b"0000600\0" + 2 * b"0000000\0"
    header[_SIZE] = b"%011o\0" % size if size < _OCTAL_SIZE_END else b"\x80" + size.to_bytes(11, "big")
    header[136:148] = b"00000000000\0"
    header[148:156] = b" " * 8  # the checksum is taken over spaces
    header[_TYPE] = b"0"
    header[257:265] = b"ustar\x0000"
    header[329:345] = 2 * b"0000000\0"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


class ArchiveWriter:
    """Writes members to a stream, one after the other.

    Args:
        target: takes the archive; need not be seekable.
    """

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._written = 0

    def add(self, name: str, source: BinaryIO, size: int) -> str:
        """Write `size` bytes of `source` as member `name` and return their SHA-256.

        Raises:
            ValueError: the name cannot be a member's.
            UsageError: the source has more or fewer bytes, so it changes while it is read.
        """
        self._write(member_header(require_member_name(name), size))
        left = size
        with background_hash() as digest:
            while left and (block := source.read(min(left, _COPY_BYTES))):
                digest.update(block)
                self._write(block)
                left -= len(block)
            if left or source.read(1):
                raise UsageError(ErrorCode.USAGE, f"{name} changed while it was read")
            self._write(bytes(-size % BLOCK_BYTES))
            return digest.hexdigest()

    def finish(self) -> None:
        """Write the end of the archive."""
        self._write(bytes(2 * BLOCK_BYTES))
        self._write(bytes(-self._written % RECORD_BYTES))

    def _write(self, data: bytes) -> None:
        write_all(self._target, data)
        self._written += len(data)


class ArchiveReader:
    """Reads members from a stream, in their order; refuses whatever `ArchiveWriter` would not have written.

    Args:
        source: the archive; need not be seekable.
        limits: bounds, applied to what headers announce before any of it is read.
    """

    def __init__(self, source: BinaryIO, limits: ArchiveLimits) -> None:
        self._source = source
        self._limits = limits
        self._names: set[str] = set()
        self._total = 0
        self._consumed = 0

    def next(self) -> ArchiveMember | None:
        """The next member, whose data must be read before the next call; None at the verified end.

        Raises:
            SealingError: BUNDLE_INVALID.
        """
        header = self._read_exactly(BLOCK_BYTES)
        if header == bytes(BLOCK_BYTES):
            self._require_end()
            return None
        member = _parse_header(header)
        self._admit(member)
        return member

    def read(self, member: ArchiveMember, limit: int) -> bytes:
        """The data of a member that may have at most `limit` bytes.

        Raises:
            SealingError: BUNDLE_INVALID.
        """
        if member.size > limit:
            raise bundle_invalid(f"{member.name}: bytes", f"at most {limit}", member.size)
        parts: list[bytes] = []
        self.copy(member, parts.append)
        return b"".join(parts)

    def copy(self, member: ArchiveMember, write: Callable[[bytes], object]) -> str:
        """Hand the data of a member to `write`, block by block, and return its SHA-256.

        Raises:
            SealingError: BUNDLE_INVALID.
        """
        left = member.size
        with background_hash() as digest:
            while left:
                block = self._read_exactly(min(left, _COPY_BYTES))
                digest.update(block)
                write(block)
                left -= len(block)
            if any(self._read_exactly(-member.size % BLOCK_BYTES)):
                raise bundle_invalid(f"{member.name}: its padding is not zero")
            return digest.hexdigest()

    def _admit(self, member: ArchiveMember) -> None:
        if member.name in self._names:
            raise bundle_invalid("two members have the same name")
        self._names.add(member.name)
        self._total += member.size
        if len(self._names) > self._limits.max_files:
            raise bundle_invalid("files", f"at most {self._limits.max_files}", "more")
        if self._total > self._limits.max_bytes:
            raise bundle_invalid("bytes of all files", f"at most {self._limits.max_bytes}", self._total)

    def _require_end(self) -> None:
        rest = BLOCK_BYTES + -(self._consumed + BLOCK_BYTES) % RECORD_BYTES
        if any(self._read_exactly(rest)):
            raise bundle_invalid("something follows its end")
        if self._source.read(1):
            raise bundle_invalid("something follows its end")

    def _read_exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        left = size
        while left and (part := self._source.read(left)):
            parts.append(part)
            left -= len(part)
        if left:
            raise bundle_invalid("it is cut short")
        self._consumed += size
        return parts[0] if len(parts) == 1 else b"".join(parts)


def bundle_invalid(what: str, expected: object = None, found: object = None) -> SealingError:
    """The error of an archive that is not of the agreed form."""
    return SealingError(ErrorCode.BUNDLE_INVALID, f"sealed archive: {what}", expected=expected, found=found)


def _parse_header(header: bytes) -> ArchiveMember:
    if header[_TYPE] != b"0":
        raise bundle_invalid("kind of a member", "a regular file", _TYPES.get(header[_TYPE], "an unknown kind"))
    try:
        name = require_member_name(header[_NAME].rstrip(b"\0").decode())
        member = ArchiveMember(name, _parse_size(header[_SIZE]))
    except ValueError as error:
        reason = "a file name is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise bundle_invalid(reason) from None
    if header != member_header(member.name, member.size):
        raise bundle_invalid("a member's header is not written as agreed")
    return member


def _parse_size(field: bytes) -> int:
    if field[0] == 0x80:  # marks base 256
        return int.from_bytes(field[1:], "big")
    if not _OCTAL.fullmatch(field):
        raise ValueError("a member's size is not a number")
    return int(field[:11], 8)
