"""Section `evaluation`: task metrics of the answers to held-out prompts."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from trainer.models import Strict

TaskMetric = Literal["exact_match", "token_f1", "choice_accuracy"]
"""Values of `evaluation.metrics`."""

MAX_CHOICES: Final = 64
"""Largest number of distinct answers that `choice_accuracy` compares."""


class EvaluationSection(Strict):
    """Task metrics on held-out rows, before and after training; none without `metrics`.

    `exact_match` and `token_f1` compare the answer that the model generates, by greedy decoding and with at most
    `max_new_tokens` tokens, with the answer of the row. `choice_accuracy` is the fraction of the rows whose own
    answer is the likeliest of the distinct answers of all judged rows. At most `max_rows` held-out rows are
    judged; `train.seed` decides which.
    """

    metrics: Annotated[tuple[TaskMetric, ...], Field(max_length=3)] = ()
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    max_rows: Annotated[int, Field(ge=1, le=100_000)] = 200

    @property
    def generates(self) -> bool:
        """Whether a metric compares generated answers."""
        return "exact_match" in self.metrics or "token_f1" in self.metrics

    @property
    def chooses(self) -> bool:
        """Whether a metric compares the probabilities of given answers."""
        return "choice_accuracy" in self.metrics

    @model_validator(mode="after")
    def _check_metrics(self) -> Self:
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError("metrics names a metric twice")
        return self
