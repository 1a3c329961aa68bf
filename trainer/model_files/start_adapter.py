"""The adapter that training starts from, judged without torch: by `trainer validate`, `seal` and the worker alike.

The provider sends two files of PEFT in the bundle, below `adapter/`. They come from an earlier job, or from a
stranger: nothing of them is loaded before its kind, configuration, names, shapes, base model and numbers are
judged. What only the architecture itself can say, the worker compares once more with the model in memory
(`trainer.training.adapter_loading`).
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final

from trainer.data.rows.file_roles import layout_error
from trainer.encoding import file_sha256
from trainer.model_files.adapter_config import ADAPTER_PREFIX, CONFIG_FILE, check_adapter_config
from trainer.model_files.adapter_tensors import (
    ELEMENT_BYTES,
    WEIGHTS_FILE,
    check_adapter_tensors,
    tensor_error,
)
from trainer.model_files.model_check import ModelFiles
from trainer.model_files.safetensors_header import SafetensorsHeader, read_safetensors_header
from trainer.spec import JobSpec, ModelSection, StartFrom

ADAPTER_FILES: Final = frozenset({CONFIG_FILE, WEIGHTS_FILE})

BASE_SHA256: Final = "base_model_sha256"
"""Key of an adapter's metadata: the digest of its base model."""

MAX_HEADER_BYTES: Final = 32 << 20
"""Adapters on each of 90,000 experts have a header of half that size."""

_BLOCK_BYTES: Final = 4 << 20  # a multiple of every element's size

_TOP_EXPONENT: Final[Mapping[str, int]] = {"F32": 0x7F, "BF16": 0x7F, "F16": 0x7C}
"""Type → the bits of the exponent in the highest byte of an element."""

_TOP_OF_NEXT: Final[Mapping[str, int]] = {"F32": 0x80, "BF16": 0x80, "F16": 0x00}
"""Type → those in the byte below it: the exponent has 8 bits in the first two types, and 5 in the third."""


@dataclass(frozen=True)
class StartAdapter:
    """The two files of an adapter, not judged yet."""

    config: Path
    weights: Path


@dataclass(frozen=True)
class CheckedAdapter:
    """An adapter that `check_start_adapter` accepts.

    Attributes:
        weights: the file with its tensors.
        sha256: digest of that file, in hex.
        tensors: number of tensors.
        parameters: number of their elements.
        base_is_checked: whether its metadata name the base model; otherwise the job spec accepts that they do not.
    """

    weights: Path
    sha256: str
    tensors: int
    parameters: int
    base_is_checked: bool

    def describe(self) -> dict[str, str]:
        """Returns what training started from, for report, model card and receipt."""
        base = "the one that its file names" if self.base_is_checked else "not named by its file"
        return {
            "start adapter (SHA-256)": self.sha256,
            "start adapter": f"{self.parameters} parameters in {self.tensors} tensors; base model: {base}",
        }

    def as_json(self) -> dict[str, object]:
        """Returns digest and counts, without the path."""
        return {name: value for name, value in asdict(self).items() if name != "weights"}

    def warnings(self) -> tuple[str, ...]:
        """Returns what the provider should know."""
        if self.base_is_checked:
            return ()
        return (
            "the start adapter does not name its base model: nothing shows that it was trained on this one",
        )


def base_metadata(model: ModelSection) -> dict[str, str]:
    """Returns the metadata by which the file of an adapter names its base model."""
    name = {} if model.is_local else {"base_model": model.model_name_or_path}
    revision = {"base_model_revision": model.model_revision} if model.model_revision else {}
    return {BASE_SHA256: model.base_sha256, **name, **revision}


def take_start_adapter(
    files: Mapping[str, Path], spec: JobSpec
) -> tuple[dict[str, Path], StartAdapter | None]:
    """Separates the files of a start adapter from those with rows.

    Args:
        files: name of each file of a dataset → its path.
        spec: the job spec.

    Returns:
        The other files; and the adapter, if the job spec names one.

    Raises:
        DataError: `DATASET_INVALID`: the spec names an adapter and it is not there, or the other way round; or
            there is another file beside it.
    """
    found = {name for name in files if name.startswith(ADAPTER_PREFIX)}
    rows = {name: path for name, path in files.items() if name not in found}
    expected = ADAPTER_FILES if spec.lora.start_from is not None else frozenset()
    if absent := sorted(expected - found):
        raise layout_error(
            absent[0],
            f"lora.start_from is {spec.lora.start_from}, and the adapter is not there",
            expected=" and ".join(sorted(ADAPTER_FILES)),
            found=f"{len(found)} files below {ADAPTER_PREFIX}",
            hint="give the earlier adapter's directory with --adapter",
        )
    if further := sorted(found - expected):
        wanted = (
            f"only {' and '.join(sorted(expected))}"
            if expected
            else "nothing without lora.start_from"
        )
        raise layout_error(
            further[0],
            f"{ADAPTER_PREFIX} is the place of the adapter that training starts from",
            expected=f"{wanted} below {ADAPTER_PREFIX}",
            found=f"{len(further)} other files",
            hint="rows belong into a folder of another name; a job starts from an adapter if its spec says so",
        )
    return rows, StartAdapter(files[CONFIG_FILE], files[WEIGHTS_FILE]) if expected else None


