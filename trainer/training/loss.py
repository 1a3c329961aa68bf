"""The loss: negative log-likelihood of the trained tokens, in nats; little is computed for the others.

A model has one of three forward modes, chosen when the loss is made; the first that gives the model's own results
is taken:

- *fused*: `trainer.training.fused`, for the Llama family;
- *selected*: the model's own forward pass; the head, its widest layer, only where a trained token is predicted;
- *full*: the model's own logits of all tokens, for models that scale or cap them after the head.

The last two may be compiled: see `trainer.training.compilation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainer.training.batches import TokenCost, padded_cost
from trainer.training.compilation import Compilation
from trainer.training.engines.base import Precision
from trainer.training.fused import FusedPass, try_fused
from trainer.training.token_store import Batch


class ForwardMode(StrEnum):
    """How the logits of trained tokens are computed; the module's docstring describes each mode."""

    FUSED = "fused"
    SELECTED = "selected"
    FULL = "whole"  # the word that reports have for it


class CausalLoss:
    """The loss of one model.

    Args:
        model: PEFT model of a causal language model.
        precision: its device and number formats.
        pad_id: token id that pads batches to rectangles, where a model needs them.
        longest: tokens of the longest row there will be.
        checkpointing: whether activations are recomputed in the backward pass instead of being stored.
        neftune_alpha: strength of the noise on embeddings while training (NEFTune, arXiv 2310.05914), or None.
        fused: whether the fused pass may be taken.
        compilation: how the model is compiled; then the fused pass is not taken. None: not at all.
    """

    def __init__(
        self,
        model: Any,
        precision: Precision,
        *,
        pad_id: int,
        longest: int,
        checkpointing: bool = False,
        neftune_alpha: float | None = None,
        fused: bool = True,
        compilation: Compilation | None = None,
    ) -> None:
        self._model = model
        self._precision = precision
        self._pad_id = pad_id
        self._compilation = compilation
        self._mode = ForwardMode.SELECTED if self._selection_is_exact() else ForwardMode.FULL
        self._target_logits = (
            _selected_logits if self._mode is ForwardMode.SELECTED else _full_logits
        )
        self._fused: FusedPass | None = None
        if fused and compilation is None:
            self._fused = try_fused(
                model, precision, self._unfused_loss, longest=longest, checkpointing=checkpointing
            )
        if self._fused is not None:
            self._mode = ForwardMode.FUSED
        self._is_noisy = neftune_alpha is not None or any(
            isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules()
        )
        # Noise and compilation come last: what is compared above must be deterministic and uncompiled.
        if neftune_alpha is not None:
            self._add_embedding_noise(neftune_alpha)
        if compilation is not None:
            compilation.compile(model)

    @property
    def forward_mode(self) -> str:
        """The forward mode in words, for the report, with the mode of `torch.compile` where that is used."""
        return (
            self._mode
            if self._compilation is None
            else f"{self._mode}, compiled ({self._compilation.mode})"
        )

    @property
    def cost(self) -> TokenCost:
        """The function from the lengths of rows to the tokens that the model computes for them."""
        # The fused pass concatenates rows; every other mode pads them to the longest one.
        if self._fused is not None:
            return sum
        return padded_cost if self._compilation is None else self._compilation.cost

    def total_loss(self, batch: Batch) -> Tensor:
        """Returns the loss, summed over the targets of a batch: float32 scalar on the device, with its graph."""
        return self.token_losses(batch).sum()

    def row_losses(self, batch: Batch, *, rows_per_unit: int = 1) -> Tensor:
        """Returns the loss, summed over the targets of each row: float32 [rows] on the device, with its graph.

        Args:
            batch: the rows.
            rows_per_unit: number of consecutive rows that make up a unit, such as the answers to one prompt. The
                fused pass computes a prefix of a unit once where that saves more than a prefix of all rows.
        """
        return batch.sum_by_row(self.token_losses(batch, rows_per_unit=rows_per_unit))

    def token_losses(self, batch: Batch, *, rows_per_unit: int = 1) -> Tensor:
        """Returns the loss of each target: float32 [targets] on the device, with its graph.

        Args:
            batch: the rows.
            rows_per_unit: as in `row_losses`.
        """
        if self._fused is not None:
            # Dropout and noise are drawn for each row, so a common prefix differs from row to row while training.
            is_noisy = self._is_noisy and self._model.training
            return self._fused.token_losses(batch, rows_per_unit=rows_per_unit, is_noisy=is_noisy)
        padded_shape = None
        if self._compilation is not None:
            self._compilation.mark_step_begin()
            padded_shape = self._compilation.padded_shape
        # The model's own pass takes a padded rectangle; of its logits only those of the targets are used.
        with self._precision.context():
            logits = self._target_logits(self._model, *batch.padded(self._pad_id, padded_shape))
        # In float32: bfloat16 has 8 significant bits, which would round a loss to two decimal digits.
        return functional.cross_entropy(logits.float(), batch.targets, reduction="none")

    @property
    def is_low_precision(self) -> bool:
        """Whether matrix products are computed in 16 bits."""
        return self._precision.autocast or self._precision.weights is not torch.float32

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switches off dropout, noise and gradients within the block."""
        was_training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad():
                yield
        # Also after an error, which the caller may catch: a model in evaluation mode trains without dropout.
        finally:
            self._model.train(was_training)

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """Evaluates the model without its adapter within the block, which is the base model."""
        with self.evaluating(), self._model.disable_adapter():
            # The fused pass has copies of A and B in its own weights: PEFT's switch does not reach them.
            if self._fused is not None:
                self._fused.adapted = False
            try:
                yield
            finally:
                if self._fused is not None:
                    self._fused.adapted = True

    def _selection_is_exact(self) -> bool:
        """Returns whether the head's output is the model's logits, bit by bit.

        Some models scale or cap the head's output; training on the unscaled one would be another loss.
        """
        ids = torch.arange(1, 9, device=self._precision.device).unsqueeze(0)
        positions = torch.arange(8, device=ids.device)
        # A model whose parts have other names raises; then its logits are taken as they are.
        try:
            with self.evaluating(), self._precision.context():
                selected = _selected_logits(self._model, ids, positions)
                return torch.equal(selected, _full_logits(self._model, ids, positions))
        except (AttributeError, TypeError, RuntimeError):
            return False

    def _unfused_loss(self, model: Any, batch: Batch) -> Tensor:
        """Returns the loss, summed over the targets, by a model's own forward pass in the type of its weights."""
        # `model` is an argument because the equivalence check passes a copy of a few layers in float32.
        logits = self._target_logits(model, *batch.padded(self._pad_id))
        return functional.cross_entropy(logits, batch.targets, reduction="sum")

    def _add_embedding_noise(self, alpha: float) -> None:
        """Adds NEFTune's noise to every embedding while training: uniform in ±alpha / sqrt(tokens * hidden size).

        `tokens` is the length of the row: of the padded one in the model's own pass, of the row itself where there
        is no padding. Source: arXiv 2310.05914, algorithm 1.
        """
        embedding: torch.nn.Module = self._model.get_input_embeddings()

        def add_noise(module: torch.nn.Module, _inputs: object, output: Tensor) -> Tensor:
            if not module.training:
                return output
            # The fused pass embeds the rows as one sequence [tokens, hidden size], whose length is not a row's.
            tokens = (
                output.shape[-2]
                if self._fused is None
                else self._fused.row_lengths.to(output.dtype)
            )
            # A vector of n numbers uniform in ±1 has the expected squared norm n/3. With n = tokens * hidden size,
            # the division by sqrt(n) makes the norm of a row's noise about alpha / sqrt(3), whatever its length.
            bound = alpha * (tokens * output.shape[-1]) ** -0.5
            return output + torch.empty_like(output).uniform_(-1, 1) * bound

        embedding.register_forward_hook(add_noise)


def _selected_logits(model: Any, ids: Tensor, logit_positions: Tensor) -> Tensor:
    """Applies the head to the hidden states [tokens, hidden size] of the logit positions only."""
    # With a vocabulary of 128,000 the head costs more than two layers of an 8-billion Llama.
    causal = model.get_base_model()
    hidden_states = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
    head: torch.nn.Module = causal.get_output_embeddings()
    logits: Tensor = head(hidden_states.flatten(0, 1).index_select(0, logit_positions))
    return logits


def _full_logits(model: Any, ids: Tensor, logit_positions: Tensor) -> Tensor:
    """Returns the logits of the logit positions, selected from those of all tokens."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.flatten(0, 1).index_select(0, logit_positions)
