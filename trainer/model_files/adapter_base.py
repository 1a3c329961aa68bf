"""Which base model an adapter is for, by the metadata of its file, and whether a directory holds that model."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.encoding import file_sha256
from trainer.errors import ErrorCode, UsageError
from trainer.model_files.companion_files import is_companion
from trainer.model_files.safetensors_header import read_safetensors_header
from trainer.model_files.start_adapter import BASE_SHA256, MAX_HEADER_BYTES
from trainer.spec import base_digest, is_base_file

ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"


@dataclass(frozen=True)
class NamedBase:
    """The base model that the file of an adapter names.

    Attributes:
        sha256: `ModelSection.base_sha256` of the job that made it.
        hub_id: its hub id; None where the job loaded a directory.
        revision: its commit, if it has a hub id.
    """

    sha256: str
    hub_id: str | None
    revision: str | None


def read_named_base(adapter: Path) -> NamedBase:
    """Reads which base model an adapter's weights are for.

    Args:
        adapter: the directory of the adapter.

    Raises:
        UsageError: the file is no safetensors file, or names no base model.
    """
    path = adapter / ADAPTER_WEIGHTS
    try:
        with path.open("rb") as source:
            metadata = read_safetensors_header(
                source, path.stat().st_size, limit=MAX_HEADER_BYTES
            ).metadata
    except ValueError as error:
        raise UsageError(
            ErrorCode.USAGE,
            f"{path} cannot be read",
            expected="the format safetensors",
            found=str(error),
        ) from None
    digest = metadata.get(BASE_SHA256, "")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise UsageError(
            ErrorCode.USAGE,
            f"{path} does not name its base model",
            expected=f"{BASE_SHA256} in its metadata",
            found="none",
            hint="adapters that a job wrote name it; nothing shows which model this one is for",
        )
    return NamedBase(digest, metadata.get("base_model"), metadata.get("base_model_revision"))


def require_named_base(
    directory: Path, names: Collection[str], named: NamedBase
) -> tuple[str, ...]:
    """Requires that a directory holds the base model that an adapter names; reads all of its weights.

    Args:
        directory: the model's files.
        names: the files that a job would load.
        named: the base model that the adapter names.

    Returns:
        Those of the files that decide what the model computes, sorted.

    Raises:
        UsageError: `MODEL_DIGEST_MISMATCH`.
    """
    files = tuple(sorted(filter(is_base_file, names)))
    found = base_digest({name: file_sha256(directory / name) for name in files})
    if found != named.sha256:
        raise UsageError(
            ErrorCode.MODEL_DIGEST_MISMATCH,
            f"{directory} is not the base model that the adapter was trained on",
            expected=f"{named.sha256} (SHA-256 over {', '.join(files)})",
            found=found,
            hint="the adapter's answers with another base model mean nothing; its model card names the right one",
        )
    return files


@contextmanager
def joined_model(base: Path, files: Collection[str], adapter: Path) -> Iterator[Path]:
    """Yields a temporary directory with files of a base model, and the tokenizer and template that an adapter has.

    Args:
        base: the base model's directory.
        files: names of the files that decide what it computes.
        adapter: the directory of the adapter, with the companion files that the job wrote there.
    """
    places = {name: base / name for name in files}
    found = (path for path in adapter.rglob("*") if path.is_file())
    names = ((path.relative_to(adapter).as_posix(), path) for path in found)
    places |= {name: path for name, path in names if is_companion(name)}
    with tempfile.TemporaryDirectory(prefix="trainer-try-") as scratch:
        for name, path in places.items():
            target = Path(scratch, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.resolve())
        yield Path(scratch)
