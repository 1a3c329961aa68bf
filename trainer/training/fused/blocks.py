"""The parts of a decoder layer of the Llama family, each an autograd function with a backward pass of its own.

Hidden states are [tokens, hidden size]: rows are concatenated without padding. A layer is

    qkv  = Linear(RmsNorm(x))                                 NormLinear
    x    = x + Linear(attention(qkv))                         ResidualLinear
    x    = x + Linear(silu(gate) * up)                        GatedMlp
           where [gate, up] = Linear(RmsNorm(x))

Autograd would keep every intermediate result and compute gradients of frozen weights too. Here each part keeps its
input and the inputs of its matrix products; what is wide but cheap, such as silu(gate) * up, is computed again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from trainer.training.fused.attention_layout import RotaryTables
from trainer.training.fused.lora_linear import LoraGroup


class RmsNorm:
    """Root mean square norm: x -> weight * x / sqrt(mean(x^2) + eps). Computed in float32.

    Args:
        weight: [hidden size], frozen.
        eps: as above.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight.detach().float()
        self._eps = eps

    def inverse_rms(self, x: Tensor) -> Tensor:
        """Computes s = 1 / sqrt(mean(x^2) + eps): float32 [tokens, 1]."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse_rms: Tensor = norm.square_().div_(x.shape[-1]).add_(self._eps).rsqrt_()
        return inverse_rms

    def write(self, out: Tensor, x: Tensor, inverse_rms: Tensor) -> None:
        """Writes the normalized `x` to `out`."""
        out.copy_(_copy_as_float32(x).mul_(inverse_rms).mul_(self._weight))

    def backward(self, dy: Tensor, x: Tensor, inverse_rms: Tensor) -> Tensor:
        """Computes the gradient of x: float32 [tokens, hidden size].

        With g = weight * dy and s = inverse_rms, dx = s g - x s^3 mean(g x): the second term is what x adds to its
        own norm.
        """
        exact, g = x.float(), _copy_as_float32(dy).mul_(self._weight)
        mean = (g * exact).sum(-1, keepdim=True).div_(x.shape[-1])
        return g.mul_(inverse_rms).addcmul_(exact, mean.mul_(inverse_rms.pow(3)), value=-1)


def _copy_as_float32(x: Tensor) -> Tensor:
    """Copies x, to compute on the copy in place: on a CPU three times as fast as a product into new memory."""
    return x.to(torch.float32, copy=True)


class NormLinear(Function):
    """A norm and a group of linear layers: [tokens, hidden size] -> [tokens, all outputs]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: RmsNorm, group: LoraGroup, training: bool, *_parameters: Tensor
    ) -> Tensor:
        """Computes Linear(RmsNorm(x)).

        Args:
            ctx: autograd's context.
            x: [tokens, hidden size].
            norm: the norm.
            group: the linear layers.
            training: whether dropout is on.
            _parameters: `group.parameters`. The group has them; autograd must see what gets a gradient.
        """
        inverse_rms = norm.inverse_rms(x)
        extended = _normalize_into_new(x, norm, inverse_rms, group)
        masks = group.fill_low_rank(extended, training=training)
        ctx.norm, ctx.group = norm, group
        ctx.save_for_backward(x, inverse_rms, extended, *masks)
        return group.forward(extended)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """Computes the gradients of x and of the group's parameters."""
        x, inverse_rms, extended, *masks = ctx.saved_tensors
        # In the first layer x is the frozen embedding's output, and needs no gradient.
        dx, gradients = ctx.group.backward(dy, extended, masks, needs_dx=ctx.needs_input_grad[0])
        if dx is not None:
            dx = ctx.norm.backward(dx, x, inverse_rms).to(x.dtype)
        return dx, None, None, None, *gradients


def _normalize_into_new(x: Tensor, norm: RmsNorm, inverse_rms: Tensor, group: LoraGroup) -> Tensor:
    """Allocates a group's [x, x A^T] and writes the normalized x into its first columns."""
    extended = torch.empty(
        x.shape[0], group.inputs + group.rank, dtype=group.weight.dtype, device=x.device
    )
    norm.write(extended[:, : group.inputs], x, inverse_rms)
    return extended


def _add_residual(residual: Tensor, y: Tensor) -> Tensor:
    """Adds in the residual's dtype; in y's memory where y has the same."""
    return y.add_(residual) if y.dtype == residual.dtype else residual + y


class ResidualLinear(Function):
    """(residual, x) -> residual + Linear(x), with one linear layer in the group."""

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        x: Tensor,
        group: LoraGroup,
        training: bool,
        *_parameters: Tensor,
    ) -> Tensor:
        """Computes it.

        Args:
            ctx: autograd's context.
            residual: [tokens, hidden size].
            x: [tokens, inputs].
            group: the linear layer.
            training: whether dropout is on.
            _parameters: `group.parameters`, for autograd.
        """
        # [x, x A^T], which one product with [W, B] turns into x W^T + (x A^T) B^T.
        extended = x.new_empty(x.shape[0], group.inputs + group.rank)
        extended[:, : group.inputs] = x
        masks = group.fill_low_rank(extended, training=training)
        ctx.group = group
        ctx.save_for_backward(extended, *masks)
        return _add_residual(residual, group.forward(extended))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """Computes the gradients of the residual (dy itself), of x, and of the group's parameters."""
        extended, *masks = ctx.saved_tensors
        # The residual stream may be float32 where the products are in 16 bits.
        dx, gradients = ctx.group.backward(dy.to(extended.dtype), extended, masks)
        return dy, dx, None, None, *gradients


