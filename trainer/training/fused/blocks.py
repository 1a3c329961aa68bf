"""The parts of a decoder layer of the Llama family, each with its own backward pass.

Hidden states are (tokens, width): rows of the dataset stand behind one another without padding. The gated product,
wide and cheap to make, is made again in the backward pass instead of being kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from trainer.training.fused.attention_layout import RotaryTables
from trainer.training.fused.lora_linear import LoraGroup


class Norm:
    """Root mean square norm: x ↦ weight · x / √(mean(x²) + eps).

    Args:
        weight: (width,), frozen.
        eps: as above.
        dtype: of the result.
    """

    def __init__(self, weight: Tensor, eps: float, dtype: torch.dtype) -> None:
        self._weight = weight.detach().float()
        self._eps = eps
        self._dtype = dtype

    def scale(self, x: Tensor) -> Tensor:
        """1 / √(mean(x²) + eps): float32 (tokens, 1)."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale: Tensor = norm.square_().div_(x.shape[-1]).add_(self._eps).rsqrt_()
        return scale

    def into(self, out: Tensor, x: Tensor, scale: Tensor) -> None:
        """Write the normed `x` to `out`."""
        out.copy_(_float_copy(x).mul_(scale).mul_(self._weight))

    def backward(self, dy: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        """The gradient of x, float32, from the one of the result: s·g - x·s³·mean(g·x), where g = weight·dy."""
        wide, g = x.float(), _float_copy(dy).mul_(self._weight)
        mean = (g * wide).sum(-1, keepdim=True).div_(x.shape[-1])
        return g.mul_(scale).addcmul_(wide, mean.mul_(scale.pow(3)), value=-1)


def _float_copy(x: Tensor) -> Tensor:
    """To compute on in place: on a CPU that takes a third of the time that a product in new memory takes."""
    return x.to(torch.float32, copy=True)


class NormLinear(Function):
    """Norm, then a group of linear layers: (tokens, width) → (tokens, all outputs)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Norm, group: LoraGroup, training: bool, *_parameters: Tensor) -> Tensor:
        """(tokens, all outputs), of x (tokens, width)."""
        scale = norm.scale(x)
        wide = _normed(x, norm, scale, group)
        masks = group.fill(wide, training=training)
        ctx.norm, ctx.group = norm, group
        ctx.save_for_backward(x, scale, wide, *masks)
        return group.forward(wide)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """The gradients of x and of the group's parameters."""
        x, scale, wide, *masks = ctx.saved_tensors
        dx, gradients = ctx.group.backward(dy, wide, masks, into_input=ctx.needs_input_grad[0])
        if dx is not None:
            dx = ctx.norm.backward(dx, x, scale).to(x.dtype)
        return dx, None, None, None, *gradients


def _normed(x: Tensor, norm: Norm, scale: Tensor, group: LoraGroup) -> Tensor:
    wide = torch.empty(x.shape[0], group.inputs + group.rank, dtype=group.weight.dtype, device=x.device)
    norm.into(wide[:, : group.inputs], x, scale)
    return wide


def _added(residual: Tensor, y: Tensor) -> Tensor:
    """The sum, in the residual's numbers; in y's place where those are the same."""
    return y.add_(residual) if y.dtype == residual.dtype else residual + y


class ResidualLinear(Function):
    """(residual, x) ↦ residual + the group's linear layer of x."""

    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, x: Tensor, group: LoraGroup, training: bool, *_parameters: Tensor
    ) -> Tensor:
        """As the class says; both (tokens, width)."""
        wide, masks = group.widen(x, training=training)
        ctx.group = group
        ctx.save_for_backward(wide, *masks)
        return _added(residual, group.forward(wide))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """The gradients of both and of the group's parameters."""
        wide, *masks = ctx.saved_tensors
        dx, gradients = ctx.group.backward(dy.to(wide.dtype), wide, masks)
        return dy, dx, None, None, *gradients


class Mlp(Function):
    """x ↦ x + down(silu(gate(norm(x))) · up(norm(x)))."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm: Norm,
        gate_up: LoraGroup,
        down: LoraGroup,
        training: bool,
        *_parameters: Tensor,
    ) -> Tensor:
        """As the class says; x is (tokens, width)."""
        scale = norm.scale(x)
        wide = _normed(x, norm, scale, gate_up)
        masks = gate_up.fill(wide, training=training)
        hidden = gate_up.forward(wide)
        gate, up = hidden.chunk(2, dim=1)
        inner, active = _activated(gate, up, down)
        inner_masks = down.fill(inner, training=training)
        ctx.norm, ctx.gate_up, ctx.down, ctx.masks = norm, gate_up, down, len(masks)
        inner_xa = inner[:, down.inputs :].clone()
        ctx.save_for_backward(x, scale, wide, hidden, active, inner_xa, *masks, *inner_masks)
        return _added(x, down.forward(inner))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """The gradients of x and of both groups' parameters."""
        x, scale, wide, hidden, active, inner_xa, *masks = ctx.saved_tensors
        gate_up, down = ctx.gate_up, ctx.down
        gate, up = hidden.chunk(2, dim=1)
        inner = _widened(active, up, down)
        inner[:, down.inputs :] = inner_xa
        dinner, down_gradients = down.backward(dy.to(inner.dtype), inner, masks[ctx.masks :])
        dhidden = torch.empty_like(hidden)
        torch.mul(dinner, active, out=dhidden[:, down.inputs :])
        torch.ops.aten.silu_backward.grad_input(dinner.mul_(up), gate, grad_input=dhidden[:, : down.inputs])
        dwide, gradients = gate_up.backward(dhidden, wide, masks[: ctx.masks])
        dx = ctx.norm.backward(dwide, x, scale).add_(dy).to(x.dtype)
        return dx, None, None, None, None, *gradients, *down_gradients


def _activated(gate: Tensor, up: Tensor, down: LoraGroup) -> tuple[Tensor, Tensor]:
    """silu(gate) · up, with room behind for the low-rank part; and silu(gate)."""
    active = torch.nn.functional.silu(gate)
    return _widened(active, up, down), active


def _widened(active: Tensor, up: Tensor, down: LoraGroup) -> Tensor:
    inner = active.new_empty(active.shape[0], down.inputs + down.rank)
    torch.mul(active, up, out=inner[:, : down.inputs])
    return inner


class Rotation(Function):
    """Rotary position embedding, in place, on the first `heads` heads of (tokens, all heads, head width)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int, tables: RotaryTables) -> Tensor:
        """Turns x itself; tables are cosines and sines, (tokens, 1, half a head's width)."""
        ctx.heads, ctx.tables = heads, tables
        ctx.mark_dirty(x)
        cos, sin = tables
        return _rotate(x, heads, cos, sin)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """Turn the gradient back."""
        cos, sin = ctx.tables
        return _rotate(dy.clone(), ctx.heads, cos, -sin), None, None


def _rotate(x: Tensor, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs are (i, i + half): (a, b) ↦ (a cos - b sin, b cos + a sin); tables are (tokens, 1, half)."""
    first, second = x[:, :heads].chunk(2, dim=2)
    turned = first * sin
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).add_(turned)
    return x
