"""The header of a safetensors file: names, types and shapes of its tensors, without their values.

Source: github.com/huggingface/safetensors, "Format": 8 bytes with the header's length, little-endian, then JSON of
name → type, shape, begin and end, and of `__metadata__` → texts by name. The tensors cover the rest of the file
without gaps.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from trainer.encoding import parse_json

MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""

_METADATA: Final = "__metadata__"
_ALIGNMENT: Final = 8


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


@dataclass(frozen=True)
class SafetensorsHeader:
    """The header of a file.

    Attributes:
        tensors: name → what the header says of the tensor.
        metadata: texts by name.
        size: bytes before the first tensor.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    size: int


def read_safetensors_header(
    source: BinaryIO, size: int, *, limit: int = MAX_HEADER_BYTES
) -> SafetensorsHeader:
    """Reads the header of a file of `size` bytes, if it is of at most `limit` bytes.

    Raises:
        ValueError: the file has no such header, or bytes that belong to no tensor.
    """
    (length,) = struct.unpack("<Q", source.read(8).ljust(8, b"\xff"))
    if length > min(limit, size - 8):
        raise ValueError("no safetensors header")
    header = parse_json(source.read(length))
    if not isinstance(header, dict):
        raise ValueError("no safetensors header")  # noqa: TRY004 -- wrong content, not a wrong type
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(
        isinstance(text, str) for text in metadata.values()
    ):
        raise ValueError("metadata that are not texts in a safetensors header")
    tensors = {name: _parse_entry(entry) for name, entry in header.items()}
    places = sorted((entry.begin, entry.end) for entry in tensors.values())
    begins, ends = (
        [0, *(end for _, end in places)],
        [*(begin for begin, _ in places), size - 8 - length],
    )
    if begins != ends:
        raise ValueError("bytes that belong to no tensor in a safetensors file")
    return SafetensorsHeader(tensors, metadata, 8 + length)


def add_metadata(path: Path, entries: Mapping[str, str]) -> None:
    """Adds texts to the metadata of a file; what it has under the same names is replaced.

    The library writes metadata of several entries in another order each time. Here the order is that of the names,
    so that the same tensors always make the same file.
    """
    replacement = path.with_name(path.name + ".new")
    with path.open("rb") as source, replacement.open("xb") as target:
        (length,) = struct.unpack("<Q", source.read(8))
        header = cast("dict[str, Any]", parse_json(source.read(length)))
        metadata = {**header.pop(_METADATA, {}), **entries}
        text = json.dumps(
            {_METADATA: dict(sorted(metadata.items())), **header}, separators=(",", ":")
        ).encode()
        text += b" " * (-len(text) % _ALIGNMENT)  # the tensors begin at a multiple of 8 bytes
        target.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(source, target)
    replacement.replace(path)


def _parse_entry(entry: object) -> TensorEntry:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
            begin <= end
        ):
            if all(isinstance(size, int) for size in shape):
                return TensorEntry(dtype, tuple(shape), begin, end)
    raise ValueError("a tensor without a place in a safetensors header")