class GatedMlp(Function):
    """x -> x + down(silu(gate(norm(x))) * up(norm(x))): SwiGLU (arXiv 2002.05202) with norm and residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm: RmsNorm,
        gate_up: LoraGroup,
        down: LoraGroup,
        training: bool,
        *_parameters: Tensor,
    ) -> Tensor:
        """Computes it.

        Args:
            ctx: autograd's context.
            x: [tokens, hidden size].
            norm: the norm before the linear layers.
            gate_up: the layers gate and up, as one group.
            down: the layer down.
            training: whether dropout is on.
            _parameters: both groups' `parameters`, for autograd.
        """
        inverse_rms = norm.inverse_rms(x)
        extended = _normalize_into_new(x, norm, inverse_rms, gate_up)
        masks = gate_up.fill_low_rank(extended, training=training)
        hidden = gate_up.forward(extended)
        gate, up = hidden.chunk(2, dim=1)
        activation = torch.nn.functional.silu(gate)
        inner = _gated_product(activation, up, down)
        inner_masks = down.fill_low_rank(inner, training=training)
        ctx.norm, ctx.gate_up, ctx.down, ctx.num_masks = norm, gate_up, down, len(masks)
        # `inner` is wide: kept is its low-rank part only, and the backward pass multiplies the rest again.
        inner_xa = inner[:, down.inputs :].clone()
        ctx.save_for_backward(
            x, inverse_rms, extended, hidden, activation, inner_xa, *masks, *inner_masks
        )
        return _add_residual(x, down.forward(inner))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """Computes the gradients of x and of both groups' parameters."""
        x, inverse_rms, extended, hidden, activation, inner_xa, *masks = ctx.saved_tensors
        gate_up, down = ctx.gate_up, ctx.down
        gate, up = hidden.chunk(2, dim=1)
        inner = _gated_product(activation, up, down)
        inner[:, down.inputs :] = inner_xa
        dinner, down_gradients = down.backward(dy.to(inner.dtype), inner, masks[ctx.num_masks :])
        # inner = silu(gate) * up, so dup = dinner * silu(gate) and dgate = dinner * up * silu'(gate). dup comes
        # first: the second line overwrites dinner.
        dhidden = torch.empty_like(hidden)
        torch.mul(dinner, activation, out=dhidden[:, down.inputs :])
        torch.ops.aten.silu_backward.grad_input(
            dinner.mul_(up), gate, grad_input=dhidden[:, : down.inputs]
        )
        dnormalized, gradients = gate_up.backward(dhidden, extended, masks[: ctx.num_masks])
        # The residual's gradient, dy, is added to that through the norm.
        dx = ctx.norm.backward(dnormalized, x, inverse_rms).add_(dy).to(x.dtype)
        return dx, None, None, None, None, *gradients, *down_gradients


def _gated_product(activation: Tensor, up: Tensor, down: LoraGroup) -> Tensor:
    """Writes silu(gate) * up into the first columns of a new [tokens, inputs + rank] for the layer down."""
    inner = activation.new_empty(activation.shape[0], down.inputs + down.rank)
    torch.mul(activation, up, out=inner[:, : down.inputs])
    return inner


class RotaryEmbedding(Function):
    """Rotary position embedding (arXiv 2104.09864), in place, on the first heads of [tokens, heads, head_dim].

    As in Llama, a pair of numbers that is rotated together is (i, i + head_dim / 2).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, num_heads: int, tables: RotaryTables) -> Tensor:
        """Rotates x itself.

        Args:
            ctx: autograd's context.
            x: [tokens, all heads, head_dim].
            num_heads: how many heads are rotated, from the first on.
            tables: cosines and sines.
        """
        ctx.num_heads, ctx.tables = num_heads, tables
        ctx.mark_dirty(x)
        cos, sin = tables
        return _rotate(x, num_heads, cos, sin)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """Rotates the gradient by the opposite angle; on a copy, as autograd may still need dy."""
        cos, sin = ctx.tables
        return _rotate(dy.clone(), ctx.num_heads, cos, -sin), None, None


def _rotate(x: Tensor, num_heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates pairs (a, b) to (a cos - b sin, b cos + a sin), in place; tables are [tokens, 1, head_dim / 2]."""
    first, second = x[:, :num_heads].chunk(2, dim=2)
    first_times_sin = first * sin  # needed after `first` is overwritten
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).add_(first_times_sin)
    return x