def check_start_adapter(
    adapter: StartAdapter, spec: JobSpec, base: ModelFiles | None
) -> CheckedAdapter:
    """Judges an adapter that training is to start from.

    Args:
        adapter: its files.
        spec: the job spec, whose section `lora` it must be of, and whose base model.
        base: the base model's files; None where they are not known.

    Raises:
        DataError: `DATASET_INVALID`: names the file, and the field, tensor or module.
    """
    for name, path in ((CONFIG_FILE, adapter.config), (WEIGHTS_FILE, adapter.weights)):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise layout_error(
                name,
                "the start adapter",
                expected="a regular file",
                found=stat.filemode(mode),
                hint="copy the file",
            )
    check_adapter_config(adapter.config, spec.lora)
    size = adapter.weights.stat().st_size
    with adapter.weights.open("rb") as source:
        try:
            header = read_safetensors_header(source, size, limit=MAX_HEADER_BYTES)
        except ValueError as error:
            raise tensor_error(
                "the file cannot be read", "the format safetensors", str(error)
            ) from None
        check_adapter_tensors(header.tensors, spec.lora, base)
        is_checked = _check_base(header, spec)
        _require_finite(source, header)
    return CheckedAdapter(
        adapter.weights,
        file_sha256(adapter.weights),
        len(header.tensors),
        sum(
            (entry.end - entry.begin) // ELEMENT_BYTES[entry.dtype]
            for entry in header.tensors.values()
        ),
        is_checked,
    )


def _check_base(header: SafetensorsHeader, spec: JobSpec) -> bool:
    """Returns whether the file names the base model of the job spec, or false where it names none and need not."""
    expected, found = spec.model.base_sha256, header.metadata.get(BASE_SHA256)
    if found is None:
        if spec.lora.start_from is StartFrom.ADAPTER_OF_UNCHECKED_BASE:
            return False
        raise tensor_error(
            f"its metadata have no {BASE_SHA256}, so it is not known for which base model it is",
            expected,
            "none",
            hint="adapters that a job wrote have it; the job spec accepts one of other makers with "
            "lora.start_from: adapter_of_unchecked_base",
        )
    if found != expected:
        shown = found if len(found) == len(expected) and found.isalnum() else "no SHA-256"
        raise tensor_error(
            f"the start adapter is for another base model ({BASE_SHA256})",
            expected,
            shown,
            hint="config.json and the .safetensors files of model.model_file_sha256 must be those of the job that "
            "made the adapter",
        )
    return True


def _require_finite(source: BinaryIO, header: SafetensorsHeader) -> None:
    for name, entry in header.tensors.items():
        source.seek(header.size + entry.begin)
        left = entry.end - entry.begin
        while block := source.read(min(_BLOCK_BYTES, left)):
            left -= len(block)
            if _has_infinite(block, entry.dtype):
                raise tensor_error(f"tensor {name}", "finite numbers", "an infinity or NaN")


def _has_infinite(block: bytes, dtype: str) -> bool:
    """Returns whether an element is infinite or NaN: whether all bits of its exponent are set (IEEE 754, 3.4).

    Numbers are little-endian, so that sign and exponent are in the last two bytes of each. Every byte becomes 1
    where its part of the exponent is all ones, else 0; the conjunction of the two as long integers is 0 if no
    element has both.
    """
    width = ELEMENT_BYTES[dtype]
    high = block[width - 1 :: width].translate(_all_set(_TOP_EXPONENT[dtype]))
    low = block[width - 2 :: width].translate(_all_set(_TOP_OF_NEXT[dtype]))
    return bool(int.from_bytes(high) & int.from_bytes(low))


def _all_set(mask: int) -> bytes:
    """Returns a table for `bytes.translate`: 1 for bytes that have all bits of the mask, else 0."""
    return bytes(byte & mask == mask for byte in range(256))
