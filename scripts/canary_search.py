"""Search for many byte strings at once, in streams of any size and inside archives.

Each block is searched twice: as it is, and without white space and colons. Two table look-ups per byte leave a few
candidates per million bytes, which are then compared; so the time hardly depends on the number of strings.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Final, cast

import numpy as np
import numpy.typing as npt
from canary_forms import Needle, is_kept, squeeze

BLOCK: Final = 4 << 20
MAX_MEMBER: Final = 1 << 30
"""Largest part of a compressed member that is searched, in bytes; a longer one is reported as unread."""

MAX_NESTED: Final = 256 << 20
_MAX_DEPTH: Final = 4
_KEY: Final = 4
_TAR_MAGIC_AT: Final = 257
_HEAD: Final = 512
_PIECES: Final = 4  # how much longer than a needle its broken form may be

_UNPACKING_ERRORS: Final = (
    OSError, EOFError, ValueError, NotImplementedError, RuntimeError,
    zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Hit:
    """A canary that was found: place, byte offset and encoding, without the bytes around it."""

    where: str
    offset: int
    canary: int
    form: str


@dataclass
class Findings:
    """Result of a search: hits, paths that could not be read, and the number of bytes searched."""

    hits: set[Hit] = field(default_factory=set)
    unread: list[str] = field(default_factory=list)
    searched: int = 0


class _Index:
    """Needles, indexed by four of their bytes: those that occur least by chance.

    A table over all 2-byte values marks which begin a key (bit 0) and which end one (bit 1). A position is a
    candidate if the pair there and the pair after it are marked accordingly.
    """

    def __init__(self, needles: Sequence[Needle]) -> None:
        self.longest = max((len(needle.content) for needle in needles), default=0)
        self._by_key: defaultdict[bytes, list[tuple[int, Needle]]] = defaultdict(list)
        self._pairs = np.zeros(1 << 16, np.uint8)
        for needle in needles:
            at = _rarest(needle.content)
            key = needle.content[at : at + _KEY]
            self._by_key[key].append((at, needle))
            self._pairs[int.from_bytes(key[:2], "little")] |= 1
            self._pairs[int.from_bytes(key[2:], "little")] |= 2

    def find(self, block: bytes) -> Iterator[tuple[int, Needle]]:
        """Yield the offset and the needle of each occurrence in `block`, which is in lower case."""
        for position in self._candidates(block):
            for at, needle in self._by_key.get(block[position : position + _KEY], ()):
                start = position - at
                if start >= 0 and block.startswith(needle.content, start):
                    yield start, needle

    def _candidates(self, block: bytes) -> Iterator[int]:
        values = np.frombuffer(block, np.uint8)
        for parity in (0, 1):  # pairs that begin at even offsets, then at odd ones
            size = (len(values) - parity) // 2 * 2
            kinds = self._pairs[values[parity : parity + size].view(_PAIR)]
            both = (kinds[:-1] & 1) & (kinds[1:] >> 1)
            yield from (np.flatnonzero(both) * 2 + parity).tolist()


_PAIR: Final = np.dtype("<u2")


def _rarest(content: bytes) -> int:
    """Return the offset of the four bytes with the most distinct values, not counting zero."""
    windows = range(len(content) - _KEY + 1)
    return max(windows, key=lambda at: len(set(content[at : at + _KEY]) - {0}))


class Search:
    """Searches any number of streams for needles and collects the findings.

    Args:
        needles: byte strings to search for.
        block: number of bytes read at a time.
    """

    def __init__(self, needles: Sequence[Needle], *, block: int = BLOCK) -> None:
        self._plain = _Index([needle for needle in needles if not needle.broken])
        self._broken = _Index([needle for needle in needles if needle.broken])
        self._overlap = max(self._plain.longest, _PIECES * self._broken.longest)
        self._block = block
        self.findings = Findings()

    def name(self, where: str) -> None:
        """Search a name, such as that of a file."""
        self._search(where.encode("utf-8", "surrogateescape"), f"{where} (name)", 0)

    def content(self, where: str, data: bytes) -> None:
        """Search bytes in memory; an archive is also searched inside."""
        self.stream(where, io.BytesIO(data))

    def stream(self, where: str, stream: IO[bytes], depth: int = 0) -> None:
        """Search a seekable stream from its start to its end; then what is packed in it."""
        head = self._raw(where, stream, None)
        if depth < _MAX_DEPTH and (unpack := _unpacker(head)) is not None:
            stream.seek(0)
            try:
                for name, member in unpack(stream):
                    self._member(f"{where}!{name}", member, depth + 1)
            except _UNPACKING_ERRORS as error:
                self.findings.unread.append(f"{where}: not unpacked ({type(error).__name__})")

    def _member(self, where: str, member: IO[bytes], depth: int) -> None:
        self.name(where)
        head = member.read(_HEAD)
        if _unpacker(head) is None:
            self._raw(where, member, MAX_MEMBER, head)
            return
        nested = head + member.read(MAX_NESTED)
        if len(nested) > MAX_NESTED:
            self.findings.unread.append(f"{where}: too large to be unpacked")
        self.stream(where, io.BytesIO(nested), depth)

    def _raw(self, where: str, stream: IO[bytes], limit: int | None, head: bytes = b"") -> bytes:
        """Search the raw bytes of a stream; returns its first bytes.

        Blocks overlap by the longest needle, so that one across two blocks is found.
        """
        kept, position, first = b"", 0, head
        block = head or stream.read(self._block)
        while block:
            first = first or block[:_HEAD]
            window = kept + block
            self._search(window, where, position - len(kept))
            position += len(block)
            kept = window[-self._overlap :]
            if limit is not None and position > limit:
                self.findings.unread.append(f"{where}: searched up to byte {position}")
                break
            block = stream.read(self._block)
        self.findings.searched += position
        return first

    def _search(self, window: bytes, where: str, offset: int) -> None:
        lower = window.lower()
        for start, needle in self._plain.find(lower):
            self._hit(where, offset + start, needle)
        squeezed = squeeze(lower)
        if len(squeezed) == len(lower):
            return
        places: npt.NDArray[np.int64] | None = None
        for start, needle in self._broken.find(squeezed):
            places = _kept_places(lower) if places is None else places
            begin, end = int(places[start]), int(places[start + len(needle.content) - 1])
            # Otherwise it is contiguous, and the first pass found it.
            if end - begin + 1 > len(needle.content):
                self._hit(where, offset + begin, needle)

    def _hit(self, where: str, offset: int, needle: Needle) -> None:
        self.findings.hits.add(Hit(where, offset, needle.canary, needle.form))


def _kept_places(block: bytes) -> npt.NDArray[np.int64]:
    """Return the offsets in `block` of the bytes that `squeeze` keeps."""
    kept = np.array([is_kept(byte) for byte in range(256)])
    return np.flatnonzero(kept[np.frombuffer(block, np.uint8)])


Unpacker = Callable[[IO[bytes]], Iterator[tuple[str, IO[bytes]]]]


def _unpacker(head: bytes) -> Unpacker | None:
    """Return the function that unpacks data beginning with `head`; None if it is not a supported archive."""
    if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return _untar
    return next((unpack for magic, unpack in _BY_MAGIC if head.startswith(magic)), None)


def _ungzip(stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    with gzip.open(stream) as member:
        yield "gzip", cast("IO[bytes]", member)


def _unbzip(stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    with bz2.open(stream) as member:
        yield "bzip2", member


def _unxz(stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    with lzma.open(stream) as member:
        yield "xz", member


def _unzstd(stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    import pyarrow  # noqa: PLC0415 -- only where there is such a file

    yield "zstd", pyarrow.CompressedInputStream(stream, "zstd")


def _unzlib(stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    yield "zlib", io.BytesIO(zlib.decompressobj().decompress(stream.read(MAX_NESTED), MAX_NESTED))


def _unzip(stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(stream) as archive:
        for entry in archive.infolist():
            if not entry.is_dir():
                with archive.open(entry) as member:
                    yield entry.filename, member


def _untar(stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for entry in archive:
            member = archive.extractfile(entry)
            if member is not None:
                yield entry.name, member


_BY_MAGIC: Final[tuple[tuple[bytes, Unpacker], ...]] = (
    (b"\x1f\x8b", _ungzip),
    (b"BZh", _unbzip),
    (b"\xfd7zXZ\0", _unxz),
    (b"\x28\xb5\x2f\xfd", _unzstd),
    (b"PK\x03\x04", _unzip),
    (b"\x78\x01", _unzlib),
    (b"\x78\x9c", _unzlib),
    (b"\x78\xda", _unzlib),
)
