"""The header of a safetensors file: names, types and shapes of its tensors, without their values.

Source: github.com/huggingface/safetensors, "Format": 8 bytes with the header's length, little-endian, then JSON of
name → type, shape, begin and end. The tensors cover the rest of the file without gaps.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO, Final

from trainer.encoding import parse_json

_MAX_HEADER_BYTES: Final = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a file.

    Attributes:
        dtype: the format's name of the element type, such as `BF16`.
        shape: sizes of its dimensions.
        begin: offset of its first byte after the header.
        end: offset after its last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors_header(source: BinaryIO, size: int) -> dict[str, TensorEntry]:
    """Reads the header of a file of `size` bytes: name of each tensor → what the header says of it.

    Raises:
        ValueError: the file has no such header, or bytes that belong to no tensor.
    """
    (length,) = struct.unpack("<Q", source.read(8).ljust(8, b"\xff"))
    if length > min(_MAX_HEADER_BYTES, size - 8):
        raise ValueError("no safetensors header")
    header = parse_json(source.read(length))
    if not isinstance(header, dict):
        raise ValueError("no safetensors header")  # noqa: TRY004 -- wrong content, not a wrong type
    entries = {name: _parse_entry(entry) for name, entry in header.items() if name != "__metadata__"}
    places = sorted((entry.begin, entry.end) for entry in entries.values())
    begins, ends = [0, *(end for _, end in places)], [*(begin for begin, _ in places), size - 8 - length]
    if begins != ends:
        raise ValueError("bytes that belong to no tensor in a safetensors file")
    return entries


def _parse_entry(entry: object) -> TensorEntry:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if begin <= end:
            if all(isinstance(size, int) for size in shape):
                return TensorEntry(dtype, tuple(shape), begin, end)
    raise ValueError("a tensor without a place in a safetensors header")
