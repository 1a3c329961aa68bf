"""Which files are for evaluation, by their names, and names that suggest it of a file that is trained on."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Final

from trainer.data.rows.file_roles import EVALUATION_SPLITS
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection
from trainer.spec.pool_names import name_in_bundle

_SPLIT_NAMES: Final = EVALUATION_SPLITS | {"heldout"}
"""Names that data sets give to the part that is not for training."""

_SHARD_NUMBER: Final = re.compile(r"\d+|of|")

_SHOWN_FILES: Final = 3


def is_for_evaluation(file: str, data: DataSection) -> bool:
    """Returns whether a file is for evaluation, by its name relative to `data/`."""
    return fnmatchcase(name_in_bundle(file), data.eval_files)


def check_evaluation_files(files: Collection[str], data: DataSection) -> None:
    """Requires that `data.eval_files` matches a file, where the job spec names it.

    Args:
        files: names of all data files, relative to `data/`.
        data: the job spec's section.

    Raises:
        DataError: `DATASET_INVALID`: rows that are meant for evaluation would be trained on.
    """
    if "eval_files" not in data.model_fields_set or any(
        is_for_evaluation(file, data) for file in files
    ):
        return
    raise DataError(
        ErrorCode.DATASET_INVALID,
        "no file is for evaluation",
        expected=f"a file whose name matches data.eval_files ({data.eval_files})",
        found=f"{len(files)} files that do not",
        hint="names are relative to the folder that is named on the command line, without ./ before them",
    )


def split_file_warnings(files: Collection[str], data: DataSection) -> Iterator[str]:
    """Yields a warning if files with the name of an evaluation split, such as `test.jsonl`, are trained on."""
    if "eval_files" in data.model_fields_set:
        return
    trained = [file for file in sorted(files) if not is_for_evaluation(file, data)]
    named = [file for file in trained if _is_named_as_split(file)]
    # A single file that is called test.jsonl is no split of anything.
    if named and len(named) < len(trained):
        more = f" and {len(named) - _SHOWN_FILES} more" if len(named) > _SHOWN_FILES else ""
        yield (
            f"{', '.join(named[:_SHOWN_FILES])}{more}: trained on, although named like an evaluation split; "
            "name such files in data.eval_files, or leave them out"
        )


def _is_named_as_split(file: str) -> bool:
    path = PurePosixPath(file.lower())
    # Without the numbers of shards: `test-00000-of-00002` is one word.
    words = [
        [word for word in re.split(r"[-_. ]", part) if not _SHARD_NUMBER.fullmatch(word)]
        for part in (*path.parts[:-1], path.name.partition(".")[0])
    ]
    return any(part[0] in _SPLIT_NAMES or part[-1] in _SPLIT_NAMES for part in words if part)
