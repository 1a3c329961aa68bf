"""The data files: which there are, and whether every row is one."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from trainer.attestation.result.attestation_result import AttestationResult
from trainer.data.examples.example_set import row_schema
from trainer.data.rows import DEFAULT_SCHEMA, FOLDER_SUFFIXES, RowSchema, read_rows
from trainer.errors import ErrorCode, UsageError, VerificationError
from trainer.spec import read_job_spec


def find_data_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Name inside the bundle → file. Of a folder, all files below it, by their names relative to it.

    Raises:
        UsageError: a file is missing, two have the same name, or a folder holds what is no data file.
    """
    files: dict[str, Path] = {}
    for name, path in itertools.chain.from_iterable(map(_named_files, paths)):
        if name in files:
            raise UsageError(ErrorCode.USAGE, f"two data files are called {name}", hint="rename one of them")
        files[name] = path
    return files


def _named_files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield path.name, path
        return
    below = [file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file, path)]
    if not below:
        raise UsageError(ErrorCode.FILE_NOT_FOUND, f"no such data file: {path}")
    for file in below:
        if not file.name.lower().endswith(FOLDER_SUFFIXES):
            raise UsageError(
                ErrorCode.USAGE,
                f"{file} is no data file",
                expected=f"only files ending in {', '.join(FOLDER_SUFFIXES)}",
                found=file.suffix or "no ending",
                hint="move it out of the folder, or name the data files one by one",
            )
        yield file.relative_to(path).as_posix(), file


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def count_rows(files: Mapping[str, Path], schema: RowSchema = DEFAULT_SCHEMA) -> Counter[str]:
    """Read every row as the job will; returns how many there are of each kind.

    Args:
        files: name inside the bundle → file.
        schema: how the job spec's data section says that objects become rows.

    Raises:
        DataError: a row is malformed: better to know before the upload.
    """
    kinds: Counter[str] = Counter()
    for name, path in files.items():
        kinds.update(row.kind_name for row in read_rows(path, name=name, schema=schema))
    return kinds


def row_schema_for(result: AttestationResult, job: Path | None) -> RowSchema:
    """How rows are read for an appraised job: as its spec says, where the provider has it.

    Raises:
        UsageError: the job spec cannot be read.
        VerificationError: the appraised job runs another spec.
    """
    if job is None:
        return DEFAULT_SCHEMA
    spec = read_job_spec(job)
    if spec.sha256() != result.job_spec_sha256:
        raise VerificationError(
            ErrorCode.VERIFICATION_FAILED,
            f"{job} is not the spec of the appraised job",
            expected=result.job_spec_sha256,
            found=spec.sha256(),
            hint="the policy must name the job that you mean to use: do not upload",
        )
    return row_schema(spec.data)
