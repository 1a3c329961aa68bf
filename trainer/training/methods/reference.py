"""Log-probabilities of rows without gradients, for methods that compare the trained model with a reference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from trainer.data.examples.example import Example
from trainer.training.batches import sort_rows, split_micro_batches, token_budget
from trainer.training.distributed import ALONE, RankGroup, RankShare
from trainer.training.loss import CausalLoss
from trainer.training.token_store import OrderedTokens, TokenStore, split_sections


def log_probabilities(
    examples: Sequence[Example],
    loss: CausalLoss,
    *,
    units: int,
    rows_per_unit: int,
    device: torch.device,
    ranks: RankGroup = ALONE,
) -> Tensor:
    """Computes the log-probability of the trained tokens of each example with the model in its present state.

    Args:
        examples: rows; the rows of a unit are adjacent.
        loss: loss of the model.
        units: number of the longest units that fit into a micro-batch.
        rows_per_unit: 2 for pairs, else 1.
        device: device of the model.
        ranks: the ranks that divide the units among themselves; each rank returns all numbers.

    Returns:
        float32 [examples], in nats, in the order of the examples.
    """
    result = torch.zeros(len(examples), dtype=torch.float32, device=device)
    if not examples:
        return result
    store = TokenStore(examples, device)
    budget = token_budget(rows_per_unit * units * max(store.lengths), device)
    rows = sort_units(store.lengths, rows_per_unit)
    # A section never separates the rows of a unit.
    sorted_units = (
        rows[start : start + rows_per_unit] for start in range(0, len(rows), rows_per_unit)
    )
    for section in split_sections(
        sorted_units, lambda unit: sum(store.lengths[row] for row in unit)
    ):
        section_rows = [row for unit in section for row in unit]
        share, ordered, slices = share_units(
            section_rows, store, loss, budget, ranks, rows_per_unit
        )
        for part, weight in share.weighted_slices(slices):
            # The loss is -log p. Rows of other ranks remain 0 here, so the sum over ranks has every row.
            row_losses = loss.row_losses(ordered.batch(part), rows_per_unit=rows_per_unit)
            result[ordered.rows[part]] -= row_losses * weight
    return ranks.all_reduce(result)


def sort_units(lengths: Sequence[int], rows_per_unit: int) -> list[int]:
    """Returns the rows of all units, sorted by the unit's longest row; the rows of a unit are neighbours."""
    units = [
        list(range(start, start + rows_per_unit)) for start in range(0, len(lengths), rows_per_unit)
    ]
    return sort_rows(units, lengths, keep_units=True)


def share_units(
    rows: Sequence[int],
    store: TokenStore,
    loss: CausalLoss,
    budget: int,
    ranks: RankGroup,
    rows_per_unit: int,
) -> tuple[RankShare, OrderedTokens, list[slice]]:
    """Returns this rank's share of units, which must be sorted by length, its rows, and their micro-batches."""
    split = partial(split_micro_batches, budget=budget, cost=loss.cost, rows_per_unit=rows_per_unit)
    share = ranks.share_rows(
        rows, store.lengths, store.target_counts, split, rows_per_unit=rows_per_unit
    )
    ordered = store.reorder(share.rows)
    return share, ordered, split(ordered.lengths)
