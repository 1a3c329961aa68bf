"""The archive inside sealed files: the subset of tar that has one encoding for each list of files.

A member is the 512-byte ustar header (POSIX.1-1988) of a regular file, then its data, padded with zeros to a
multiple of 512 bytes. There are no links, devices, directories, sparse files or extension headers. Mode is 0600,
owner and time are 0, owner names are empty. Two zero blocks end the archive, and zeros pad it to one of few sizes
(`padded_records`), because whoever stores a sealed file sees its size.

`tar` reads such an archive, and `tar --format=ustar --owner=0 --group=0 --numeric-owner --mode=0600 --mtime=@0`
writes the same bytes up to the padding. A reader that accepts only this encoding needs no judgement about fields:
it recomputes the header from name and size and compares all 512 bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Final

from trainer.errors import ErrorCode, SealingError, UsageError
from trainer.models import MAX_BUNDLE_FILES
from trainer.sealing.age.byte_streams import write_all
from trainer.sealing.background_hash import background_hash

BLOCK_BYTES: Final = 512
RECORD_BYTES: Final = 20 * BLOCK_BYTES
MAX_NAME_BYTES: Final = 100

_COPY_BYTES: Final = 1 << 20
# Eleven octal digits; larger sizes are written in base 256, as GNU tar does.
_OCTAL_SIZE_END: Final = 1 << 33
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
    """Limits on what a reader accepts.

    Args:
        max_files: number of members.
        max_bytes: total size of all members' data.
    """

    max_files: int = MAX_BUNDLE_FILES
    max_bytes: int = 1 << 34


@dataclass(frozen=True)
class ArchiveMember:
    """One file of an archive; `size` is in bytes."""

    name: str
    size: int


def require_member_name(name: str) -> str:
    """Returns `name` if it is a relative path that cannot leave the directory into which it is extracted.

    Raises:
        ValueError: empty, absolute, with `.`, `..` or empty components, with a backslash or a character that is
            not printable, or longer than 100 bytes of UTF-8.
    """
    if not name.isprintable() or "\\" in name:
        raise ValueError("a file name holds a character that is not printable, or a backslash")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"a file name is longer than {MAX_NAME_BYTES} bytes")
    if any(part in {"", ".", ".."} for part in name.split("/")):
        raise ValueError("a file name is not a plain relative path")
    return name


def padded_records(records: int) -> int:
    """Returns how many records of `RECORD_BYTES` an archive has that needs `records` of them.

    Padmé (Nikitin et al., PETS 2019, https://doi.org/10.2478/popets-2019-0056): a number with exponent E keeps its
    first floor(log2 E) + 1 bits after the leading one, rounded up. That adds at most 12 %, less for larger ones.
    """
    exponent = records.bit_length() - 1
    dropped_bits = max(0, exponent - exponent.bit_length())
    return -(-records >> dropped_bits) << dropped_bits


def member_header(name: str, size: int) -> bytes:
    """Returns the 512 header bytes of a member; a reader accepts no others for this name and size."""
    header = bytearray(BLOCK_BYTES)
    encoded = name.encode()
    header[: len(encoded)] = encoded
    header[100:124] = b"0000600\0" + 2 * b"0000000\0"
    header[_SIZE] = (
        b"%011o\0" % size if size < _OCTAL_SIZE_END else b"\x80" + size.to_bytes(11, "big")
    )
    header[136:148] = b"00000000000\0"
    # POSIX: the checksum is the sum of all header bytes, with the checksum field itself taken as spaces.
    header[148:156] = b" " * 8
    header[_TYPE] = b"0"
    header[257:265] = b"ustar\x0000"
    header[329:345] = 2 * b"0000000\0"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


class ArchiveWriter:
    """Writes members to a stream in order.

    Args:
        target: receives the archive; need not be seekable.
    """

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._written = 0

    def add(self, name: str, source: BinaryIO, size: int) -> str:
        """Writes the file `source` of `size` bytes as member `name`; returns its SHA-256 in hex.

        Raises:
            ValueError: `name` is not allowed as a member's name.
            UsageError: `source` has more or fewer bytes, so it changes while it is read.
        """
        self._write(member_header(require_member_name(name), size))
        remaining = size
        with background_hash() as digest:
            while remaining and (block := source.read(min(remaining, _COPY_BYTES))):
                digest.update(block)
                self._write(block)
                remaining -= len(block)
            # The header with the size is already written, so a file that grew or shrank cannot be repaired here.
            if remaining or source.read(1):
                raise UsageError(ErrorCode.USAGE, f"{name} changed while it was read")
            self._write(bytes(-size % BLOCK_BYTES))
            return digest.hexdigest()

    def add_bytes(self, name: str, data: bytes) -> None:
        """Writes `data` as member `name`."""
        self.add(name, io.BytesIO(data), len(data))

    def finish(self) -> None:
        """Writes the end of the archive, and its padding."""
        self._write(bytes(2 * BLOCK_BYTES))
        end = RECORD_BYTES * padded_records(-(-self._written // RECORD_BYTES))
        while rest := end - self._written:
            self._write(bytes(min(rest, _COPY_BYTES)))

    def _write(self, data: bytes) -> None:
        write_all(self._target, data)
        self._written += len(data)


class ArchiveReader:
    """Reads members from a stream in order; refuses everything that `ArchiveWriter` would not have written.

    Args:
        source: the archive; need not be seekable.
        limits: compared with the sizes in the headers before any data is read.
    """

    def __init__(self, source: BinaryIO, limits: ArchiveLimits) -> None:
        self._source = source
        self._limits = limits
        self._names: set[str] = set()
        self._total_bytes = 0
        self._consumed = 0

    def next_member(self) -> ArchiveMember | None:
        """Returns the next member, or None after the end of the archive was verified.

        The data of a member must be read before the next call.

        Raises:
            SealingError: BUNDLE_INVALID.
        """
        header = self._read_exactly(BLOCK_BYTES)
        if header == bytes(BLOCK_BYTES):
            self._require_end()
            return None
        member = _parse_header(header)
        # Readers could disagree on which of the two they take: `tar` keeps the last one.
        if member.name in self._names:
            raise bundle_invalid("two members have the same name")
        self._names.add(member.name)
        self._total_bytes += member.size
        if len(self._names) > self._limits.max_files:
            raise bundle_invalid("files", f"at most {self._limits.max_files}", "more")
        if self._total_bytes > self._limits.max_bytes:
            raise bundle_invalid(
                "bytes of all files", f"at most {self._limits.max_bytes}", self._total_bytes
            )
        return member

    def _require_end(self) -> None:
        """Requires the second zero block, the padding, then the end of the stream.

        Other bytes, or other padding, would be a second encoding of the same files.
        """
        end = RECORD_BYTES * padded_records(-(-(self._consumed + BLOCK_BYTES) // RECORD_BYTES))
        while rest := end - self._consumed:
            if any(self._read_exactly(min(rest, _COPY_BYTES))):
                raise bundle_invalid("something follows its end")
        if self._source.read(1):
            raise bundle_invalid("something follows its end")

    def read_member(self, member: ArchiveMember, limit: int) -> bytes:
        """Returns the data of a member; `limit` is the largest size accepted, in bytes.

        Raises:
            SealingError: BUNDLE_INVALID.
        """
        if member.size > limit:
            raise bundle_invalid(f"{member.name}: bytes", f"at most {limit}", member.size)
        parts: list[bytes] = []
        self.copy_member(member, parts.append)
        return b"".join(parts)

    def copy_member(self, member: ArchiveMember, write: Callable[[bytes], object]) -> str:
        """Passes the data of a member to `write` in blocks; returns its SHA-256 in hex.

        Raises:
            SealingError: BUNDLE_INVALID.
        """
        remaining = member.size
        with background_hash() as digest:
            while remaining:
                block = self._read_exactly(min(remaining, _COPY_BYTES))
                digest.update(block)
                write(block)
                remaining -= len(block)
            if any(self._read_exactly(-member.size % BLOCK_BYTES)):
                raise bundle_invalid(f"{member.name}: its padding is not zero")
            return digest.hexdigest()

    def _read_exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        remaining = size
        while remaining and (part := self._source.read(remaining)):
            parts.append(part)
            remaining -= len(part)
        if remaining:
            raise bundle_invalid("it is cut short")
        self._consumed += size
        return parts[0] if len(parts) == 1 else b"".join(parts)


def bundle_invalid(reason: str, expected: object = None, found: object = None) -> SealingError:
    """Makes the error for an archive that does not follow the format."""
    return SealingError(
        ErrorCode.BUNDLE_INVALID, f"sealed archive: {reason}", expected=expected, found=found
    )


def _parse_header(header: bytes) -> ArchiveMember:
    if header[_TYPE] != b"0":
        raise bundle_invalid(
            "kind of a member", "a regular file", _TYPES.get(header[_TYPE], "an unknown kind")
        )
    try:
        name = require_member_name(header[_NAME].rstrip(b"\0").decode())
    except ValueError as error:
        reason = "a file name is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise bundle_invalid(reason) from None
    if header[_SIZE][0] == 0x80:  # the marker of base 256
        size = int.from_bytes(header[_SIZE][1:], "big")
    elif _OCTAL.fullmatch(header[_SIZE]):
        size = int(header[_SIZE][:11], 8)
    else:
        raise bundle_invalid("a member's size is not a number")
    # Fields that are not parsed (mode, owner, time, checksum …) are verified by comparing all bytes. This also
    # refuses a second spelling of the fields that are, such as a small size in base 256.
    if header != member_header(name, size):
        raise bundle_invalid("a member's header is not written as agreed")
    return ArchiveMember(name, size)
