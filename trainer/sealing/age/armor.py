"""Armor: an age file as text, for mails and tickets. Read only; nothing here writes it.

Source: C2SP `age.md`, "ASCII armor". Strict: one spelling, but for line ends (LF or CRLF) and white space around.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import BinaryIO, Final

from trainer.errors import ErrorCode, SealingError
from trainer.sealing.age.byte_streams import buffered_reader

BEGIN: Final = b"-----BEGIN AGE ENCRYPTED FILE-----"
END: Final = b"-----END AGE ENCRYPTED FILE-----"

_COLUMNS: Final = 64
_LINES_AT_ONCE: Final = 1024
_MAX_WHITESPACE: Final = 1024
_LONGEST_LINE: Final = _COLUMNS + 2  # with CRLF


def is_armored(start: bytes) -> bool:
    """Whether a file that starts so is meant to be armored."""
    return start.lstrip().startswith(b"-----BEGIN AGE")


class ArmorReader(io.RawIOBase):
    """Binary age file inside an armored one; reads raise SealingError ARMOR_INVALID where the armor is broken.

    Args:
        source: the text as bytes, at its start.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = buffered_reader(source)
        self._decoded = memoryview(b"")
        self._begun = False
        self._ended = False

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed: WriteableBuffer
        """Fill `buffer` with the next bytes; 0 at the end of the armor."""
        while not self._decoded and not self._ended:
            self._decode_more()
        size = min(len(buffer), len(self._decoded))
        buffer[:size] = self._decoded[:size]
        self._decoded = self._decoded[size:]
        return size

    def _decode_more(self) -> None:
        if not self._begun:
            self._read_begin()
        lines: list[bytes] = []
        while len(lines) < _LINES_AT_ONCE and not self._ended:
            line = self._line()
            if line == END:
                self._read_nothing_more()
            elif not line or len(line) > _COLUMNS or not _full(lines):
                raise _armor_invalid("a line is empty, too long, or follows a short one")
            else:
                lines.append(line)
        if not _full(lines) and not self._ended:  # the bound fell on a short line: only the end may follow
            if self._line() != END:
                raise _armor_invalid("a short line is not the last one")
            self._read_nothing_more()
        self._decoded = memoryview(_decode(b"".join(lines)))

    def _line(self) -> bytes:
        line = self._source.readline(_LONGEST_LINE + 1)
        if not line:
            raise _armor_invalid("the end line is missing")
        return line.removesuffix(b"\n").removesuffix(b"\r")

    def _read_begin(self) -> None:
        skipped = 0
        while not (line := self._line()).strip():
            skipped += len(line) + 1
            if skipped > _MAX_WHITESPACE:
                raise _armor_invalid("too much white space before it")
        if line != BEGIN:
            raise _armor_invalid("the begin line is missing")
        self._begun = True

    def _read_nothing_more(self) -> None:
        rest = self._source.read(_MAX_WHITESPACE + 1)
        if rest.strip() or len(rest) > _MAX_WHITESPACE:
            raise _armor_invalid("something follows it")
        self._ended = True


def _full(lines: list[bytes]) -> bool:
    return not lines or len(lines[-1]) == _COLUMNS


def _decode(text: bytes) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _armor_invalid("not base64") from None
    if base64.b64encode(data) != text:
        raise _armor_invalid("base64 is not canonical")
    return data


def _armor_invalid(what: str) -> SealingError:
    return SealingError(ErrorCode.ARMOR_INVALID, f"age armor: {what}")
