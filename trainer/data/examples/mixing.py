"""Mixes data sets: how often the training rows of some files are used in each epoch (`data.mix`).

With a weight of 2.5 every row is used twice, and half of the rows, drawn once for the run, a third time. With 0.25
a quarter of the rows is drawn, and the others are left out. Files that no pattern names are used once.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from trainer.data.examples.evaluation_files import is_for_evaluation
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection

OTHER_FILES: Final = "other files"
"""Name of the set of files that no pattern of `data.mix` names. Patterns with white space are refused."""


@dataclass(frozen=True)
class SetCounts:
    """What an epoch uses of a data set.

    Attributes:
        rows: training rows of the set.
        drawn: rows that are used at least once.
        uses: rows that an epoch uses, each counted as often as it is used.
    """

    rows: int
    drawn: int
    uses: int

    def __str__(self) -> str:
        """Returns the counts as reports show them."""
        return f"{self.drawn} of {self.rows} rows, {self.uses} uses in an epoch"


@dataclass(frozen=True)
class Mix:
    """How often the training rows are used in an epoch.

    Attributes:
        uses: uses of each row, in the rows' order.
        sets: counts by pattern, and for `OTHER_FILES`; empty without `data.mix`.
    """

    uses: Sequence[int]
    sets: Mapping[str, SetCounts]

    @property
    def undrawn(self) -> int:
        """Number of rows that are not used."""
        return sum(counts.rows - counts.drawn for counts in self.sets.values())

    def warnings(self) -> Iterator[str]:
        """Yields a warning if rows are not used."""
        if self.undrawn:
            rows = len(self.uses)
            yield f"{self.undrawn} of {rows} rows to train on are never trained on: data.mix leaves them out"


def check_mix(files: Collection[str], data: DataSection) -> None:
    """Requires that every pattern of `data.mix` names a file, and that no file is named twice.

    Args:
        files: names of all data files, relative to `data/`.
        data: the patterns, and which files are for evaluation: those are not mixed.

    Raises:
        DataError: `DATASET_INVALID`.
    """
    files = {file for file in files if not is_for_evaluation(file, data)}
    for pattern in data.mix:
        if not any(fnmatchcase(file, pattern) for file in files):
            raise DataError(
                ErrorCode.DATASET_INVALID,
                f"data.mix: no file to train on matches {pattern!r}",
                expected="at least one file",
                found=0,
                hint="patterns are those of names relative to data/; files for evaluation are not mixed",
            )
    for file in sorted(files):
        matching = [pattern for pattern in data.mix if fnmatchcase(file, pattern)]
        if len(matching) > 1:
            raise DataError(
                ErrorCode.DATASET_INVALID,
                f"data.mix: both {matching[0]!r} and {matching[1]!r} match a file",
                file=file,
                expected="one weight",
                found=len(matching),
            )


def mix_rows(files: Sequence[str], data: DataSection, *, key: bytes) -> Mix:
    """Decides how often each training row is used in an epoch.

    Args:
        files: name of each row's file; as `check_mix` requires them.
        data: patterns and weights.
        key: decides which rows are drawn for the fraction of a weight.

    Raises:
        DataError: `DATASET_NOT_TRAINABLE`: a weight draws no row of its set.
    """
    uses = [1] * len(files)
    if not data.mix:
        return Mix(uses, {})
    members: dict[str, list[int]] = {pattern: [] for pattern in (*data.mix, OTHER_FILES)}
    pattern_of = {
        file: next((pattern for pattern in data.mix if fnmatchcase(file, pattern)), OTHER_FILES)
        for file in set(files)
    }
    for row, file in enumerate(files):
        members[pattern_of[file]].append(row)
    for pattern, weight in data.mix.items():
        for row, count in zip(
            members[pattern], _draw(len(members[pattern]), weight, key, pattern), strict=True
        ):
            uses[row] = count
        if members[pattern] and not any(uses[row] for row in members[pattern]):
            raise DataError(
                ErrorCode.DATASET_NOT_TRAINABLE,
                f"data.mix draws no row for {pattern!r}",
                expected="at least one row",
                found=f"a weight of {weight} for {len(members[pattern])} rows",
            )
    counts = {
        pattern: SetCounts(
            len(rows), sum(uses[row] > 0 for row in rows), sum(uses[row] for row in rows)
        )
        for pattern, rows in members.items()
        if rows or pattern in data.mix
    }
    return Mix(uses, counts)


def _draw(rows: int, weight: float, key: bytes, pattern: str) -> list[int]:
    """Returns how often each of some rows is used: their sum is `weight` times their number, rounded."""
    every, fraction = divmod(weight, 1)
    # Not secret, but the same in a resumed run and in `trainer validate`.
    generator = random.Random(key + pattern.encode())  # noqa: S311
    again = set(generator.sample(range(rows), round(fraction * rows)))
    return [int(every) + (row in again) for row in range(rows)]
