"""Cross-entropy behind the head, a few tokens at a time: the logits of a batch never exist as a whole.

A token's loss depends on its own hidden state alone, so that state's gradient is known as soon as the logits are,
up to the factor that the backward pass brings for the token: it is made in the forward pass, and each logit is
computed once.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import Function

PRODUCT_ELEMENTS: Final = {"cpu": 12 << 20, "cuda": 64 << 20}
"""Logits of one product: on a CPU, enough tokens for its full speed."""

SOFTMAX_ELEMENTS: Final = {"cpu": 1 << 19, "cuda": 64 << 20}
"""Logits whose softmax is made at a time: on a CPU they should stay in a core's cache."""


class HeadLoss(Function):
    """Negative log-likelihood of each token, in nats."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        """See the class.

        Args:
            ctx: autograd's.
            hidden: (tokens, width).
            head: (vocabulary, width), frozen, in the numbers to compute in.
            bias: (vocabulary,), frozen, or None.
            targets: int64 (tokens,).

        Returns:
            float32 (tokens,).
        """
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        size = _rows(PRODUCT_ELEMENTS, head)
        for start in range(0, hidden.shape[0], size):
            here = slice(start, start + size)
            logits = torch.nn.functional.linear(hidden[here].to(head.dtype), head, bias)
            losses[here] = _into_gradient(logits, targets[here])
            if gradient is not None:
                torch.mm(logits, head, out=gradient[here]) if gradient.dtype == head.dtype else (
                    gradient[here].copy_(logits @ head)
                )
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, factors: Tensor) -> Any:
        """The hidden states' gradient, made already, times what comes in for each token."""
        (gradient,) = ctx.saved_tensors
        return gradient * factors.to(gradient.dtype).unsqueeze(1), None, None, None


def _rows(elements: dict[str, int], head: Tensor) -> int:
    return max(4, elements[head.device.type] // head.shape[0])


def _into_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Turn logits (tokens, vocabulary) into their gradient, softmax - onehot, in place; returns the losses.

    The loss of a token is logsumexp - logit of its target. The largest probability p of a token is never small, so
    logsumexp = largest logit - log p is exact, and takes no second pass of exponentials.
    """
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    size = _rows(SOFTMAX_ELEMENTS, logits.t())
    room = torch.empty(min(size, logits.shape[0]), logits.shape[1], dtype=torch.float32, device=logits.device)
    minus_one = room.new_full((1, 1), -1.0)
    for start in range(0, logits.shape[0], size):
        here = slice(start, start + size)
        block, chosen = logits[here], targets[here].unsqueeze(1)
        odds = room[: block.shape[0]].copy_(block)
        largest, wanted = odds.amax(1), odds.gather(1, chosen).squeeze(1)
        torch.softmax(odds, 1, out=odds)
        losses[here] = largest - odds.amax(1).log() - wanted
        block.copy_(odds.scatter_add_(1, chosen, minus_one.expand_as(chosen)))
    return losses
