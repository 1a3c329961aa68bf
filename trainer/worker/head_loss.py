"""Cross-entropy behind the head, a few tokens at a time: the logits of a batch never exist as a whole.

The loss is a sum over tokens, so the gradient of the hidden states is known as soon as the logits are, up to the
factor that the backward pass brings: it is made in the forward pass, and each logit is computed once.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import Function

CHUNK_ELEMENTS: Final = {"cpu": 4 << 20, "cuda": 64 << 20}
"""Logits at a time: on a CPU they should stay in its cache."""


class HeadLoss(Function):
    """Negative log-likelihood, in nats, summed over tokens."""

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
            float32 scalar.
        """
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        size = max(16, CHUNK_ELEMENTS[hidden.device.type] // head.shape[0])
        for start in range(0, hidden.shape[0], size):
            here = slice(start, start + size)
            logits = torch.nn.functional.linear(hidden[here].to(head.dtype), head, bias)
            logs = torch.log_softmax(logits, -1, dtype=torch.float32)
            chosen = targets[here].unsqueeze(1)
            total -= logs.gather(1, chosen).sum()
            if gradient is not None:
                logs.exp_().scatter_add_(1, chosen, logs.new_full((1, 1), -1.0).expand_as(chosen))
                torch.mm(logs.to(head.dtype), head, out=gradient[here]) if gradient.dtype == head.dtype else (
                    gradient[here].copy_(logs.to(head.dtype) @ head)
                )
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> Any:
        """The hidden states' gradient, made already, times what comes in."""
        (gradient,) = ctx.saved_tensors
        return gradient * factor.to(gradient.dtype), None, None, None


@torch.no_grad()
def token_losses(hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """The loss of each token, float32 (tokens,), without a graph; arguments as in `HeadLoss.forward`."""
    size = max(16, CHUNK_ELEMENTS[hidden.device.type] // head.shape[0])
    parts = [
        torch.nn.functional.cross_entropy(
            torch.nn.functional.linear(some.to(head.dtype), head, bias).float(), wanted, reduction="none"
        )
        for some, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    ]
    return torch.cat(parts)
