"""What the model answers before and after training: a few prompts, continued by greedy decoding both times.

Prompts come from held-out rows, so that no answer was trained on. All of it is private.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainer.data.examples.example import Example
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.training.engines.base import Precision
from trainer.training.generation import generate_answers


@dataclass(frozen=True)
class Sample:
    """One prompt, with the answers of the row and of the model; special tokens are plain text.

    Attributes:
        prompt: everything before the first trained token.
        reference: the row's own answer, up to the first token that is not trained on.
        before: the base model's answer.
        after: the trained model's answer; empty until then.
    """

    prompt: str
    reference: str
    before: str
    after: str = ""

    def as_dict(self) -> dict[str, str]:
        """Returns the texts by name, for `report/samples.json`."""
        return asdict(self)


class Sampler:
    """Lets a model continue the same prompts before and after training.

    Args:
        model: PEFT model of a causal language model.
        tokens: its tokenizer.
        precision: its device and number formats.
        prompts: examples whose prompts are used, the first ones first; those without a prompt are skipped.
        count: how many prompts at most.
        max_new_tokens: length of an answer at most.
        starts_as_base: whether a fresh adapter adds exactly zero, so that it need not be computed before training.
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
        # Without a prompt there is nothing to continue, and without an answer nothing to compare with.
        parts = (split_example(example) for example in prompts)
        self._parts = [part for part in parts if part[0] and part[1]][:count]

    def sample_before_training(self) -> tuple[Sample, ...]:
        """Returns the samples with `before` as the model answers now."""
        with self._model.disable_adapter() if self._starts_as_base else nullcontext():
            answers = self._generate_answers()
        return tuple(
            Sample(self._tokens.text(prompt), self._tokens.text(reference), answer)
            for (prompt, reference), answer in zip(self._parts, answers, strict=True)
        )

    def sample_after_training(self, samples: Sequence[Sample]) -> tuple[Sample, ...]:
        """Returns the samples with `after` as the model answers now."""
        return tuple(
            replace(sample, after=answer)
            for sample, answer in zip(samples, self._generate_answers(), strict=True)
        )

    def _generate_answers(self) -> list[str]:
        if not self._parts:
            return []
        prompts = [prompt for prompt, _ in self._parts]
        # Greedy decoding, so that both answers to a prompt differ by training alone and not by chance.
        answers = generate_answers(
            self._model, self._tokens, self._precision, prompts, max_new_tokens=self._limit
        )
        return [self._tokens.text(answer) for answer in answers]


def split_example(example: Example) -> tuple[list[int], list[int]]:
    """Returns the ids before the first trained token, and the consecutive trained ids from there on."""
    # `trained` has a byte for each token: 1 where it is trained on, 0 where it is not.
    start = example.trained.index(1)
    end = example.trained.find(b"\0", start)
    ids = list(example.ids)
    return ids[:start], ids[start : len(ids) if end == -1 else end]
