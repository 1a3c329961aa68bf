"""Repositories of a hub: names of files, or the front matter of `README.md`, say to which split a file belongs.

    README.md                               begins with YAML; `configs` may map splits to patterns of names
    data/train-00000-of-00002.parquet       without `configs`, the names of folders and files name the splits

Source: "Structure your repository" in the documentation of `datasets`; its module `data_files` has the rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from trainer.data.rows.file_roles import KNOWN_SPLITS, FileRoles, join, layout_error, read_side_file
from trainer.errors import DataError
from trainer.strict_yaml import YamlError, load_yaml_tree

README: Final = "README.md"

_FRONT_MATTER: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?---\r?\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE
)
_SHARD: Final = re.compile(r"(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}")
_WORD_ENDS: Final = re.compile(r"[-._ 0-9]+")
_GLOB_PARTS: Final = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]")
_REGEX_OF_GLOB: Final = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

Patterns = Mapping[str, tuple[str, ...]]
"""Patterns of names of files, by the split that these files belong to."""


def has_front_matter(path: Path) -> bool:
    """Returns whether a file begins with a line of three hyphens, as the front matter of a README does."""
    with path.open("rb") as file:
        return file.read(6).removeprefix(b"\xef\xbb\xbf").startswith(b"---")


def add_hub_files(roles: FileRoles) -> None:
    """Recognises the files of every repository, and files whose names are those of shards.

    Raises:
        DataError: a README that cannot be read, a file of a repository that belongs to no split or to several.
    """
    for folder in roles.folders_with(README):
        name = join(folder, README)
        if has_front_matter(roles.unknown[name]):
            _add_repository(roles, folder, _read_patterns(name, roles.take(name)))
    for name in sorted(roles.unknown):
        # Elsewhere only names that hold a split's name are a statement: "part-00000-of-00002" is none.
        split = _split_of_shard(name)
        if split and _known_words(split):
            roles.recognise(name, split)


def _add_repository(roles: FileRoles, folder: str, patterns: Patterns | None) -> None:
    names = list(roles.below(folder))
    found = {
        name: _named_splits(name)
        if patterns is None
        else {split for split, globs in patterns.items() if any(_matches(name, g) for g in globs)}
        for name in names
    }
    if patterns is None and not any(found.values()):
        return  # no name says anything: `datasets` takes all files for training, and so does the job
    for name in names:
        if len(found[name]) != 1:
            raise layout_error(
                join(folder, name),
                f"the file belongs to {'several splits' if found[name] else 'no split'}",
                expected=f"one, by {'the patterns of ' + README if patterns is not None else 'its name'}",
                found=len(found[name]),
                hint="leave it out, or name the files one by one that the job shall have",
            )
        roles.recognise(join(folder, name), *found[name])


def _matches(name: str, glob: str) -> bool:
    """Returns whether a pattern of `datasets` matches a name: `*` within a folder, `**` across folders."""
    pattern, end = "", 0
    for part in _GLOB_PARTS.finditer(glob):
        pattern += re.escape(glob[end : part.start()]) + _REGEX_OF_GLOB.get(part[0], part[0])
        end = part.end()
    return re.fullmatch(pattern + re.escape(glob[end:]), name) is not None


def _named_splits(name: str) -> set[str]:
    """Returns the splits that a name names where no pattern does; a folder's name goes before the file's."""
    if split := _split_of_shard(name):
        return {split}
    *folders, file = PurePosixPath(name).parts
    in_folders = set[str]().union(*map(_known_words, folders))
    return in_folders or _known_words(file)


def _split_of_shard(name: str) -> str | None:
    match = _SHARD.match(PurePosixPath(name).name)
    return match["split"] if match else None


def _known_words(text: str) -> set[str]:
    return set(_WORD_ENDS.split(text)) & KNOWN_SPLITS


def _read_patterns(name: str, path: Path) -> Patterns | None:
    """Returns the patterns of a README's only configuration with files; None if it has none.

    Raises:
        DataError: the front matter cannot be read, or there are several such configurations.
    """
    configs = _read_front_matter(name, path).get("configs") or []
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        raise _wrong_configs(name)
    with_files = [config for config in configs if "data_files" in config]
    if len(with_files) > 1:
        raise layout_error(
            name,
            "the repository has several configurations",
            expected="one",
            found=len(with_files),
            hint="name the files of one of them one by one",
        )
    return _split_patterns(name, with_files[0]) if with_files else None


def _read_front_matter(name: str, path: Path) -> Mapping[str, object]:
    match = _FRONT_MATTER.match(read_side_file(name, path))
    if match is None:
        raise layout_error(
            name, "the file cannot be read", expected="a second line of three hyphens"
        )
    try:
        card = load_yaml_tree(match[1].decode("utf-8"), compose_features=True).plain_value()
    except UnicodeDecodeError:
        expected = "front matter in UTF-8"
    except YamlError as error:
        expected = f"YAML from line {error.line + 1} on"  # the hyphens are line 1
    else:
        if isinstance(card, dict):
            return card
        expected = "front matter with keys"
    raise layout_error(name, "the file cannot be read", expected=expected)


def _split_patterns(name: str, config: Mapping[str, object]) -> Patterns:
    """Returns the patterns of each split. Without splits, `data_files` names the files of the split train."""
    data_files, folder = config["data_files"], config.get("data_dir", ".")
    entries: list[tuple[object, object]]
    if isinstance(data_files, dict):
        entries = list(data_files.items())
    elif (
        isinstance(data_files, list)
        and data_files
        and all(isinstance(entry, dict) for entry in data_files)
    ):
        entries = [(entry.get("split"), entry.get("path")) for entry in data_files]
    else:
        entries = [("train", data_files)]
    patterns: dict[str, tuple[str, ...]] = {}
    for split, path in entries:
        globs = [path] if isinstance(path, str) else path
        if not isinstance(split, str) or split in patterns or not isinstance(folder, str):
            raise _wrong_configs(name)
        if not isinstance(globs, list) or not globs or not all(isinstance(g, str) for g in globs):
            raise _wrong_configs(name)
        patterns[split] = tuple(join(folder.strip("/"), glob.removeprefix("./")) for glob in globs)
    return patterns


def _wrong_configs(name: str) -> DataError:
    return layout_error(
        name,
        "the configurations cannot be read",
        expected="configs: a list of objects whose data_files has a split and a path for each split",
    )
