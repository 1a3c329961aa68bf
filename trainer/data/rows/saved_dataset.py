"""Folders that `datasets` wrote with `save_to_disk`.

A `DatasetDict` has `dataset_dict.json` with the names of its splits, and a folder for each of them. Such a folder
has `state.json`, which names the files with rows and may name the split, and `dataset_info.json`, which describes
the columns as the schema of each file does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

from trainer.data.rows.file_roles import FileRoles, join, layout_error, read_json_object

STATE: Final = "state.json"
INFO: Final = "dataset_info.json"
SPLITS: Final = "dataset_dict.json"


def add_saved_files(roles: FileRoles) -> None:
    """Recognises the files of every folder that `save_to_disk` wrote.

    Raises:
        DataError: a file is missing or not mentioned, or rows are selected by an index.
    """
    folders = roles.folders_with(STATE, INFO)
    split_of_folder: dict[str, str] = {}
    for parent in roles.folders_with(SPLITS):
        split_of_folder |= _read_splits(roles, parent, folders)
    for folder in folders:
        _add_folder(roles, folder, split_of_folder.get(folder))


def _read_splits(roles: FileRoles, parent: str, folders: list[str]) -> dict[str, str]:
    """Maps the folder of each split of a `DatasetDict` to the split's name."""
    name = join(parent, SPLITS)
    splits = read_json_object(name, roles.take(name)).get("splits")
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise layout_error(
            name, "the splits are not named", expected="a list of names under the key splits"
        )
    found = {join(parent, split): split for split in splits}
    there = {
        folder
        for folder in folders
        if folder != parent and str(PurePosixPath(folder).parent) == parent
    }
    if found.keys() != there:
        folder = min(found.keys() ^ there)
        raise layout_error(
            name,
            "the splits are not those of the folders beside it",
            expected=f"a folder and a name for each split, {folder} too",
            found="a folder that is not named"
            if folder in there
            else f"no {STATE} and {INFO} in that folder",
        )
    return found


def _add_folder(roles: FileRoles, folder: str, split: str | None) -> None:
    name = join(folder, STATE)
    state = read_json_object(name, roles.take(name))
    roles.take(join(folder, INFO))
    if state.get("_indices_data_files"):
        raise layout_error(
            name,
            "the rows are selected by an index",
            expected="files that hold the rows themselves, as datasets 2 and later write them",
            found="an index",
            hint="load it with datasets and save it again",
        )
    there = {file for file in roles.below(folder) if "/" not in file}
    shards = _read_shards(name, state) if "_data_files" in state else there
    if shards != there:
        file = min(shards ^ there)
        raise layout_error(
            join(folder, file),
            f"the folder does not hold the files that its {STATE} names",
            expected="these and no others",
            found="one that is not named" if file in there else "one that is missing",
        )
    saved_split = state.get("_split")
    split = split or (saved_split if isinstance(saved_split, str) else None)
    for file in shards:
        roles.recognise(join(folder, file), split)


def _read_shards(name: str, state: Mapping[str, object]) -> set[str]:
    entries = state["_data_files"]  # none for a split without rows
    listed = entries if isinstance(entries, list) else [None]
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in listed]
    texts = {file for file in names if isinstance(file, str)}
    if len(texts) < len(names):
        raise layout_error(
            name,
            "the files are not named",
            expected="a list of objects with a filename each under _data_files",
        )
    return texts
