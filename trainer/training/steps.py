"""From shares of steps to rows on the device, a section of many steps at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from trainer.training.distributed import RankShare
from trainer.training.token_store import SECTION_TOKENS, OrderedTokens, TokenStore


def ordered_steps(
    shares: Iterable[RankShare], store: TokenStore
) -> Iterator[tuple[OrderedTokens, slice, RankShare]]:
    """For each step: rows on the device, which of them are this process's, and what the step has in all.

    Args:
        shares: of the steps, in their order.
        store: all rows.
    """
    section: list[RankShare] = []
    size = 0
    for share in shares:
        section.append(share)
        size += sum(store.lengths[row] for row in share.rows)
        if size >= SECTION_TOKENS:
            yield from _of_section(section, store)
            section, size = [], 0
    yield from _of_section(section, store)


def _of_section(
    section: Sequence[RankShare], store: TokenStore
) -> Iterator[tuple[OrderedTokens, slice, RankShare]]:
    if not section:
        return
    ordered = store.reorder([row for share in section for row in share.rows])
    start = 0
    for share in section:
        yield ordered, slice(start, start + len(share.rows)), share
        start += len(share.rows)
