"""The loss: summed negative log-likelihood of the trained tokens, in nats, and nothing computed for the others.

The head of a language model is its widest layer. Only hidden states that predict a trained token go through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from trainer.worker.batches import Tensors, by_length, collate
from trainer.worker.encode import Example
from trainer.worker.model import Precision


class CausalLoss:
    """Loss of one model.

    Args:
        model: PEFT model of a causal language model.
        precision: its device and numbers.
        pad_id: fills up batches.
    """

    def __init__(self, model: Any, precision: Precision, *, pad_id: int) -> None:
        self._model = model
        self._precision = precision
        self._pad_id = pad_id
        self.selects = self._selection_is_exact()

    def sum(self, examples: Sequence[Example]) -> torch.Tensor:
        """Loss summed over the trained tokens of a batch: float32 scalar on the device, with its graph."""
        batch = collate(examples, pad_id=self._pad_id, device=self._precision.device)
        with self._precision.context():
            logits = self._selected_logits(batch) if self.selects else self._all_logits(batch)
        return functional.cross_entropy(logits.float(), batch.targets, reduction="sum")

    @torch.no_grad()
    def mean(self, examples: Sequence[Example], *, batch_size: int) -> float:
        """Loss per trained token over many examples; every token counts alike, whichever row it is in."""
        was_training = self._model.training
        self._model.eval()
        lengths = [example.length for example in examples]
        batches = by_length(range(len(examples)), lengths, batch_size)
        total = torch.zeros((), dtype=torch.float64, device=self._precision.device)
        for indices in batches:
            total += self.sum([examples[index] for index in indices])
        self._model.train(was_training)
        return float(total.item()) / sum(example.targets for example in examples)

    def _selected_logits(self, batch: Tensors) -> torch.Tensor:
        causal = self._model.get_base_model()
        hidden = causal.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        head: torch.nn.Module = causal.get_output_embeddings()
        logits: torch.Tensor = head(hidden.flatten(0, 1).index_select(0, batch.positions))
        return logits

    def _all_logits(self, batch: Tensors) -> torch.Tensor:
        logits: torch.Tensor = self._model(input_ids=batch.input_ids, use_cache=False).logits
        return logits.flatten(0, 1).index_select(0, batch.positions)

    @torch.no_grad()
    def _selection_is_exact(self) -> bool:
        """Some models scale or cap their logits behind the head; compare once, on a few tokens, and see."""
        was_training = self._model.training
        self._model.eval()
        ids = torch.arange(1, 9, device=self._precision.device).unsqueeze(0)
        batch = Tensors(ids, torch.arange(8, device=ids.device), ids.squeeze(0))
        try:
            with self._precision.context():
                same = torch.equal(self._selected_logits(batch), self._all_logits(batch))
        except (AttributeError, TypeError, RuntimeError):
            same = False
        self._model.train(was_training)
        return same
