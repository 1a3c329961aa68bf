"""Beginnings that rows have in common, once for all of them: see `trainer.training.fused.segments`. For a CPU."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from trainer.training.fused.segments import Segments
from trainer.training.token_store import Batch


def share(batch: Batch, rows_per_unit: int) -> Batch:
    """The same rows with fewer tokens: sharing what all begin with, or what each group does, as saves more.

    Args:
        batch: the rows.
        rows_per_unit: so many neighbours are a group; 1 where there are none.
    """
    common = batch.common_beginning()
    if rows_per_unit > 1:
        groups = list(_groups(batch, rows_per_unit))
        sizes = [group.common_beginning() for group in groups]
        if sum(sizes) * (rows_per_unit - 1) > common * (len(batch.segments.lengths) - 1):
            return _joined([group.sharing(size) for group, size in zip(groups, sizes, strict=True)])
    return batch.sharing(common)


def _groups(batch: Batch, rows_per_unit: int) -> Iterator[Batch]:
    """The groups of a batch, each a batch of its own; views."""
    lengths, bounds = batch.segments.lengths, batch.segments.bounds
    ends = bounds[::rows_per_unit].contiguous()
    targets = torch.searchsorted(batch.predicting, ends).tolist()
    tokens = ends.tolist()
    for number in range(len(tokens) - 1):
        here = slice(tokens[number], tokens[number + 1])
        those = slice(targets[number], targets[number + 1])
        rows = slice(number * rows_per_unit, (number + 1) * rows_per_unit)
        own = Segments(lengths[rows], bounds[rows.start : rows.stop + 1] - here.start)
        predicting = batch.predicting[those] - here.start
        yield Batch(batch.ids[here], batch.positions[here], own, predicting, batch.targets[those])


def _joined(groups: Sequence[Batch]) -> Batch:
    """Groups behind one another; what is predicted keeps its order."""
    sizes = [len(group.ids) for group in groups]
    bounds = list(itertools.accumulate(sizes, initial=0))
    places = [slice(start, end) for start, end in itertools.pairwise(bounds)]
    segments = Segments(
        tuple(sizes),
        torch.tensor(bounds, dtype=torch.int32),
        groups=tuple((place, group.segments) for place, group in zip(places, groups, strict=True)),
    )
    return Batch(
        torch.cat([group.ids for group in groups]),
        torch.cat([group.positions for group in groups]),
        segments,
        torch.cat([group.predicting + place.start for group, place in zip(groups, places, strict=True)]),
        torch.cat([group.targets for group in groups]),
    )
