"""Finds the data files of a dataset and checks that the job will be able to read every row."""

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
    """Returns the data files: name in the bundle → path.

    Args:
        paths: files, or folders whose files are all taken, named relative to the folder; hidden ones are left out.

    Raises:
        UsageError: a file is missing, two have the same name, or a folder contains a file of another kind.
    """
    files: dict[str, Path] = {}
    for name, path in itertools.chain.from_iterable(map(_list_files, paths)):
        if name in files:
            raise UsageError(ErrorCode.USAGE, f"two data files are called {name}", hint="rename one of them")
        files[name] = path
    return files


def _list_files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield path.name, path
        return
    # Hidden files belong to editors, file managers and version control (.DS_Store, .git/…): they hold no rows.
    below = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not below:
        raise UsageError(ErrorCode.FILE_NOT_FOUND, f"no such data file: {path}")
    for file in below:
        if not file.name.lower().endswith(FOLDER_SUFFIXES):
            raise UsageError(
                ErrorCode.USAGE,
                f"{file} is not a data file",
                expected=f"only files ending in {', '.join(FOLDER_SUFFIXES)}",
                found=file.suffix or "no ending",
                hint="move it out of the folder, or name the data files one by one",
            )
        yield file.relative_to(path).as_posix(), file


def count_rows(files: Mapping[str, Path], schema: RowSchema = DEFAULT_SCHEMA) -> Counter[str]:
    """Reads every row as the job will and returns the number of rows of each kind.

    Args:
        files: name in the bundle → path.
        schema: how objects become rows, by the job spec's section `data`.

    Raises:
        DataError: a row is malformed.
    """
    kinds: Counter[str] = Counter()
    for name, path in files.items():
        kinds.update(row.kind_name for row in read_rows(path, name=name, schema=schema))
    return kinds


def row_schema_for(result: AttestationResult, job: Path | None) -> RowSchema:
    """Returns how the appraised job reads rows.

    Args:
        result: the appraisal of the job.
        job: path of its spec; None if the provider does not have it, which gives the default schema.

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
