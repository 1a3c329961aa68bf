"""What the model answers before and after training: a few held-out prompts, continued greedily both times.

Prompts are taken from held-out rows, so that nothing shown was trained on. All of it is private.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from trainer.data.examples.example import Example
from trainer.training.engines.base import Precision
from trainer.training.tokenizer import ModelTokenizer


@dataclass(frozen=True)
class Sample:
    """One prompt with what the row says and what the model said; texts without special tokens' meaning.

    Attributes:
        prompt: everything before the first trained token.
        reference: the row's own continuation, up to the first token that is not trained on.
        before: the base model's continuation.
        after: the trained model's continuation.
    """

    prompt: str
    reference: str
    before: str
    after: str = ""

    def as_dict(self) -> dict[str, str]:
        """By name, for `report/samples.json`."""
        return {
            "prompt": self.prompt,
            "reference": self.reference,
            "before": self.before,
            "after": self.after,
        }


class Sampler:
    """Continues the same prompts whenever it is asked.

    Args:
        model: PEFT model of a causal language model.
        tokens: its tokenizer.
        precision: its device and numbers.
        prompts: examples to take prompts from, in order of preference; those without a prompt are passed over.
        count: at most how many.
        max_new_tokens: where a continuation is cut.
        starts_as_base: whether a fresh adapter adds exactly nothing, so that it need not be computed.
    """

    def __init__(
        self,
        model: Any,
        tokens: ModelTokenizer,
        precision: Precision,
        prompts: Sequence[Example],
        *,
        count: int,
        max_new_tokens: int,
        starts_as_base: bool = False,
    ) -> None:
        self._model = model
        self._tokens = tokens
        self._precision = precision
        self._limit = max_new_tokens
        self._starts_as_base = starts_as_base
        parts = (split_example(example) for example in prompts)
        self._parts = [part for part in parts if part[0] and part[1]][:count]

    def sample_before_training(self) -> tuple[Sample, ...]:
        """The samples as the model answers now, `after` left empty."""
        with self._model.disable_adapter() if self._starts_as_base else nullcontext():
            answers = self._answers()
        return tuple(
            Sample(self._tokens.text(prompt), self._tokens.text(reference), answer)
            for (prompt, reference), answer in zip(self._parts, answers, strict=True)
        )

    def sample_after_training(self, samples: Sequence[Sample]) -> tuple[Sample, ...]:
        """The same samples with what the model answers now."""
        return tuple(
            replace(sample, after=answer) for sample, answer in zip(samples, self._answers(), strict=True)
        )

    @torch.no_grad()
    def _answers(self) -> list[str]:
        if not self._parts:
            return []
        prompts = [prompt for prompt, _ in self._parts]
        ids, mask = left_padded(prompts, self._tokens.pad_id, self._precision.device)
        was_training = self._model.training
        self._model.eval()
        # a compiled model as well goes on uncompiled here: with each token its keys and values have other shapes
        with self._precision.context(), torch.compiler.set_stance("force_eager"):
            whole = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self._limit,
                do_sample=False,
                use_cache=True,
                pad_token_id=self._tokens.pad_id,
                eos_token_id=sorted(self._tokens.stop_ids),
            )
        self._model.train(was_training)
        return [self._tokens.text(self._until_stop(row)) for row in whole[:, ids.shape[1] :].tolist()]

    def _until_stop(self, ids: list[int]) -> list[int]:
        ends = [position for position, token in enumerate(ids) if token in self._tokens.stop_ids]
        return ids[: ends[0] + 1] if ends else ids


def split_example(example: Example) -> tuple[list[int], list[int]]:
    """The ids before the first trained token, and the run of trained ones that begins there."""
    start = example.trained.index(1)
    end = example.trained.find(b"\0", start)
    ids = list(example.ids)
    return ids[:start], ids[start : len(ids) if end == -1 else end]


def left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, int64 [prompts, longest]: prompts end at the same place, where generation begins."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
