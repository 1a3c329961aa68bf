"""Computes the gradient of each row with Opacus's hooks, and checks that they are the rows' gradients.

Clipping bounds the influence of a row only if each `grad_sample` is the gradient of exactly one row. Opacus takes
the first dimension of a layer's input for the batch, and handles a layer without a rule of its own in a generic
way. Where a model merges rows and tokens into one dimension, shares a parameter or calls a layer twice, it
computes wrong numbers without an error. So there are three checks:

- only the weights of plain `nn.Linear` layers may be trained (`require_linear`);
- the shape of each gradient is checked in every step;
- before the first step, the gradients of real rows are compared with those that autograd computes for one row at a
  time (`trainer.training.privacy.gradient_equivalence`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer.training.loss import CausalLoss
from trainer.training.privacy.row_coupling import unproven
from trainer.training.token_store import Batch


class RowGradients:
    """Computes `grad_sample` of every trained parameter: float32 [rows, *shape].

    Args:
        model: PEFT model in training mode; has hooks until `close`.
        loss: loss of the model, computed through the model's own modules: the fused pass would bypass the hooks.

    Raises:
        JobError: `PRIVACY_UNPROVEN`: a parameter other than the weight of a plain linear layer is trained.
    """

    def __init__(self, model: Any, loss: CausalLoss) -> None:
        require_linear(model)
        from opacus.grad_sample import GradSampleHooks  # noqa: PLC0415 -- an optional dependency

        self._loss = loss
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._hooks = GradSampleHooks(model, loss_reduction="sum", strict=True)

    def close(self) -> None:
        """Removes the hooks from the model."""
        self._hooks.cleanup()

    def compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Computes the gradient of each row of a batch; a row's loss is the mean over its trained tokens.

        The gradient of a row is set to 0 if it is not finite. Clipping cannot bound it (infinity · 0 is NaN), and
        one such row would make the sum over all rows NaN.

        Returns:
            Loss summed over all trained tokens, in nats: scalar; L2 norm of each row's gradient: float32 [rows].
            Both on the device.
        """
        token_losses, means = row_means(self._loss, batch)
        with _without_hook_warnings():
            # Rows do not interact in the model, so the gradient of the sum contains each row's own gradient, which
            # the hooks separate. A mean over rows would scale each one by the size of the micro-batch.
            means.sum().backward()  # type: ignore[no-untyped-call]
        self._require_rows(len(batch.lengths))
        return token_losses.detach().sum(), self._zero_non_finite()

    def set_empty(self) -> None:
        """Sets gradients of 0 rows: a step that draws no row still adds noise, so it must run."""
        for parameter in self.parameters:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))

    def of_each_row(self, batch: Batch) -> Tensor:
        """Returns the gradients of a batch's rows as the hooks compute them: float32 [rows, adapter size]."""
        self.compute(batch)
        found = torch.cat([_flat(parameter.grad_sample) for parameter in self.parameters], dim=1)
        # The optimizer would take what is left here for gradients of its first step.
        for parameter in self.parameters:
            parameter.grad_sample, parameter.grad = None, None
        return found

    def by_autograd(self, batch: Batch) -> Tensor:
        """Returns the gradient of a batch of one row without the hooks: float32 [adapter size]."""
        self._hooks.disable_hooks()
        try:
            means = row_means(self._loss, batch)[1]
            with _without_hook_warnings():
                gradients = torch.autograd.grad(means.sum(), self.parameters)
        finally:
            self._hooks.enable_hooks()
        return torch.cat([gradient.float().flatten() for gradient in gradients])

    @property
    def is_16_bit(self) -> bool:
        """Whether weights or products have 16 bits."""
        return self._loss.is_low_precision or any(
            one.dtype != torch.float32 for one in self.parameters
        )

    def _require_rows(self, rows: int) -> None:
        """Checks that each parameter has one gradient for each row: without them it would escape clipping."""
        for parameter in self.parameters:
            found = getattr(parameter, "grad_sample", None)
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            if shape != (rows, *parameter.shape):
                raise unproven(
                    "a parameter has no gradient for each row",
                    expected=(rows, *parameter.shape),
                    found=shape,
                )

    @torch.no_grad()
    def _zero_non_finite(self) -> Tensor:
        """Converts the gradients to float32 and sets those of rows that are not finite to 0.

        Float32 because clipping divides by the norm: a norm rounded down to 16 bits would leave the row above the
        bound.

        Returns:
            L2 norm of each row's gradient over all parameters: float32 [rows].
        """
        samples = [parameter.grad_sample.float() for parameter in self.parameters]
        # ‖g‖ = ‖(‖g_1‖, ‖g_2‖, …)‖: the norm of a row's norms per parameter is the norm of its gradient.
        norms = torch.stack([_flat(sample).norm(dim=1) for sample in samples]).norm(dim=0)
        finite = torch.isfinite(norms)
        for parameter, sample in zip(self.parameters, samples, strict=True):
            mask = finite.view(-1, *[1] * (sample.dim() - 1))
            parameter.grad_sample = torch.where(mask, sample, 0.0)
        return torch.where(finite, norms, 0.0)


def row_means(loss: CausalLoss, batch: Batch) -> tuple[Tensor, Tensor]:
    """Computes the losses of all trained tokens, [targets], and the mean of each row, [rows]; in nats, with graph.

    The mean makes a row's gradient independent of its length, so that one bound fits short and long rows.
    """
    token_losses = loss.token_losses(batch)
    # Row of each trained token: `cu_seqlens[1:]` holds the end of each row in the flattened batch.
    row = torch.searchsorted(batch.cu_seqlens[1:], batch.logit_positions, right=True)
    rows = len(batch.lengths)
    counts = torch.bincount(row, minlength=rows).to(token_losses.dtype)
    sums = token_losses.new_zeros(rows).index_add(0, row, token_losses)
    return token_losses, sums / counts


def require_linear(model: Any) -> None:
    """Checks that each trained parameter is the weight of one plain linear layer, and not that of the head.

    Raises:
        JobError: `PRIVACY_UNPROVEN`: names the first parameter that is not.
    """
    head = model.get_base_model().get_output_embeddings()
    inside_head = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    owners: dict[int, int] = {}
    for name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if not parameter.requires_grad:
                continue
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
            # The exact type: a subclass, or a layer with buffers, may compute more than Opacus's rule assumes.
            plain = type(module) is nn.Linear and not any(
                True for _ in module.buffers(recurse=False)
            )
            if not plain or id(parameter) in inside_head or owners[id(parameter)] > 1:
                raise unproven(
                    "a trained parameter is not the weight of a linear layer of its own",
                    expected="LoRA on linear layers but the head",
                    found=f"{name}.{leaf} of {type(module).__name__}",
                )


@contextmanager
def _without_hook_warnings() -> Iterator[None]:
    """Silences torch's warning about hooks on layers whose input requires no gradient.

    The first layer is one; the equivalence check has compared its gradients too.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        yield


def _flat(sample: Tensor) -> Tensor:
    """Flattens all dimensions but the first: [rows, *shape] to [rows, numel]."""
    return sample.reshape(sample.shape[0], -1)
