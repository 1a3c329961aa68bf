"""Linear layers with a low-rank update, several at once, as single products.

Modules that read the same input (q, k and v; gate and up) form a group. A group's frozen weights stand above one
another in one matrix, and behind each its B: with x the input and A all the group's A, scaled,

    [y1, y2] = [x, x Aᵀ] · [[W1, B1, 0], [W2, 0, B2]]ᵀ

so base and updates are one product forward, and one backward, which brings the gradients of x and of x Aᵀ
together. The base gets no gradient, so no product is made for one. Only the input is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Update:
    """The low-rank update of one module: x ↦ scale · dropout(x) Aᵀ Bᵀ.

    Attributes:
        a: [rank, inputs], trained.
        b: [outputs, rank], trained.
        scale: alpha / rank, or alpha / √rank.
        dropout: share of the inputs left out while training.
    """

    a: nn.Parameter
    b: nn.Parameter
    scale: float
    dropout: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]


class LoraGroup:
    """Modules that read one input.

    The base modules' weights become views into this group's matrix: the model itself goes on working, and nothing
    is in memory twice.

    Args:
        bases: the frozen linear layers; all with a bias or none.
        updates: for each its update, or None.
        dtype: what products are computed in.
    """

    def __init__(self, bases: Sequence[nn.Linear], updates: Sequence[Update | None], dtype: torch.dtype) -> None:
        self.inputs = bases[0].in_features
        self.outputs = [base.out_features for base in bases]
        self.updates = [update for update in updates if update is not None]
        self.rank = sum(update.rank for update in self.updates)
        self._places = list(_places(self.outputs, updates))
        self.weight = bases[0].weight.new_zeros(sum(self.outputs), self.inputs + self.rank, dtype=dtype)
        self._a = self.weight.new_empty(self.rank, self.inputs)
        self.bias = None if bases[0].bias is None else torch.cat([base.bias.detach() for base in bases]).to(dtype)
        for base, rows in zip(bases, _ranges(self.outputs), strict=True):
            view = self.weight[rows, : self.inputs]
            view.copy_(base.weight.detach())
            base.weight.data = view

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of each update, in turn."""
        return [parameter for update in self.updates for parameter in (update.a, update.b)]

    @property
    def copies(self) -> tuple[list[Tensor], list[Tensor]]:
        """Where a copy of each of `parameters` belongs, and the parameters; see `refresh`."""
        targets = []
        for rows, columns in self._places:
            place = slice(self.inputs + columns.start, self.inputs + columns.stop)
            targets += [self._a[columns], self.weight[rows, place]]
        return targets, [parameter.detach() for parameter in self.parameters]

    def scale(self, *, off: bool = False) -> None:
        """Scale the copies of A; `off` makes them zero, and the group what its bases alone are."""
        for update, (_, columns) in zip(self.updates, self._places, strict=True):
            self._a[columns].mul_(0.0 if off else update.scale)

    def widen(self, x: Tensor, *, training: bool) -> tuple[Tensor, list[Tensor]]:
        """[x, x Aᵀ] and the dropout masks: (tokens, inputs + rank), each mask (tokens, inputs)."""
        wide = x.new_empty(x.shape[0], self.inputs + self.rank)
        wide[:, : self.inputs] = x
        return wide, self.fill(wide, training=training)

    def fill(self, wide: Tensor, *, training: bool) -> list[Tensor]:
        """Write x Aᵀ behind the x that stands in `wide`; returns the dropout masks, none without dropout."""
        if not self.rank:
            return []
        x = wide[:, : self.inputs]
        masks = self._masks(x) if training else []
        if not masks:
            torch.mm(x, self._a.t(), out=wide[:, self.inputs :])
        for mask, (_, columns) in zip(masks, self._places if masks else (), strict=True):
            wide[:, self.inputs + columns.start : self.inputs + columns.stop] = (x * mask) @ self._a[columns].t()
        return masks

    def _masks(self, x: Tensor) -> list[Tensor]:
        if not any(update.dropout for update in self.updates):
            return []
        keep = [1 - update.dropout for update in self.updates]
        return [torch.empty_like(x).bernoulli_(share).div_(share) for share in keep]

    def forward(self, wide: Tensor) -> Tensor:
        """(tokens, all outputs) from what `widen` made."""
        return nn.functional.linear(wide, self.weight, self.bias)

    def backward(
        self, dy: Tensor, wide: Tensor, masks: list[Tensor], *, into_input: bool = True
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients.

        Args:
            dy: (tokens, all outputs).
            wide: what `widen` made.
            masks: the same.
            into_input: whether the input's gradient is wanted.

        Returns:
            The input's gradient (tokens, inputs), and those of `parameters`.
        """
        if not into_input:
            return None, self._parameter_gradients(dy, dy @ self.weight[:, self.inputs :], wide, masks)
        dwide = dy @ self.weight
        dx, dxa = dwide[:, : self.inputs], dwide[:, self.inputs :]
        gradients = self._parameter_gradients(dy, dxa, wide, masks)
        if not masks:
            return (dx.addmm_(dxa, self._a) if self.rank else dx), gradients
        for mask, (_, columns) in zip(masks, self._places, strict=True):
            dx = dx + mask * (dxa[:, columns] @ self._a[columns])
        return dx, gradients

    def _parameter_gradients(self, dy: Tensor, dxa: Tensor, wide: Tensor, masks: list[Tensor]) -> list[Tensor]:
        if not self.rank:
            return []
        x, xa = wide[:, : self.inputs], wide[:, self.inputs :]
        da = None if masks else dxa.t() @ x
        gradients = []
        for number, (update, (rows, columns)) in enumerate(zip(self.updates, self._places, strict=True)):
            one = dxa[:, columns].t() @ (x * masks[number]) if da is None else da[columns]
            db = (xa[:, columns].t() @ dy[:, rows]).t()  # on two threads a third quicker than dyᵀ · xa
            gradients += [
                one.to(update.a.dtype).mul_(update.scale),
                db.to(update.b.dtype, memory_format=torch.contiguous_format),
            ]
        return gradients


class Refresh:
    """Brings A and B, as they are now, into the groups' matrices; once before each forward pass.

    Args:
        groups: all of a model's.
    """

    def __init__(self, groups: Sequence[LoraGroup]) -> None:
        self._groups = groups
        pairs = [group.copies for group in groups]
        self._targets = [target for targets, _ in pairs for target in targets]
        self._sources = [source for _, sources in pairs for source in sources]

    @torch.no_grad()
    def __call__(self, *, off: bool = False) -> None:
        """Do it; with `off` as if there were no updates."""
        torch._foreach_copy_(self._targets, self._sources)
        for group in self._groups:
            group.scale(off=off)


def _ranges(sizes: Sequence[int]) -> list[slice]:
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _places(outputs: Sequence[int], updates: Sequence[Update | None]) -> Any:
    """For each update the rows of its outputs, and its columns behind the inputs."""
    columns = _ranges([0 if update is None else update.rank for update in updates])
    for update, rows, place in zip(updates, _ranges(outputs), columns, strict=True):
        if update is not None:
            yield rows, place
