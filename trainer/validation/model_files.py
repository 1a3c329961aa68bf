"""The base model's small files as the job will see them: those that the job spec lists, with their digests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.encoding import file_sha256
from trainer.errors import ErrorCode, UsageError
from trainer.spec import JobSpec


def find_model(spec: JobSpec, job: Path, chosen: Path | None) -> Path | None:
    """The directory of the base model: the chosen one, or the job spec's, relative to it; None if there is none.

    Raises:
        UsageError: the chosen one is no directory.
    """
    if chosen is not None:
        if not chosen.is_dir():
            raise UsageError(ErrorCode.FILE_NOT_FOUND, f"no such directory: {chosen}", hint="see --model")
        return chosen
    place = job.parent / spec.model.model_name_or_path
    return place if spec.model.is_local and place.is_dir() else None


@contextmanager
def files_of_the_job(model_dir: Path, spec: JobSpec) -> Iterator[Path]:
    """A directory with the model's listed files, without its weights.

    What lies in `model_dir` beside them (a chat template that is not listed, say) is not there in the job either.

    Raises:
        UsageError: a listed file is missing or has another digest: then the job would see something else.
    """
    with tempfile.TemporaryDirectory(prefix="trainer-validate-") as scratch:
        for name, digest in spec.model.model_file_sha256.items():
            if not name.endswith(".safetensors"):
                _link(model_dir / name, digest, Path(scratch) / name)
        yield Path(scratch)


def _link(source: Path, digest: str, target: Path) -> None:
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
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())
