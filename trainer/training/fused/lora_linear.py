"""Linear layers with LoRA updates, several at once, as single matrix products.

A module computes y = x W^T + scale * dropout(x) A^T B^T with W [outputs, inputs] frozen, A [rank, inputs] and
B [outputs, rank] trained. Modules that read the same input (q, k and v; gate and up) form a group. A group has one
matrix, in which the modules' weights are stacked and each module's B is next to its W. For two modules, with
A the scaled matrices A1 and A2 stacked:

    [y1, y2] = [x, x A^T] . [[W1, B1, 0],
                             [W2, 0, B2]]^T

So base and updates are one product forward, and one backward, dy . weight, which gives the gradients of x and of
x A^T side by side. From the latter, dxa [tokens, rank]:

    dA = scale * dxa^T x        dB = dy^T (x A^T)        dx = (dy W) + dxa A

W is frozen, so no dW is computed. Autograd does not record any of this (the callers are autograd functions): only
[x, x A^T] is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.training.fused.slices import consecutive_slices


@dataclass(frozen=True)
class LoraUpdate:
    """The low-rank update of one module: x -> scale * dropout(x) A^T B^T.

    Attributes:
        lora_A: [rank, inputs], trained.
        lora_B: [outputs, rank], trained.
        scale: alpha / rank, or alpha / sqrt(rank) with rank-stabilised LoRA.
        dropout: probability that an input is zeroed while training.
    """

    lora_A: nn.Parameter  # noqa: N815 -- PEFT's names
    lora_B: nn.Parameter  # noqa: N815
    scale: float
    dropout: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.lora_A.shape[0]


class LoraGroup:
    """Modules that read the same input.

    The base modules' weights become views into the group's matrix: the model itself still works, and no weight is
    in memory twice.

    Args:
        bases: the frozen linear layers; all have a bias or none has.
        updates: the update of each, or None.
        dtype: number format of the products.

    Attributes:
        inputs: numbers in an input vector.
        rank: sum of the updates' ranks.
        updates: those that are not None.
        weight: [all outputs, inputs + rank], as in the module's docstring.
        bias: [all outputs], or None.
    """

    def __init__(
        self, bases: Sequence[nn.Linear], updates: Sequence[LoraUpdate | None], dtype: torch.dtype
    ) -> None:
        outputs = [base.out_features for base in bases]
        self.inputs = bases[0].in_features
        self.updates = [update for update in updates if update is not None]
        self.rank = sum(update.rank for update in self.updates)
        # For each update the rows of its outputs in `weight`, and the rows of its A in the stacked A.
        ranks = consecutive_slices([0 if update is None else update.rank for update in updates])
        places = zip(updates, consecutive_slices(outputs), ranks, strict=True)
        self._slices = [(rows, columns) for update, rows, columns in places if update is not None]
        # Zeros: the blocks beside each B stay zero for good.
        self.weight = bases[0].weight.new_zeros(sum(outputs), self.inputs + self.rank, dtype=dtype)
        self._scaled_A = self.weight.new_empty(self.rank, self.inputs)
        self.bias = (
            None
            if bases[0].bias is None
            else torch.cat([base.bias.detach() for base in bases]).to(dtype)
        )
        # After this the base layer reads the group's matrix, with a row stride of inputs + rank.
        for base, rows in zip(bases, consecutive_slices(outputs), strict=True):
            view = self.weight[rows, : self.inputs]
            view.copy_(base.weight.detach())
            base.weight.data = view

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of each update, alternating."""
        return [
            parameter for update in self.updates for parameter in (update.lora_A, update.lora_B)
        ]

    @property
    def parameter_copies(self) -> tuple[list[Tensor], list[Tensor]]:
        """Views of the group's matrices that hold a copy of each of `parameters`; and the parameters, detached."""
        copies = []
        for rows, columns in self._slices:
            weight_columns = slice(self.inputs + columns.start, self.inputs + columns.stop)
            copies += [self._scaled_A[columns], self.weight[rows, weight_columns]]
        return copies, [parameter.detach() for parameter in self.parameters]

    def scale_copies(self, *, disabled: bool = False) -> None:
        """Scales the copies of A.

        Args:
            disabled: whether to make them zero, so that the group computes what its base modules compute.
        """
        for update, (_, columns) in zip(self.updates, self._slices, strict=True):
            self._scaled_A[columns].mul_(0.0 if disabled else update.scale)

    def fill_low_rank(self, extended: Tensor, *, training: bool) -> list[Tensor]:
        """Writes x A^T into the last columns of `extended`, whose first columns are x.

        Args:
            extended: [tokens, inputs + rank].
            training: whether dropout is on.

        Returns:
            The dropout mask of each update: [tokens, inputs], 0 or 1 / (1 - dropout). None without dropout.
        """
        if not self.rank:
            return []
        x = extended[:, : self.inputs]
        if not training or not any(update.dropout for update in self.updates):
            torch.mm(x, self._scaled_A.t(), out=extended[:, self.inputs :])
            return []
        masks = []
        # Each update has a mask of its own, as in PEFT; then there is one product for each.
        for update, (_, columns) in zip(self.updates, self._slices, strict=True):
            # Inverted dropout: what is kept is scaled up, so that the expected value stays the same.
            keep = 1 - update.dropout
            mask = torch.empty_like(x).bernoulli_(keep).div_(keep)
            target = slice(self.inputs + columns.start, self.inputs + columns.stop)
            extended[:, target] = (x * mask) @ self._scaled_A[columns].t()
            masks.append(mask)
        return masks

    def forward(self, extended: Tensor) -> Tensor:
        """Computes all modules' outputs: [tokens, all outputs], from [x, x A^T]."""
        return nn.functional.linear(extended, self.weight, self.bias)

    def backward(
        self, dy: Tensor, extended: Tensor, masks: list[Tensor], *, needs_dx: bool = True
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Computes the gradients; formulas in the module.

        Args:
            dy: gradient of the outputs: [tokens, all outputs].
            extended: [x, x A^T]: [tokens, inputs + rank].
            masks: what `fill_low_rank` returned.
            needs_dx: whether the input's gradient is needed. The first layer's input has none: embeddings are
                frozen.

        Returns:
            The gradient of x [tokens, inputs] or None, and those of `parameters`.
        """
        if not needs_dx:
            return None, self._parameter_gradients(
                dy, dy @ self.weight[:, self.inputs :], extended, masks
            )
        # [tokens, all outputs] . [all outputs, inputs + rank]: both gradients in one product.
        dextended = dy @ self.weight
        dx, dxa = dextended[:, : self.inputs], dextended[:, self.inputs :]
        gradients = self._parameter_gradients(dy, dxa, extended, masks)
        # dx = dy W + dxa A. The second term is added in place, in the first columns of `dextended`.
        if not masks:
            return (dx.addmm_(dxa, self._scaled_A) if self.rank else dx), gradients
        for mask, (_, columns) in zip(masks, self._slices, strict=True):
            dx = dx + mask * (dxa[:, columns] @ self._scaled_A[columns])
        return dx, gradients

    def _parameter_gradients(
        self, dy: Tensor, dxa: Tensor, extended: Tensor, masks: list[Tensor]
    ) -> list[Tensor]:
        """Computes dA and dB of each update, alternating, in the parameters' dtype."""
        if not self.rank:
            return []
        x, xa = extended[:, : self.inputs], extended[:, self.inputs :]
        stacked_da = None if masks else dxa.t() @ x
        gradients = []
        for number, (update, (rows, columns)) in enumerate(
            zip(self.updates, self._slices, strict=True)
        ):
            da = (
                dxa[:, columns].t() @ (x * masks[number])
                if stacked_da is None
                else stacked_da[columns]
            )
            # dB^T = (x A^T)^T dy: on two threads a third faster than dy^T (x A^T).
            db = (xa[:, columns].t() @ dy[:, rows]).t()
            gradients += [
                da.to(update.lora_A.dtype).mul_(update.scale),
                db.to(update.lora_B.dtype, memory_format=torch.contiguous_format),
            ]
        return gradients


class AdapterRefresh:
    """Copies A and B, as the optimizer left them, into the groups' matrices; once before each forward pass.

    Args:
        groups: all groups of a model.
    """

    def __init__(self, groups: Sequence[LoraGroup]) -> None:
        self._groups = groups
        pairs = [group.parameter_copies for group in groups]
        self._copies = [copy for copies, _ in pairs for copy in copies]
        self._parameters = [parameter for _, parameters in pairs for parameter in parameters]

    @torch.no_grad()
    def __call__(self, *, disabled: bool = False) -> None:
        """Copies the parameters into the matrices and scales the copies of A.

        Args:
            disabled: whether the groups are to compute what their base modules compute.
        """
        torch._foreach_copy_(self._copies, self._parameters)  # one kernel for all on a GPU
        for group in self._groups:
            group.scale_copies(disabled=disabled)
