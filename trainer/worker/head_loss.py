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

CHUNK_ELEMENTS: Final = {"cpu": 4 << 20, "cuda": 64 << 20}
"""Logits at a time: on a CPU they should stay in its cache."""


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
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        size = max(16, CHUNK_ELEMENTS[hidden.device.type] // head.shape[0])
        for start in range(0, hidden.shape[0], size):
            here = slice(start, start + size)
            logits = torch.nn.functional.linear(hidden[here].to(head.dtype), head, bias)
            logs = torch.log_softmax(logits, -1, dtype=torch.float32)
            chosen = targets[here].unsqueeze(1)
            torch.neg(logs.gather(1, chosen).squeeze(1), out=losses[here])
            if gradient is not None:
                logs.exp_().scatter_add_(1, chosen, logs.new_full((1, 1), -1.0).expand_as(chosen))
                torch.mm(logs.to(head.dtype), head, out=gradient[here]) if gradient.dtype == head.dtype else (
                    gradient[here].copy_(logs.to(head.dtype) @ head)
                )
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, factors: Tensor) -> Any:
        """The hidden states' gradient, made already, times what comes in for each token."""
        (gradient,) = ctx.saved_tensors
        return gradient * factors.to(gradient.dtype).unsqueeze(1), None, None, None
