"""Hand-off blocks: the description of guest memory that the firmware is started with, and RTMR0 measures.

Sources: UEFI Platform Initialization Specification, volume 3; EDK II (unaccepted memory); dstack 0.6.0 (the layout
in its `lite` measurement).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

GIB: Final = 1 << 30
PAGE_BYTES: Final = 4096
LOW_MEMORY_END: Final = 2 * GIB
"""Where RAM below 4 GiB ends once there is enough of it."""
HIGH_MEMORY_START: Final = 4 * GIB
SPLIT_FROM: Final = 0xB0000000
"""Memory size from which QEMU's q35 machine puts the rest above 4 GiB."""

_HOB_HANDOFF_BYTES: Final = 56
_HOB_RESOURCE_BYTES: Final = 48
_SYSTEM_MEMORY: Final = 0
_UNACCEPTED_MEMORY: Final = 7
_MEMORY_ATTRIBUTES: Final = 7  # present, initialized, tested


@dataclass(frozen=True)
class _Range:
    """A range of guest memory, in bytes; `accepted` for the firmware's own sections."""

    start: int
    end: int
    accepted: bool = False


def hand_off_blocks(layout: bytes, memory_size: int) -> bytes:
    """Returns the list of hand-off blocks (HOB) that describes guest memory to the firmware.

    Args:
        layout: numbers in pages: base, distance of the list from it, count, then offset and length per section.
        memory_size: bytes of guest memory.

    Raises:
        ValueError: the layout is cut short or beyond any address, or the measurement does not cover this memory.
    """
    numbers = list(_varints(layout))
    # Base, distance and count, then two numbers for each of `count` sections.
    if len(numbers) < 3 or len(numbers) != 3 + 2 * numbers[2]:
        raise ValueError("the firmware's memory layout is cut short")
    if memory_size < SPLIT_FROM and memory_size != LOW_MEMORY_END:
        raise ValueError("the lite measurement covers 2 GiB, or 2816 MiB and more")
    base, distance, _, *sections = numbers
    ranges = [_Range(0, memory_size)]
    for offset, length in zip(sections[::2], sections[1::2], strict=True):
        start = (base + offset) * PAGE_BYTES
        ranges = _accept(ranges, start, start + length * PAGE_BYTES)
    try:
        # Resource descriptor: header of type 3 and size, owner (16 zero bytes), kind, attributes, start, length.
        blocks = b""
        for part in _split_high(ranges, memory_size):
            kind = _SYSTEM_MEMORY if part.accepted else _UNACCEPTED_MEMORY
            start, size = part.start, part.end - part.start
            blocks += struct.pack(
                "<HHI16xIIQQ", 3, _HOB_RESOURCE_BYTES, 0, kind, _MEMORY_ATTRIBUTES, start, size
            )
        # PHIT: header of type 1 and size, version 9, boot mode 0, four unused addresses, and the address of the
        # end of the list, which is an 8-byte block.
        end = (base + distance) * PAGE_BYTES + _HOB_HANDOFF_BYTES + len(blocks) + 8
        handoff = struct.pack("<HHIII32xQ", 1, _HOB_HANDOFF_BYTES, 0, 9, 0, end)
    except struct.error:
        raise ValueError("the firmware's memory layout lies beyond any address") from None
    return handoff + blocks


def _varints(data: bytes) -> Iterator[int]:
    """Decodes unsigned LEB128 numbers: 7 bits a byte, low bits first, the top bit set but in the last byte."""
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            yield value
            value = shift = 0


def _accept(ranges: Sequence[_Range], start: int, end: int) -> list[_Range]:
    """Returns the ranges with the section from `start` to `end` cut out of the unaccepted ones, as accepted."""
    if start >= end:
        return list(ranges)
    pieces = [_Range(start, end, accepted=True)]
    for part in ranges:
        if part.accepted or part.end <= start or part.start >= end:
            pieces.append(part)
            continue
        pieces += [_Range(part.start, start)] if part.start < start else []
        pieces += [_Range(end, part.end)] if part.end > end else []
    return sorted(pieces, key=lambda piece: piece.start)


def _split_high(ranges: Sequence[_Range], memory_size: int) -> Iterator[_Range]:
    """Yields the ranges as the machine maps them: with enough memory, the part above 2 GiB moves above 4 GiB."""
    *lower, last = ranges
    yield from lower
    if memory_size < SPLIT_FROM:
        yield last
        return
    if last.start < LOW_MEMORY_END:
        yield _Range(last.start, LOW_MEMORY_END)
    if last.end > LOW_MEMORY_END:
        yield _Range(HIGH_MEMORY_START, HIGH_MEMORY_START + last.end - LOW_MEMORY_END)
