"""What each file of a dataset is, collected layout by layout; and the errors for side files that are wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from trainer.encoding import parse_json
from trainer.errors import DataError, ErrorCode

EVALUATION_SPLITS: Final = frozenset(
    {"validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}
)
KNOWN_SPLITS: Final = EVALUATION_SPLITS | {"train", "training"}
"""Names of splits by which `datasets` recognises them (`SPLIT_KEYWORDS` in its module `data_files`)."""

MAX_SIDE_FILE_BYTES: Final = 1 << 20


@dataclass
class FileRoles:
    """What is known of the files of a dataset so far.

    Attributes:
        unknown: files that no layout has recognised: name relative to `data/` → path.
        splits: files with rows that a layout has recognised → the split that it names, if any.
    """

    unknown: dict[str, Path]
    splits: dict[str, str | None] = field(default_factory=dict)

    def below(self, folder: str) -> Iterator[str]:
        """Yields the unknown files below a folder, relative to it, in order; `.` is the top folder."""
        prefix = "" if folder == "." else f"{folder}/"
        return (
            name.removeprefix(prefix) for name in sorted(self.unknown) if name.startswith(prefix)
        )

    def folders_with(self, *names: str) -> list[str]:
        """Returns the folders in which there are unknown files of all these names, in order."""
        folders = {str(PurePosixPath(name).parent) for name in self.unknown}
        return sorted(
            folder
            for folder in folders
            if all(join(folder, name) in self.unknown for name in names)
        )

    def take(self, name: str) -> Path:
        """Removes a side file from the unknown files; returns its path."""
        return self.unknown.pop(name)

    def recognise(self, name: str, split: str | None) -> None:
        """Records that an unknown file holds the rows of a split."""
        self.splits[name] = split
        del self.unknown[name]


def join(folder: str, name: str) -> str:
    """Returns the name of a file of a folder; `.` is the top folder."""
    return name if folder == "." else f"{folder}/{name}"


def layout_error(
    file: str,
    reason: str,
    *,
    expected: str,
    found: str | int = "something else",
    hint: str | None = None,
) -> DataError:
    """Returns the error for a file that contradicts the layout of its dataset."""
    return DataError(
        ErrorCode.DATASET_INVALID, reason, file=file, expected=expected, found=found, hint=hint
    )


def read_side_file(name: str, path: Path) -> bytes:
    """Returns the content of a side file.

    Raises:
        DataError: it is longer than `MAX_SIDE_FILE_BYTES`.
    """
    with path.open("rb") as file:
        content = file.read(MAX_SIDE_FILE_BYTES + 1)
    if len(content) > MAX_SIDE_FILE_BYTES:
        raise layout_error(
            name,
            "the file is too long",
            expected=f"at most {MAX_SIDE_FILE_BYTES} bytes",
            found="more",
        )
    return content


def read_json_object(name: str, path: Path) -> Mapping[str, object]:
    """Returns the object that a side file in JSON holds.

    Raises:
        DataError: it holds something else.
    """
    try:
        document = parse_json(read_side_file(name, path).decode("utf-8"))
    except ValueError:
        document = None
    if isinstance(document, dict):
        return document
    raise layout_error(
        name, "the file cannot be read", expected="a JSON object, as datasets writes it"
    )
