"""The gradient of each row by itself, through Opacus's hooks, and the proof that it is that.

Opacus takes the first dimension of what reaches a layer for the batch and every layer it has no rule for through a
general one. Where a model folds rows into tokens, shares a parameter or calls a layer twice, it goes on with
wrong numbers. So only plain `nn.Linear` layers may be trained, each gradient's shape is looked at in every step,
and before the first step the gradients of real rows are compared with those of the rows one at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainer.errors import ErrorCode, JobError
from trainer.training.loss import CausalLoss
from trainer.training.token_store import Batch

_TOLERANCE: Final = {False: 2e-3, True: 5e-2}
"""Of a row's whole gradient: in float32, and where products run in 16 bits."""


class RowGradients:
    """Fills `grad_sample` of every trained parameter, [rows, *shape] in float32.

    Args:
        model: PEFT model in training mode; hooks stay on it until `close`.
        loss: its loss, the way that goes through the model's own modules.

    Raises:
        JobError: `PRIVACY_UNPROVEN`: something but plain linear layers is trained.
    """

    def __init__(self, model: Any, loss: CausalLoss) -> None:
        require_linear(model)
        from opacus.grad_sample import GradSampleHooks  # noqa: PLC0415 -- an optional dependency

        self._loss = loss
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._hooks = GradSampleHooks(model, loss_reduction="sum", strict=True)

    def close(self) -> None:
        """Take the hooks off again."""
        self._hooks.cleanup()

    def compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Gradients of a batch, a row's loss being the mean over its trained tokens.

        A row whose gradient is not finite counts as none: a single one would make the whole sum so.

        Returns:
            Loss summed over all trained tokens, in nats; L2 norm of each row's gradient, [rows]; on the device.
        """
        each, means = row_means(self._loss, batch)
        with _first_layer_unremarked():
            means.sum().backward()  # type: ignore[no-untyped-call]
        self._require_rows(len(batch.lengths))
        return each.detach().sum(), self._settle()

    def set_empty(self) -> None:
        """Gradients of no row at all."""
        for parameter in self.parameters:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))

    def require_equivalence(self, batches: Sequence[Batch]) -> None:
        """Compare: each batch as a whole, and its rows one at a time by torch's own backward pass.

        Raises:
            JobError: `PRIVACY_UNPROVEN`: they differ.
        """
        coarse = (
            any(parameter.dtype != torch.float32 for parameter in self.parameters) or self._loss.is_low_precision
        )
        with _updates_that_matter(self.parameters):
            worst = max(self._difference(batch) for batch in batches)
        if not worst <= _TOLERANCE[coarse]:
            raise unproven(
                "the gradients of rows are not those of the rows by themselves",
                expected=f"a difference of at most {_TOLERANCE[coarse]} of a row's gradient",
                found=f"{worst:.3g}",
            )

    def _difference(self, batch: Batch) -> float:
        """The largest over the rows, relative to the row's gradient."""
        self.compute(batch)
        together = [_flat(parameter.grad_sample) for parameter in self.parameters]
        self._clear()
        self._hooks.disable_hooks()
        differences = []
        for row in range(len(batch.lengths)):
            means = row_means(self._loss, _row(batch, row))[1]
            with _first_layer_unremarked():
                alone = torch.cat([part.flatten() for part in torch.autograd.grad(means.sum(), self.parameters)])
            found = torch.cat([part[row] for part in together])
            differences.append(float((found - alone).norm() / alone.norm().clamp_min(1e-12)))
        self._hooks.enable_hooks()
        return max(differences)

    def _clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad_sample, parameter.grad = None, None

    def _require_rows(self, rows: int) -> None:
        for parameter in self.parameters:
            found = getattr(parameter, "grad_sample", None)
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            if shape != (rows, *parameter.shape):
                raise unproven(
                    "a parameter has no gradient for each row", expected=(rows, *parameter.shape), found=shape
                )

    @torch.no_grad()
    def _settle(self) -> Tensor:
        """Gradients as float32: a norm that was rounded to 16 bits would let a row through above the bound."""
        samples = [parameter.grad_sample.float() for parameter in self.parameters]
        norms = torch.stack([_flat(sample).norm(dim=1) for sample in samples]).norm(dim=0)
        sound = torch.isfinite(norms)
        for parameter, sample in zip(self.parameters, samples, strict=True):
            mask = sound.view(-1, *[1] * (sample.dim() - 1))
            parameter.grad_sample = torch.where(mask, sample, 0.0)
        return torch.where(sound, norms, 0.0)


def row_means(loss: CausalLoss, batch: Batch) -> tuple[Tensor, Tensor]:
    """Losses of all trained tokens, [targets], and their mean for each row, [rows]; in nats, with their graph."""
    each = loss.token_losses(batch)
    row = torch.searchsorted(batch.cu_seqlens[1:], batch.logit_positions, right=True)
    rows = len(batch.lengths)
    counts = torch.bincount(row, minlength=rows).to(each.dtype)
    sums = torch.zeros(rows, dtype=each.dtype, device=each.device).index_add(0, row, each)
    return each, sums / counts


def require_linear(model: Any) -> None:
    """Demand that only weights of plain linear layers be trained, each in one place, the head not among them.

    Raises:
        JobError: `PRIVACY_UNPROVEN`, naming the parameter.
    """
    head = model.get_base_model().get_output_embeddings()
    inside_head = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    owners: dict[int, int] = {}
    for name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if not parameter.requires_grad:
                continue
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
            plain = type(module) is nn.Linear and not any(True for _ in module.buffers(recurse=False))
            if not plain or id(parameter) in inside_head or owners[id(parameter)] > 1:
                raise unproven(
                    "a trained parameter is not the weight of a linear layer of its own",
                    expected="LoRA on linear layers but the head",
                    found=f"{name}.{leaf} of {type(module).__name__}",
                )


def unproven(message: str, *, expected: object, found: object) -> JobError:
    """The error that ends a private run whose promise would not hold."""
    return JobError(
        ErrorCode.PRIVACY_UNPROVEN,
        message,
        expected=expected,
        found=found,
        hint="choose other lora.lora_target_modules, or another base model; see docs/privacy.md",
    )


@contextmanager
def _updates_that_matter(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """A fresh adapter does nothing, B being zero, and A then has no gradient: for a moment both have."""
    kept = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


@contextmanager
def _first_layer_unremarked() -> Iterator[None]:
    """Torch warns of hooks on layers whose input takes no gradient; theirs are among those that are proved."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        yield


def _row(batch: Batch, row: int) -> Batch:
    """One row of a batch as a batch."""
    first, last = batch.cu_seqlens[row].item(), batch.cu_seqlens[row + 1].item()
    here = (batch.logit_positions >= first) & (batch.logit_positions < last)
    tokens = slice(int(first), int(last))
    return Batch(
        batch.input_ids[tokens],
        batch.position_ids[tokens],
        (batch.lengths[row],),
        batch.cu_seqlens[row : row + 2] - first,
        batch.logit_positions[here] - int(first),
        batch.targets[here],
    )


def _flat(sample: Tensor) -> Tensor:
    return sample.reshape(sample.shape[0], -1)
