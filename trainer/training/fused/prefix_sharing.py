"""Finds prefixes that rows have in common and flattens a batch so that each is computed once. For a CPU.

With a prefix of p tokens and rows of n_1 .. n_k tokens, the flattened batch is

    [prefix (p), row 1 without it (n_1 - p), ..., row k without it (n_k - p)]

which saves (k - 1) p tokens. A target whose logit position is inside the prefix keeps its own entry: all rows then
read the hidden state of the same token, and its gradient is the sum of theirs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.training.fused.attention_layout import PrefixGroup
from trainer.training.fused.segments import Segments
from trainer.training.token_store import Batch


@dataclass(frozen=True)
class FlatBatch:
    """The tokens that the fused pass computes.

    Attributes:
        input_ids: int32 [tokens].
        position_ids: int32 [tokens]: position of each token in its row, counted from the prefix's first token.
        segments: where the rows are.
        logit_positions: int [targets]: index of the token whose logits predict the target, in the order of the
            targets of the `Batch` that this was made from.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Segments
    logit_positions: Tensor

    @classmethod
    def without_sharing(cls, batch: Batch) -> FlatBatch:
        """Takes a batch as it is; no copy."""
        segments = Segments.without_prefix(batch.lengths, batch.cu_seqlens)
        return cls(batch.input_ids, batch.position_ids, segments, batch.logit_positions)


def share_prefixes(batch: Batch, rows_per_unit: int) -> FlatBatch:
    """Flattens a batch with shared prefixes: one of all rows, or one of each unit, whichever saves more tokens.

    Args:
        batch: the rows, on a CPU.
        rows_per_unit: how many consecutive rows make up a unit, such as the two answers of a preference pair.
    """
    # Tokens saved: a prefix of p tokens of k rows saves (k - 1) p.
    prefix_of_all = common_prefix_length(batch)
    if rows_per_unit > 1:
        units = list(_split_units(batch, rows_per_unit))
        prefixes = [common_prefix_length(unit) for unit in units]
        if sum(prefixes) * (rows_per_unit - 1) > prefix_of_all * (len(batch.lengths) - 1):
            return _concatenate(
                [share_prefix(unit, prefix) for unit, prefix in zip(units, prefixes, strict=True)]
            )
    return share_prefix(batch, prefix_of_all)


def common_prefix_length(batch: Batch) -> int:
    """Counts the tokens that all rows begin with; at most one less than the shortest row has.

    Every row keeps a token of its own, since a group of rows has no empty rows.
    """
    starts, shortest = batch.cu_seqlens[:-1], min(batch.lengths)
    if len(starts) == 1:
        return 0
    beginnings = batch.input_ids[starts[:, None] + torch.arange(shortest)]
    # cumprod keeps the leading run of ones: the columns before the first one that differs.
    equal = (beginnings == beginnings[0]).all(0).to(torch.int8).cumprod(0)
    return min(int(equal.sum()), shortest - 1)


def share_prefix(batch: Batch, prefix_length: int) -> FlatBatch:
    """Flattens a batch whose rows all begin with the same tokens, with those tokens once, in front.

    Args:
        batch: the rows.
        prefix_length: tokens of the prefix; with 0 the batch is taken as it is.
    """
    if not prefix_length:
        return FlatBatch.without_sharing(batch)
    lengths = [length - prefix_length for length in batch.lengths]
    starts = batch.cu_seqlens[:-1]
    new_starts = prefix_length + torch.tensor(
        [0, *itertools.accumulate(lengths)], dtype=torch.int32
    )
    first = int(starts[0])
    own_tokens = [
        torch.arange(start + prefix_length, end)
        for start, end in itertools.pairwise(batch.cu_seqlens.tolist())
    ]
    index = torch.cat([torch.arange(first, first + prefix_length), *own_tokens])
    # A logit position p of row r moves to p in the prefix, or to new_starts[r] + p - prefix_length after it.
    row = batch.row_of_targets()
    position = batch.logit_positions - starts[row]
    logit_positions = torch.where(
        position < prefix_length, position, new_starts[row] + position - prefix_length
    )
    segments = Segments((PrefixGroup(0, tuple(lengths), prefix_length),))
    return FlatBatch(batch.input_ids[index], batch.position_ids[index], segments, logit_positions)


def _split_units(batch: Batch, rows_per_unit: int) -> Iterator[Batch]:
    """Yields each unit as a batch of its own; views."""
    token_bounds = batch.cu_seqlens[::rows_per_unit].contiguous()
    # Logit positions are ascending, so the targets of a unit are consecutive too.
    target_bounds = torch.searchsorted(batch.logit_positions, token_bounds).tolist()
    bounds = zip(
        itertools.pairwise(token_bounds.tolist()), itertools.pairwise(target_bounds), strict=True
    )
    for number, ((first, last), (first_target, last_target)) in enumerate(bounds):
        rows = slice(number * rows_per_unit, (number + 1) * rows_per_unit)
        targets = slice(first_target, last_target)
        yield Batch(
            batch.input_ids[first:last],
            batch.position_ids[first:last],
            batch.lengths[rows],
            batch.cu_seqlens[rows.start : rows.stop + 1] - first,
            batch.logit_positions[targets] - first,
            batch.targets[targets],
        )


def _concatenate(units: Sequence[FlatBatch]) -> FlatBatch:
    """Concatenates flattened units; targets keep their order."""
    starts = list(itertools.accumulate((len(unit.input_ids) for unit in units), initial=0))[:-1]
    groups = [
        replace(group, start=group.start + start)
        for unit, start in zip(units, starts, strict=True)
        for group in unit.segments.groups
    ]
    return FlatBatch(
        torch.cat([unit.input_ids for unit in units]),
        torch.cat([unit.position_ids for unit in units]),
        Segments(tuple(groups)),
        torch.cat(
            [unit.logit_positions + start for unit, start in zip(units, starts, strict=True)]
        ),
    )
