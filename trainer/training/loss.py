"""The loss: summed negative log-likelihood of the trained tokens, in nats, and nothing computed for the others.

Three ways lead to it; the first that is proved right for a model is taken:

- *fused*: `trainer.training.fused.decoder`, for the Llama family;
- *selected*: the model's own forward pass; the head, its widest layer, only where a trained token is predicted;
- *whole*: the model's own logits, for models that scale or cap them behind the head.

The last two may be compiled: see `trainer.training.compilation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainer.training.batches import Cost, padded_cost
from trainer.training.compilation import Compilation
from trainer.training.engines.transformers_engine import Precision, is_out_of_memory
from trainer.training.fused.attention_cpu import SHORT
from trainer.training.fused.decoder import Decoder, heads_of, unknown_part
from trainer.training.fused.equivalence import agrees, attention_agrees
from trainer.training.fused.head_loss import HeadLoss
from trainer.training.fused.prefix_sharing import share
from trainer.training.token_store import Batch


class CausalLoss:
    """Loss of one model.

    Args:
        model: PEFT model of a causal language model.
        precision: its device and numbers.
        pad_id: fills up batches where a model needs rectangles.
        longest: tokens of the longest row there will be.
        checkpointing: whether inner results are made again going backward instead of being kept.
        neftune_alpha: strength of the noise on embeddings while training (arXiv 2310.05914), or None.
        fused: whether the quick way may be taken.
        compilation: how the model is compiled, and then the quick way is not taken; None leaves it as it is.
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
        self._selects = self._selection_is_exact()
        self._compilation = compilation
        may_fuse = fused and compilation is None
        self._decoder = self._proved_decoder(longest, checkpointing=checkpointing) if may_fuse else None
        self._noisy = neftune_alpha is not None or _has_dropout(model)
        if neftune_alpha is not None:
            self._add_noise(neftune_alpha)
        if compilation is not None:
            compilation.compile(model)

    @property
    def way(self) -> str:
        """Which way is taken: `fused`, `selected` or `whole`, and in what mode it is compiled."""
        if self._decoder is not None:
            return "fused"
        way = "selected" if self._selects else "whole"
        return way if self._compilation is None else f"{way}, compiled ({self._compilation.mode})"

    @property
    def cost(self) -> Cost:
        """How many tokens the model is given for rows of some lengths."""
        if self._decoder is not None:
            return sum
        return padded_cost if self._compilation is None else self._compilation.cost

    def sum(self, batch: Batch) -> Tensor:
        """Loss summed over the trained tokens of a batch: float32 scalar on the device, with its graph."""
        return self.each(batch).sum()

    def by_row(self, batch: Batch, *, rows_per_unit: int = 1) -> Tensor:
        """Loss summed over the trained tokens of each row: float32 [rows] on the device, with its graph.

        Args:
            batch: the rows.
            rows_per_unit: so many neighbours begin alike, as the answers to one prompt do.
        """
        return batch.by_row(self.each(batch, rows_per_unit=rows_per_unit))

    def each(self, batch: Batch, *, rows_per_unit: int = 1) -> Tensor:
        """Loss of each trained token: float32 [targets] on the device, with its graph; see `by_row`."""
        if self._decoder is not None:
            return _fused(self._decoder, self._shared(batch, rows_per_unit))
        shape = None
        if self._compilation is not None:
            self._compilation.begin()
            shape = self._compilation.shape
        with self._precision.context():
            logits = _plain_logits(self._model, batch.padded(self._pad_id, shape), selects=self._selects)
        return functional.cross_entropy(logits.float(), batch.targets, reduction="none")

    @property
    def coarse(self) -> bool:
        """Whether products are computed in 16 bits."""
        return self._precision.autocast or self._precision.weights is not torch.float32

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No dropout, no noise, no gradients."""
        was_training = self._model.training
        self._model.eval()
        with torch.no_grad():
            yield
        self._model.train(was_training)

    @contextmanager
    def unadapted(self) -> Iterator[None]:
        """As `evaluating`, and the adapter switched off: the model underneath it."""
        with self.evaluating(), self._model.disable_adapter():
            self._set_adapted(to=False)
            try:
                yield
            finally:
                self._set_adapted(to=True)

    def _set_adapted(self, *, to: bool) -> None:
        if self._decoder is not None:
            self._decoder.adapted = to

    def _shared(self, batch: Batch, rows_per_unit: int) -> Batch:
        """On a CPU, a beginning that rows have in common goes through the model once.

        Not where noise makes it differ from row to row, and not on a GPU: its attention kernel cannot.
        """
        if batch.ids.is_cuda or (self._noisy and self._model.training) or batch.segments.longest > SHORT:
            return batch
        return share(batch, rows_per_unit)

    def _selection_is_exact(self) -> bool:
        """Some models scale or cap their logits behind the head; compare once, on a few tokens, and see."""
        ids = torch.arange(1, 9, device=self._precision.device).unsqueeze(0)
        places = torch.arange(8, device=ids.device)
        try:
            with self.evaluating(), self._precision.context():
                selected = _selected_logits(self._model, ids, places)
                return torch.equal(selected, _whole_logits(self._model, ids, places))
        except (AttributeError, TypeError, RuntimeError):
            return False

    def _proved_decoder(self, longest: int, *, checkpointing: bool) -> Decoder | None:
        """The quick way, if the model is of a known kind and loss and gradients are those of the plain one."""
        causal, precision = self._model.get_base_model(), self._precision
        dtype = torch.bfloat16 if precision.autocast else precision.weights
        if unknown_part(causal, dtype, precision.device, longest=longest) is not None:
            return None
        pad_id, selects = self._pad_id, self._selects

        def plain(model: Any, batch: Batch) -> Tensor:
            logits = _plain_logits(model, batch.padded(pad_id), selects=selects)
            return functional.cross_entropy(logits, batch.targets, reduction="sum")

        def quick(model: Any, batch: Batch) -> Tensor:
            return _fused(Decoder(model.get_base_model(), torch.float32, checkpointing=checkpointing), batch).sum()

        try:
            same = agrees(self._model, plain, quick)
            same = same and attention_agrees(heads_of(causal), dtype, precision.device)
        except (RuntimeError, TypeError, AttributeError) as error:  # a kernel that this device lacks
            if is_out_of_memory(error):
                raise
            same = False
        return Decoder(causal, dtype, checkpointing=checkpointing) if same else None

    def _add_noise(self, alpha: float) -> None:
        """Uniform noise of ±alpha / √(tokens · width) on every embedding, while training."""
        embedding: torch.nn.Module = self._model.get_input_embeddings()

        def noisy(module: torch.nn.Module, _inputs: object, output: Tensor) -> Tensor:
            if not module.training:
                return output
            tokens = output.shape[-2] if self._decoder is None else self._decoder.row_lengths.to(output.dtype)
            bound = alpha * (tokens * output.shape[-1]) ** -0.5
            return output + torch.empty_like(output).uniform_(-1, 1) * bound

        embedding.register_forward_hook(noisy)


def _has_dropout(model: Any) -> bool:
    return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())


def _fused(decoder: Decoder, batch: Batch) -> Tensor:
    hidden = decoder.hidden(batch.ids, batch.positions, batch.segments, batch.predicting)
    losses: Tensor = HeadLoss.apply(hidden, decoder.head, decoder.head_bias, batch.targets)  # type: ignore[no-untyped-call]
    return losses


def _plain_logits(model: Any, padded: tuple[Tensor, Tensor], *, selects: bool) -> Tensor:
    ids, places = padded
    return _selected_logits(model, ids, places) if selects else _whole_logits(model, ids, places)


def _selected_logits(model: Any, ids: Tensor, places: Tensor) -> Tensor:
    causal = model.get_base_model()
    hidden = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
    head: torch.nn.Module = causal.get_output_embeddings()
    logits: Tensor = head(hidden.flatten(0, 1).index_select(0, places))
    return logits


def _whole_logits(model: Any, ids: Tensor, places: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.flatten(0, 1).index_select(0, places)
