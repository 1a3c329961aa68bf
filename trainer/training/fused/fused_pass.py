"""The interface of the fused pass: whether a model can take it, and the loss of each trained token of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainer.training.engines.base import Precision
from trainer.training.fused.decoder import FusedDecoder, find_obstacle, read_heads
from trainer.training.fused.equivalence import attention_is_equivalent, loss_is_equivalent
from trainer.training.fused.head_loss import HeadLoss
from trainer.training.fused.prefix_sharing import FlatBatch, share_prefixes
from trainer.training.out_of_memory import is_out_of_memory
from trainer.training.token_store import Batch

UnfusedLoss = Callable[[Any, Batch], Tensor]
"""Loss that a PEFT model's own forward pass gives, summed over the targets of a batch."""


class FusedPass:
    """Computes losses of one model by the fused pass; make one with `try_fused`.

    Args:
        decoder: the model's fused forward pass.

    Attributes:
        share_prefixes: whether prefixes that rows have in common are computed once, where that is possible.
    """

    def __init__(self, decoder: FusedDecoder) -> None:
        self.share_prefixes = True
        self._decoder = decoder

    @property
    def adapted(self) -> bool:
        """Whether the adapter takes part; without it the model is the base model."""
        return self._decoder.adapted

    @adapted.setter
    def adapted(self, adapted: bool) -> None:
        self._decoder.adapted = adapted

    @property
    def row_lengths(self) -> Tensor:
        """Length of the row that each token of the present batch is in: [tokens, 1], for noise on embeddings."""
        return self._decoder.row_lengths

    def token_losses(
        self, batch: Batch, *, rows_per_unit: int = 1, is_noisy: bool = False
    ) -> Tensor:
        """Computes the negative log-likelihood of each target: float32 [targets], in nats, with its graph.

        Args:
            batch: the rows.
            rows_per_unit: how many consecutive rows make up a unit and are likely to begin alike.
            is_noisy: whether dropout or noise on embeddings is on. Then a prefix differs from row to row, and is
                not shared.
        """
        # The GPU's attention kernel knows no shared prefix.
        can_share = not (batch.input_ids.is_cuda or is_noisy)
        if can_share and self.share_prefixes:
            return _token_losses(self._decoder, share_prefixes(batch, rows_per_unit), batch.targets)
        return _token_losses(self._decoder, FlatBatch.without_sharing(batch), batch.targets)


def try_fused(
    model: Any,
    precision: Precision,
    unfused_loss: UnfusedLoss,
    *,
    longest: int,
    checkpointing: bool,
) -> FusedPass | None:
    """Makes the fused pass of a model, if its kind is known and it passes the equivalence check.

    The base model's linear layers become views into the fused pass's weights; the model itself still works.

    Args:
        model: PEFT model of a causal language model.
        precision: its device and number formats.
        unfused_loss: what the fused pass must agree with.
        longest: tokens of the longest row that will be trained or evaluated on.
        checkpointing: whether a layer's activations are recomputed in the backward pass instead of being kept.

    Returns:
        None where the model must take its own forward pass.
    """
    causal = model.get_base_model()
    dtype = torch.bfloat16 if precision.autocast else precision.weights
    if find_obstacle(causal, dtype, precision.device, longest=longest) is not None:
        return None

    def fused_loss(excerpt: Any, batch: Batch) -> Tensor:
        decoder = FusedDecoder(excerpt.get_base_model(), torch.float32, checkpointing=checkpointing)
        return _token_losses(decoder, FlatBatch.without_sharing(batch), batch.targets).sum()

    # The check works on a copy; only a model that passes is taken over by a decoder of its own.
    try:
        equivalent = loss_is_equivalent(model, unfused_loss, fused_loss)
        equivalent = equivalent and attention_is_equivalent(
            read_heads(causal), dtype, precision.device
        )
    except (
        RuntimeError,
        TypeError,
        AttributeError,
    ) as error:  # such as a kernel that this device lacks
        if is_out_of_memory(error):
            raise
        equivalent = False
    return (
        FusedPass(FusedDecoder(causal, dtype, checkpointing=checkpointing)) if equivalent else None
    )


def _token_losses(decoder: FusedDecoder, batch: FlatBatch, targets: Tensor) -> Tensor:
    hidden_states = decoder.hidden_states(batch)
    losses: Tensor = HeadLoss.apply(hidden_states, decoder.head, decoder.head_bias, targets)  # type: ignore[no-untyped-call]
    return losses
