"""The base model's files as the job will see them: those in the job spec, all but weights verified by digest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.encoding import file_sha256
from trainer.errors import ErrorCode, UsageError
from trainer.spec import JobSpec


def find_model(spec: JobSpec, job: Path | None, chosen: Path | None) -> Path | None:
    """Returns the base model's directory: `chosen`, or the job spec's, relative to the spec; None without one.

    A spec without a file, out of a verified job, names a directory of the operator's machine, not of this one.

    Raises:
        UsageError: `chosen` is no directory.
    """
    if chosen is not None:
        if not chosen.is_dir():
            raise UsageError(
                ErrorCode.FILE_NOT_FOUND, f"no such directory: {chosen}", hint="see --model"
            )
        return chosen
    if job is None or not spec.model.is_local:
        return None
    place = job.parent / spec.model.model_name_or_path
    return place if place.is_dir() else None


@contextmanager
def files_of_the_job(model_dir: Path, spec: JobSpec) -> Iterator[Path]:
    """Yields a temporary directory with the model's listed files; without its weights where they are not here.

    Further files of `model_dir`, such as a chat template that is not listed, do not exist in the job either. Of
    weights only names and shapes are looked at, so they are not hashed.

    Raises:
        UsageError: a listed file is missing or has another digest.
    """
    with tempfile.TemporaryDirectory(prefix="trainer-validate-") as scratch:
        for name, digest in spec.model.model_file_sha256.items():
            if not name.endswith(".safetensors"):
                _link_verified(model_dir / name, digest, Path(scratch) / name)
            elif (model_dir / name).is_file():
                _link(model_dir / name, Path(scratch) / name)
        yield Path(scratch)


def _link_verified(source: Path, digest: str, target: Path) -> None:
    """Links `target` to `source` after the digest matches.

    A tokenizer with other bytes would give token counts that the job will not reproduce.
    """
    if not source.is_file():
        raise UsageError(
            ErrorCode.FILE_NOT_FOUND,
            f"no such file of the base model: {source}",
            hint="see model.model_file_sha256",
        )
    if (found := file_sha256(source)) != digest:
        raise UsageError(
            ErrorCode.MODEL_DIGEST_MISMATCH,
            f"{source} is not what the job spec names",
            expected=digest,
            found=found,
        )
    _link(source, target)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())
