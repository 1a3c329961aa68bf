"""Compares the gradients of real rows, before the first step: in every cut of a batch, and by themselves.

The noise is scaled to what one row adds to the sum of clipped gradients. So for every set S of rows that a forward
pass may hold, and every row r of S, with u the gradients at the norm to which clipping cuts them:

    ‖ Σ u_i(S) over i in S  -  Σ u_i(S without r) over i in S without r ‖ ≤ 1

where u_i(S) is the gradient of row i computed beside the others of S. It is 1 if rows do not see one another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from trainer.training.privacy.per_example_gradients import RowGradients
from trainer.training.privacy.row_coupling import ModelState, unproven
from trainer.training.token_store import Batch, TokenStore

COMPARED_ROWS: Final = 3
"""The shortest row, the longest, and one between them: padding and sequence length differ most."""

_TOLERANCE: Final = {False: 2e-3, True: 5e-2}
"""Maximum difference relative to the norm of a row's gradient: in float32 (False), with 16-bit products (True)."""

_SENSITIVITY: Final = 1.001
"""Maximum movement of the sum by one row, in units of the clipping bound."""

Cut = tuple[int, ...]
"""Rows of one forward pass, as indices into the store, in ascending order of their lengths."""


def require_independent_rows(
    gradients: RowGradients, store: TokenStore, state: ModelState, micro_batch: int
) -> None:
    """Checks that the gradient of a row is its own, whatever rows are computed beside it or before it.

    Args:
        gradients: computes the gradients of rows.
        store: the training rows.
        state: the model's buffers and generators.
        micro_batch: most rows of a forward pass.

    Raises:
        JobError: `PRIVACY_UNPROVEN`: gradients differ by more than rounding, a row moves the sum by more than the
            clipping bound, a buffer changed, or a random number was drawn.
    """
    by_length = sorted(range(len(store.lengths)), key=store.lengths.__getitem__)
    rows = _spread(by_length, COMPARED_ROWS)
    random = state.random()
    with _perturbed(gradients.parameters):
        alone = {row: gradients.by_autograd(_batch(store, (row,))) for row in rows}
        # Every cut of the compared rows that fits into a micro-batch, and one as large as a micro-batch.
        sizes = range(1, min(micro_batch, len(rows)) + 1)
        cuts = [cut for size in sizes for cut in itertools.combinations(rows, size)]
        cuts = list(dict.fromkeys([*cuts, tuple(_spread(by_length, micro_batch))]))
        sums, differences = _compare_cuts(gradients, store, alone, cuts)
        # In the opposite order: what the model keeps of the longest row would change the gradients after it.
        again = {row: gradients.by_autograd(_batch(store, (row,))) for row in reversed(rows)}
    differences += [_difference(again[row], alone[row]) for row in rows]
    state.require_undrawn(random)
    state.require_unchanged()
    _require_at_most(
        _TOLERANCE[gradients.is_16_bit],
        max(differences),
        "the gradients of rows are not those of the rows by themselves",
        "of a row's gradient",
    )
    _require_at_most(
        _SENSITIVITY,
        _largest_movement(sums),
        "one row changes what others add to the sum",
        "of the clipping bound",
    )


def _compare_cuts(
    gradients: RowGradients, store: TokenStore, alone: dict[int, Tensor], cuts: Sequence[Cut]
) -> tuple[dict[Cut, Tensor], list[float]]:
    """Returns the sum of each cut's gradients at norm 1, and the differences from the gradients of single rows."""
    sums, differences = {}, []
    for cut in cuts:
        found = gradients.of_each_row(_batch(store, cut))
        differences += [
            _difference(found[place], alone[row]) for place, row in enumerate(cut) if row in alone
        ]
        # At the same norm each: a row that is clipped counts in full, however small its gradient is here.
        sums[cut] = torch.nn.functional.normalize(found, dim=1).sum(0)
    return sums, differences


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Returns ‖found - wanted‖ / ‖wanted‖ over all parameters together, like the norm that is clipped."""
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))


def _largest_movement(sums: dict[Cut, Tensor]) -> float:
    """Returns how far leaving out one row moves the sum of a cut, in units of a row's norm; the largest such."""
    moved = [
        float((sums[cut] - sums[rest]).norm())
        for cut in sums
        for left_out in cut
        if (rest := tuple(row for row in cut if row != left_out)) in sums
    ]
    return max(moved, default=1.0)


def _require_at_most(limit: float, worst: float, message: str, unit: str) -> None:
    if not worst <= limit:  # `not <=`, because NaN must fail
        raise unproven(message, expected=f"at most {limit} {unit}", found=f"{worst:.3g}")


def _spread(items: Sequence[int], count: int) -> list[int]:
    """Returns up to `count` items at equal distances: with two or more, the first and the last among them."""
    if len(items) <= count or count < 2:
        return list(items[-count:])
    return [items[round(place * (len(items) - 1) / (count - 1))] for place in range(count)]


def _batch(store: TokenStore, rows: Cut) -> Batch:
    return store.reorder(rows).batch(slice(0, len(rows)))


@contextmanager
def _perturbed(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Adds small random numbers to the parameters inside the block, and restores the values afterwards.

    A fresh LoRA adapter has B = 0, so the gradient of A is 0 for every row, and comparing zeros would check
    nothing.
    """
    original = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(
                0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.device)
            )
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, original, strict=True):
                parameter.copy_(value)
