"""Finds the data files of a dataset and checks that the job will be able to read every row."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from trainer.data.rows import DEFAULT_SCHEMA, FOLDER_SUFFIXES, RowSchema, list_row_files, read_rows
from trainer.data.rows.hub_repository import README, has_front_matter
from trainer.errors import ErrorCode, UsageError
from trainer.model_files.adapter_config import ADAPTER_PREFIX
from trainer.provider.adapter_files import find_adapter_files


def find_data_files(paths: Sequence[Path], adapter: Path | None = None) -> dict[str, Path]:
    """Returns data files, side files that say what they are, and a start adapter: name in the bundle → path.

    Args:
        paths: files, or folders whose files are all taken, named relative to the folder; hidden ones are left out.
            If two would have the same name, the folders that files lie in become part of all names.
        adapter: directory of the adapter that training starts from; None for a fresh one.

    Raises:
        UsageError: a file is missing or given twice, a folder contains a file of another kind, or names are equal.
    """
    listed = [(name, file) for path in paths for name, file in _list_files(path)]
    if len({name for name, _ in listed}) < len(listed):
        listed = _name_apart(listed)
    files: dict[str, Path] = {}
    for name, file in listed:
        if name in files:
            raise UsageError(
                ErrorCode.USAGE,
                f"two data files are called {name}",
                hint="name each file once, and give the folder that contains both instead of its folders",
            )
        if name.startswith(ADAPTER_PREFIX):
            raise UsageError(
                ErrorCode.USAGE,
                f"{file} would be {name} in the bundle, which is the place of an earlier adapter",
                hint="give the directory of an adapter with --adapter, and rows a folder of another name",
            )
        files[name] = file
    return files | (find_adapter_files(adapter) if adapter is not None else {})


def _name_apart(listed: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Names files by the last parts of their paths, as many as it takes to tell them apart.

    Files in folders of a given folder keep their names: `data.eval_files` and side files refer to these.
    """
    if any("/" in name for name, _ in listed):
        return list(listed)
    parts = [Path(os.path.abspath(file)).parts[1:] for _, file in listed]  # noqa: PTH100 -- links keep their names
    for count in range(2, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return [(name, file) for name, (_, file) in zip(names, listed, strict=True)]
    return list(listed)


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
        # The README of a hub's repository has front matter, which may say what the other files are.
        is_side_file = file.name == README and has_front_matter(file)
        if not is_side_file and not file.name.lower().endswith(FOLDER_SUFFIXES):
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
        DataError: a row is malformed, or side files contradict the others.
    """
    kinds: Counter[str] = Counter()
    for file in list_row_files(files, eval_files=schema.eval_files):
        kinds.update(row.kind_name for row in read_rows(file.path, name=file.name, schema=schema))
    return kinds
