"""ASCII armor: an age file as text, for mail and tickets. This module only reads it.

Source: c2sp.org/age, "ASCII armor": PEM with the label AGE ENCRYPTED FILE, 64 base64 columns per line. Each file
has one armored form, apart from line ends (LF or CRLF) and white space before and after; any other form is
refused.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import BinaryIO, Final

from trainer.errors import ErrorCode, SealingError
from trainer.sealing.age.byte_streams import buffered_reader

BEGIN_LINE: Final = b"-----BEGIN AGE ENCRYPTED FILE-----"
END_LINE: Final = b"-----END AGE ENCRYPTED FILE-----"

_COLUMNS: Final = 64
_LINES_PER_READ: Final = 1024
_MAX_WHITESPACE_BYTES: Final = 1024
_MAX_LINE_BYTES: Final = _COLUMNS + 2  # with CRLF


def is_armored(start: bytes) -> bool:
    """Returns whether a file that begins with `start` is meant to be armored."""
    return start.lstrip().startswith(b"-----BEGIN AGE")


class ArmorReader(io.RawIOBase):
    """A stream of the binary age file inside an armored one.

    Reads raise SealingError ARMOR_INVALID where the armor does not follow the format.

    Args:
        source: the armored file, from its start.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = buffered_reader(source)
        self._decoded = memoryview(b"")
        self._begun = False
        self._ended = False

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed: WriteableBuffer
        """Fills `buffer` with the next bytes; returns 0 at the end of the armor."""
        while not self._decoded and not self._ended:
            self._decode_lines()
        size = min(len(buffer), len(self._decoded))
        buffer[:size] = self._decoded[:size]
        self._decoded = self._decoded[size:]
        return size

    def _decode_lines(self) -> None:
        """Decodes up to `_LINES_PER_READ` lines; only the armor's last line may be shorter than 64 columns."""
        if not self._begun:
            self._read_begin_line()
        lines: list[bytes] = []
        while len(lines) < _LINES_PER_READ and not self._ended:
            line = self._read_line()
            if line == END_LINE:
                self._require_end_of_file()
            elif not line or len(line) > _COLUMNS or (lines and len(lines[-1]) < _COLUMNS):
                raise _armor_invalid("a line is empty, too long, or follows a short one")
            else:
                lines.append(line)
        # The limit of lines may be reached at a short line; then only the end line may follow.
        if lines and len(lines[-1]) < _COLUMNS and not self._ended:
            if self._read_line() != END_LINE:
                raise _armor_invalid("a short line is not the last one")
            self._require_end_of_file()
        self._decoded = memoryview(_decode_base64(b"".join(lines)))

    def _read_line(self) -> bytes:
        # One byte more than a line may have: enough to see that it is too long, without reading all of it.
        line = self._source.readline(_MAX_LINE_BYTES + 1)
        if not line:
            raise _armor_invalid("the end line is missing")
        return line.removesuffix(b"\n").removesuffix(b"\r")

    def _read_begin_line(self) -> None:
        skipped_bytes = 0
        while not (line := self._read_line()).strip():
            skipped_bytes += len(line) + 1
            if skipped_bytes > _MAX_WHITESPACE_BYTES:
                raise _armor_invalid("too much white space before it")
        if line != BEGIN_LINE:
            raise _armor_invalid("the begin line is missing")
        self._begun = True

    def _require_end_of_file(self) -> None:
        rest = self._source.read(_MAX_WHITESPACE_BYTES + 1)
        if rest.strip() or len(rest) > _MAX_WHITESPACE_BYTES:
            raise _armor_invalid("something follows it")
        self._ended = True


def _decode_base64(text: bytes) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _armor_invalid("not base64") from None
    # The decoder ignores the bits after the last byte; set ones would be a second form of the same file.
    if base64.b64encode(data) != text:
        raise _armor_invalid("base64 is not canonical")
    return data


def _armor_invalid(reason: str) -> SealingError:
    return SealingError(ErrorCode.ARMOR_INVALID, f"age armor: {reason}")
