"""Which files of a dataset hold rows, and which of them are for evaluation: the same answer at both ends.

Most files hold rows and say nothing else. Two layouts have side files that say what the others are: a folder that
`datasets` wrote with `save_to_disk` (`saved_dataset`), and a repository of a hub (`hub_repository`). Both name
splits: where no file matches `data.eval_files`, the rows of validation and test splits are for evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from trainer.data.rows.file_roles import EVALUATION_SPLITS, KNOWN_SPLITS, FileRoles, layout_error
from trainer.data.rows.hub_repository import add_hub_files
from trainer.data.rows.saved_dataset import add_saved_files
from trainer.errors import DataError
from trainer.spec.pool_names import name_in_bundle, number_in_pool, pool_name

DEFAULT_EVAL_FILES: Final = "eval/*"


@dataclass(frozen=True)
class RowFile:
    """A file with rows.

    Attributes:
        name: its name relative to `data/`.
        path: where it is.
        for_evaluation: whether its split is one for evaluation.
    """

    name: str
    path: Path
    for_evaluation: bool = False


def list_row_files(
    files: Mapping[str, Path], *, eval_files: str = DEFAULT_EVAL_FILES
) -> list[RowFile]:
    """Returns the files that hold rows, in the order of their names.

    In the pool of a joint job each provider's files are judged by themselves, as that provider judged them.

    Args:
        files: name of each file relative to `data/` → its path.
        eval_files: `data.eval_files`. If a file with rows matches it, the splits decide nothing.

    Raises:
        DataError: side files and other files contradict each other, or a split is neither for training nor for
            evaluation.
    """
    if any(number_in_pool(name) is None for name in files):
        return _list_bundle(files, eval_files)
    bundles: dict[int, dict[str, Path]] = {}
    for name, path in files.items():
        bundles.setdefault(number_in_pool(name) or 0, {})[name_in_bundle(name)] = path
    return [
        file
        for number in sorted(bundles)
        for file in _list_in_pool(number, bundles[number], eval_files)
    ]


def _list_in_pool(number: int, files: Mapping[str, Path], eval_files: str) -> list[RowFile]:
    try:
        listed = _list_bundle(files, eval_files)
    except DataError as error:
        raise DataError(
            error.code,
            error.reason,
            file=pool_name(number, error.file or ""),
            expected=error.expected,
            found=error.found,
            hint=error.hint,
        ) from error
    return [replace(file, name=pool_name(number, file.name)) for file in listed]


def _list_bundle(files: Mapping[str, Path], eval_files: str) -> list[RowFile]:
    splits = find_splits(files)
    if any(fnmatchcase(name, eval_files) for name in splits):
        return [RowFile(name, files[name]) for name in sorted(splits)]
    _require_known_splits(splits)
    return [
        RowFile(name, files[name], splits[name] in EVALUATION_SPLITS) for name in sorted(splits)
    ]


def find_splits(files: Mapping[str, Path]) -> dict[str, str | None]:
    """Maps each file with rows to the name of its split; None where nothing names one.

    Raises:
        DataError: side files and other files contradict each other.
    """
    roles = FileRoles(dict(files))
    add_saved_files(roles)
    add_hub_files(roles)
    return roles.splits | dict.fromkeys(roles.unknown)


def _require_known_splits(splits: Mapping[str, str | None]) -> None:
    names = sorted({split for split in splits.values() if split})
    unknown = [name for name in names if name not in KNOWN_SPLITS]
    # A single split that is not for evaluation is what to train on.
    if not unknown or len(names) == 1:
        return
    raise layout_error(
        next(file for file in sorted(splits) if splits[file] == unknown[0]),
        "it is not clear what the split is for",
        expected=f"one split, or {', '.join(sorted(KNOWN_SPLITS))}",
        found=", ".join(names),
        hint="name the files one by one that the job shall have, and those for evaluation with data.eval_files",
    )
