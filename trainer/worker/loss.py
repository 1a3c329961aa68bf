"""The loss: summed negative log-likelihood of the trained tokens, in nats, and nothing computed for the others.

Three ways lead to it; the first that is proved right for a model is taken:

- *fused*: `trainer.worker.decoder`, for the Llama family;
- *selected*: the model's own forward pass; the head, its widest layer, only where a trained token is predicted;
- *whole*: the model's own logits, for models that scale or cap them behind the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from trainer.worker.attention import Segments
from trainer.worker.batches import Cost, padded_cost
from trainer.worker.decoder import Decoder, NotKnownError, build_decoder
from trainer.worker.head_loss import HeadLoss
from trainer.worker.model import Precision
from trainer.worker.store import Batch

_PROOF_LENGTHS: Final = (4, 7, 7)
_AGREEMENT: Final = {torch.float32: (1e-4, 1e-2), torch.bfloat16: (2e-2, 0.3), torch.float16: (2e-2, 0.3)}
"""How far the loss, and the gradient as a vector, may be from the plain computation, relatively."""


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
    ) -> None:
        self._model = model
        self._precision = precision
        self._pad_id = pad_id
        self._selects = self._selection_is_exact()
        self._decoder = self._proved_decoder(longest, checkpointing=checkpointing) if fused else None
        if neftune_alpha is not None:
            self._add_noise(neftune_alpha)

    @property
    def way(self) -> str:
        """Which way is taken: `fused`, `selected` or `whole`."""
        if self._decoder is not None:
            return "fused"
        return "selected" if self._selects else "whole"

    @property
    def cost(self) -> Cost:
        """How many tokens the model is given for rows of some lengths."""
        return sum if self._decoder is not None else padded_cost

    def sum(self, batch: Batch) -> Tensor:
        """Loss summed over the trained tokens of a batch: float32 scalar on the device, with its graph."""
        if self._decoder is not None:
            return self._fused(self._decoder, batch)
        return self._plain(batch)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No dropout, no noise, no gradients."""
        was_training = self._model.training
        self._model.eval()
        with torch.no_grad():
            yield
        self._model.train(was_training)

    def _fused(self, decoder: Decoder, batch: Batch) -> Tensor:
        hidden = decoder.hidden(batch.ids, batch.positions, batch.segments, batch.predicting)
        loss: Tensor = HeadLoss.apply(hidden, decoder.head, decoder.head_bias, batch.targets)  # type: ignore[no-untyped-call]
        return loss

    def _plain(self, batch: Batch) -> Tensor:
        ids, places = batch.padded(self._pad_id)
        with self._precision.context():
            logits = self._selected_logits(ids, places) if self._selects else self._all_logits(ids, places)
        return functional.cross_entropy(logits.float(), batch.targets, reduction="sum")

    def _selected_logits(self, ids: Tensor, places: Tensor) -> Tensor:
        causal = self._model.get_base_model()
        hidden = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
        head: torch.nn.Module = causal.get_output_embeddings()
        logits: Tensor = head(hidden.flatten(0, 1).index_select(0, places))
        return logits

    def _all_logits(self, ids: Tensor, places: Tensor) -> Tensor:
        logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
        return logits.flatten(0, 1).index_select(0, places)

    def _selection_is_exact(self) -> bool:
        """Some models scale or cap their logits behind the head; compare once, on a few tokens, and see."""
        ids = torch.arange(1, 9, device=self._precision.device).unsqueeze(0)
        places = torch.arange(8, device=ids.device)
        try:
            with self.evaluating(), self._precision.context():
                return torch.equal(self._selected_logits(ids, places), self._all_logits(ids, places))
        except (AttributeError, TypeError, RuntimeError):
            return False

    def _proved_decoder(self, longest: int, *, checkpointing: bool) -> Decoder | None:
        """The quick way, if the model is of a known kind and loss and gradients are those of the plain one."""
        batch = _proof_batch(self._precision.device)
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        with self._updates_that_matter(parameters):
            try:
                decoder = build_decoder(
                    self._model.get_base_model(), self._precision, longest=longest, checkpointing=checkpointing
                )
            except NotKnownError:
                return None
            expected = _with_gradient(self._plain(batch), parameters)
            found = _with_gradient(self._fused(decoder, batch), parameters)
        return decoder if _agree(expected, found, decoder.dtype) else None

    @contextmanager
    def _updates_that_matter(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """A fresh adapter does nothing: B is zero. Here it is not; no dropout; afterwards all is as it was."""
        saved = [parameter.detach().clone() for parameter in parameters]
        was_training = self._model.training
        self._model.eval()
        generator = torch.Generator(self._precision.device).manual_seed(1)
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator, device=parameter.device))
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, old in zip(parameters, saved, strict=True):
                    parameter.copy_(old)
            self._model.train(was_training)

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


def _proof_batch(device: torch.device) -> Batch:
    total, bounds = sum(_PROOF_LENGTHS), [0, 4, 11, 18]
    ids = torch.arange(1, total + 1, dtype=torch.int32, device=device)
    positions = torch.cat([torch.arange(length) for length in _PROOF_LENGTHS]).to(device, torch.int32)
    predicting = torch.tensor([1, 2, 5, 8, 9, 12, 15, 16], dtype=torch.int32, device=device)
    segments = Segments(_PROOF_LENGTHS, torch.tensor(bounds, dtype=torch.int32, device=device))
    return Batch(ids, positions, segments, predicting, ids[predicting + 1].to(torch.int64))


def _with_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    gradients = torch.autograd.grad(loss, parameters)
    return loss.detach(), torch.cat([gradient.flatten().float() for gradient in gradients])


def _agree(expected: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], dtype: torch.dtype) -> bool:
    loss, gradient = _AGREEMENT[dtype]
    loss_off = (found[0] - expected[0]).abs() / expected[0].abs()
    gradient_off = (found[1] - expected[1]).norm() / expected[1].norm()
    return bool(loss_off <= loss) and bool(gradient_off <= gradient)
