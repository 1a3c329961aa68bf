"""From a plan of units to rows on the device, a section of many steps at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from trainer.worker.batches import in_order
from trainer.worker.store import SECTION_TOKENS, Ordered, TokenStore


def ordered_steps(
    steps: Iterable[Sequence[int]], units: Sequence[Sequence[int]], store: TokenStore, *, whole: bool = False
) -> Iterator[tuple[Ordered, slice]]:
    """For each step: rows on the device, and which of them are the step's, sorted by length.

    Args:
        steps: the units of each step.
        units: the rows of each unit.
        store: all rows.
        whole: rows of a unit stay together; see `in_order`.
    """
    section: list[list[int]] = []
    size, lengths = 0, store.lengths
    for step in steps:
        rows = in_order([units[unit] for unit in step], lengths, whole=whole)
        section.append(rows)
        size += sum(lengths[row] for row in rows)
        if size >= SECTION_TOKENS:
            yield from _of_section(section, store)
            section, size = [], 0
    yield from _of_section(section, store)


def _of_section(section: Sequence[Sequence[int]], store: TokenStore) -> Iterator[tuple[Ordered, slice]]:
    if not section:
        return
    ordered = store.ordered([row for rows in section for row in rows])
    start = 0
    for rows in section:
        yield ordered, slice(start, start + len(rows))
        start += len(rows)
