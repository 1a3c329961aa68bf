"""Softmax cross-entropy after the head, in blocks of tokens: the logits of a batch never exist at once.

With hidden state h, head W [vocabulary, hidden size] and target t, the loss of a token and its gradient are

    z = W h + bias        loss = logsumexp(z) - z_t        dloss/dz = softmax(z) - onehot(t)        dloss/dh = dz W

A token's loss depends on its own hidden state alone, and the head is frozen. So dh is known as soon as the logits
are, up to the factor that the backward pass brings for the token. It is computed in the forward pass, block by
block, while the logits exist: each logit is computed once, no graph is kept, and what is saved for the backward
pass is as large as the hidden states.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import Function

PRODUCT_ELEMENTS: Final = {"cpu": 12 << 20, "cuda": 64 << 20}
"""Logits in one matrix product, by device: on a CPU, enough tokens for its full speed."""

SOFTMAX_ELEMENTS: Final = {"cpu": 1 << 19, "cuda": 64 << 20}
"""Logits in one softmax, by device: on a CPU, 2 MiB of float32, which stay in a core's cache."""


class HeadLoss(Function):
    """Negative log-likelihood of each token's target, in nats."""

    @staticmethod
    def forward(
        ctx: Any, hidden_states: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        """Computes the losses, and the hidden states' gradient.

        Args:
            ctx: autograd's context.
            hidden_states: [targets, hidden size].
            head: [vocabulary, hidden size], frozen, in the dtype of the products.
            bias: [vocabulary], frozen, or None.
            targets: int64 [targets].

        Returns:
            float32 [targets].
        """
        # In an evaluation no gradient is needed, and none is computed.
        gradient = torch.empty_like(hidden_states) if ctx.needs_input_grad[0] else None
        losses = torch.empty(
            hidden_states.shape[0], dtype=torch.float32, device=hidden_states.device
        )
        size = _tokens_per_block(PRODUCT_ELEMENTS, head.device, vocabulary=head.shape[0])
        for start in range(0, hidden_states.shape[0], size):
            block = slice(start, start + size)
            logits = torch.nn.functional.linear(hidden_states[block].to(head.dtype), head, bias)
            losses[block] = _losses_and_gradient(logits, targets[block])
            if gradient is not None:  # `logits` now holds dloss/dz
                torch.mm(logits, head, out=gradient[block]) if gradient.dtype == head.dtype else (
                    gradient[block].copy_(logits @ head)
                )
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> Any:
        """Multiplies the gradient of the forward pass by what comes in for each token: float32 [targets]."""
        (gradient,) = ctx.saved_tensors
        return gradient * grad_losses.to(gradient.dtype).unsqueeze(1), None, None, None


def _tokens_per_block(elements: dict[str, int], device: torch.device, *, vocabulary: int) -> int:
    return max(4, elements[device.type] // vocabulary)


def _losses_and_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the losses of logits [tokens, vocabulary], and replaces the logits by their gradient.

    The largest probability p of a token is at least 1 / vocabulary, never tiny, so largest logit - log p is
    exactly the logsumexp. That saves the second pass of exponentials that `logsumexp` takes.
    """
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    size = _tokens_per_block(SOFTMAX_ELEMENTS, logits.device, vocabulary=logits.shape[1])
    # One float32 buffer for all blocks: it stays in the cache, where new memory would not be.
    buffer = torch.empty(
        min(size, logits.shape[0]), logits.shape[1], dtype=torch.float32, device=logits.device
    )
    minus_one = buffer.new_full((1, 1), -1.0)
    for start in range(0, logits.shape[0], size):
        rows = slice(start, start + size)
        block, target = logits[rows], targets[rows].unsqueeze(1)
        values = buffer[: block.shape[0]].copy_(block)
        largest, target_logit = values.amax(1), values.gather(1, target).squeeze(1)
        torch.softmax(values, 1, out=values)
        losses[rows] = largest - values.amax(1).log() - target_logit
        # softmax - onehot, rounded once to the logits' dtype.
        block.copy_(values.scatter_add_(1, target, minus_one.expand_as(target)))
    return losses
