"""Names and shapes of a base model's tensors, from its index and the headers of its weight files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.errors import ErrorCode, JobError
from trainer.model_files.safetensors_header import read_safetensors_header

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

SHOWN_NAMES: Final = 8
"""Names of tensors or modules that one message lists."""

_SUFFIX: Final = ".safetensors"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorListing:
    """The tensors of a base model.

    Attributes:
        shapes: name → shape; None where only the index names the tensor, because its file is not here.
    """

    shapes: Mapping[str, Shape | None]

    @property
    def modules(self) -> frozenset[str]:
        """Names of the modules with a weight of two or more dimensions, or of unknown shape."""
        return frozenset(
            name.removesuffix(".weight")
            for name, shape in self.shapes.items()
            if name.endswith(".weight") and (shape is None or len(shape) > 1)
        )


def shorten(names: Collection[str]) -> str:
    """Returns a count, and the first names in order."""
    shown = ", ".join(sorted(names)[:SHOWN_NAMES])
    return f"{len(names)}: {shown}{', …' if len(names) > SHOWN_NAMES else ''}"


def list_tensors(model_dir: Path, names: Collection[str]) -> TensorListing | None:
    """Lists the tensors that transformers loads: those of model.safetensors, else those of the index's files.

    Args:
        model_dir: the base model's directory; weight files may be missing from it.
        names: the files that the base model has.

    Returns:
        None if there is neither an index nor a weight file in the directory.

    Raises:
        JobError: `MODEL_INVALID`: a file or tensor that the index names does not exist, a file is not safetensors,
            or weights are pinned that nothing loads.
    """
    index = _read_index(model_dir / INDEX) if WEIGHTS not in names and INDEX in names else {}
    loaded = {WEIGHTS} if WEIGHTS in names else set(index.values())
    _require_files(loaded, names)
    headers = {
        name: _read_shapes(model_dir / name)
        for name in sorted(loaded)
        if (model_dir / name).is_file()
    }
    lacking = {
        tensor for tensor, name in index.items() if name in headers and tensor not in headers[name]
    }
    if lacking:
        raise _invalid("every tensor that the index names in its file", f"no {shorten(lacking)}")
    shapes: dict[str, Shape | None] = dict.fromkeys(index)
    for header in headers.values():
        shapes |= header
    return TensorListing(shapes) if shapes else None


def _require_files(loaded: Collection[str], names: Collection[str]) -> None:
    """Requires that the weight files are exactly those that are loaded."""
    weights = {name for name in names if name.endswith(_SUFFIX)}
    if not loaded:
        raise _invalid(
            f"weights as {WEIGHTS} or with {INDEX}", shorten(weights) if weights else "none"
        )
    if absent := set(loaded) - weights:
        raise _invalid("every file that the index names", f"no {shorten(absent)}")
    if unused := weights - set(loaded):
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the base model has weights that are never loaded",
            expected=shorten(loaded),
            found=f"also {shorten(unused)}",
            hint="leave them out of model.model_file_sha256",
        )


def _read_index(path: Path) -> dict[str, str]:
    """Returns tensor → file name."""
    try:
        places = json.loads(path.read_bytes())["weight_map"]
        return {str(tensor): str(name) for tensor, name in places.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _invalid(f"{INDEX} with `weight_map`", type(error).__name__) from error


def _read_shapes(path: Path) -> dict[str, Shape]:
    try:
        with path.open("rb") as file:
            header = read_safetensors_header(file, path.stat().st_size)
    except (OSError, ValueError) as error:
        raise _invalid(f"{path.name} in the format safetensors", error) from error
    return {name: entry.shape for name, entry in header.tensors.items()}


def _invalid(expected: str, found: object) -> JobError:
    return JobError(
        ErrorCode.MODEL_INVALID, "the base model's weights", expected=expected, found=found
    )


def layer_numbers(names: Collection[str]) -> dict[str, set[int]]:
    """Returns the name of each stack of layers, such as `model.layers` → the numbers of its layers."""
    stacks: dict[str, set[int]] = {}
    for name in names:
        parts = name.split(".")
        # The first number: one that follows it counts something within the layer, such as experts.
        place = next((position for position, part in enumerate(parts) if part.isdecimal()), None)
        if place is not None:
            stacks.setdefault(".".join(parts[:place]), set()).add(int(parts[place]))
    return stacks
