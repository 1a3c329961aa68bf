"""Task metrics on held-out rows: generated answers are compared, and given ones by their probability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from trainer.data.examples.choices import choice_examples
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.task_rows import TaskRows
from trainer.spec import EvaluationSection
from trainer.training.answer_scores import exact_match, token_f1
from trainer.training.distributed import ALONE, RankGroup
from trainer.training.engines.base import Precision
from trainer.training.generation import generate_answers
from trainer.training.loss import CausalLoss
from trainer.training.task_summary import TaskFigures, TaskSummary
from trainer.training.token_store import single_batch

MAX_ANSWERS: Final = 64
"""Number of judged rows whose texts a result contains."""

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class TaskMeasurement:
    """One measurement of all judged rows.

    Attributes:
        figures: the figures over all rows.
        answers: the generated answer of each row, without a thought; empty where none are generated.
        choices: the likeliest choice of each row; empty without `choice_accuracy`.
    """

    figures: TaskFigures
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskComparison:
    """Task metrics before and after training.

    Attributes:
        summary: the figures.
        answers: for the first `MAX_ANSWERS` judged rows the texts `prompt` and `expected`, with `answered` (what
            the trained model generates) or `chosen` (the likeliest choice), or both.
    """

    summary: TaskSummary
    answers: tuple[dict[str, str], ...]


class TaskEvaluation:
    """Measures task metrics of one model; it leaves the model and the random generators as they were.

    Args:
        rows: the judged rows.
        section: the metrics, and the length of an answer.
        model: PEFT model of a causal language model.
        tokens: its tokenizer.
        loss: its loss.
        precision: its device and number formats.
        batch_rows: number of rows that are generated, or choices that are compared, at once.
        ranks: the ranks that divide the rows among themselves. With a sharded base model each computes all rows,
            because all ranks must run the model equally often.
    """

    def __init__(
        self,
        rows: TaskRows,
        section: EvaluationSection,
        *,
        model: Any,
        tokens: ModelTokenizer,
        loss: CausalLoss,
        precision: Precision,
        batch_rows: int,
        ranks: RankGroup = ALONE,
    ) -> None:
        self._rows = rows
        self._section = section
        self._model = model
        self._tokens = tokens
        self._loss = loss
        self._precision = precision
        self._batch_rows = batch_rows
        self._ranks = ranks

    def measure(self, *, as_base: bool = False) -> TaskMeasurement:
        """Measures the metrics with the present adapter.

        Args:
            as_base: whether the adapter is fresh and adds exactly zero, so that it need not be computed.
        """
        tasks = self._rows.tasks
        answers: list[str] = []
        choices: list[str] = []
        figures: dict[str, float | int] = {}
        if self._section.generates:
            with self._model.disable_adapter() if as_base else nullcontext():
                generated = self._generate()
            figures["cut"] = sum(self._is_cut(ids) for ids in generated)
            for ids, task in zip(generated, tasks, strict=True):
                # Without the stop token and without a thought.
                said = self._tokens.text(ids if self._is_cut(ids) else ids[:-1])
                answers.append(self._rows.markers.cut(said, task.prompt_text))
            scores: dict[str, Callable[[str, str], float]] = {
                "exact_match": exact_match,
                "token_f1": token_f1,
            }
            for name in scores.keys() & self._section.metrics:
                pairs = zip(answers, tasks, strict=True)
                figures[name] = sum(
                    scores[name](answer, task.expected) for answer, task in pairs
                ) / len(tasks)
        if self._section.chooses:
            choices = [self._rows.choices[number] for number in self._choose()]
            right = sum(choice == task.choice for choice, task in zip(choices, tasks, strict=True))
            figures["choice_accuracy"] = right / len(tasks)
        return TaskMeasurement(TaskFigures.model_validate(figures), tuple(answers), tuple(choices))

    def compare(self, before: TaskFigures) -> TaskComparison:
        """Measures the metrics with the trained adapter, and returns them beside those from before training."""
        tasks, after = self._rows.tasks, self.measure()
        summary = TaskSummary(
            judged=len(tasks),
            not_judged={reason.value: count for reason, count in self._rows.not_judged.items()},
            choices=len(self._rows.choices),
            before=before,
            after=after.figures,
        )
        answers = [
            {"prompt": task.prompt_text, "expected": task.expected} for task in tasks[:MAX_ANSWERS]
        ]
        for name, texts in (("answered", after.answers), ("chosen", after.choices)):
            for answer, text in zip(answers, texts, strict=False):
                answer[name] = text
        return TaskComparison(summary, tuple(answers))

    def _is_cut(self, ids: Sequence[int]) -> bool:
        return not ids or ids[-1] not in self._tokens.stop_ids

    def _generate(self) -> list[list[int]]:
        """Returns the generated token ids of each row."""
        tasks, limit, size = self._rows.tasks, self._section.max_new_tokens, self._batch_rows
        # One more than the token id; 0 is none.
        table = torch.zeros((len(tasks), limit), dtype=torch.int64)
        # Prompts of similar length share a batch, whose cached keys take the memory of its longest one for each.
        order = sorted(range(len(tasks)), key=lambda row: len(tasks[row].prompt))
        for batch in self._own(
            [order[start : start + size] for start in range(0, len(order), size)]
        ):
            prompts = [tasks[row].prompt for row in batch]
            answers = generate_answers(
                self._model, self._tokens, self._precision, prompts, max_new_tokens=limit
            )
            for row, ids in zip(batch, answers, strict=True):
                table[row, : len(ids)] = torch.tensor(ids) + 1
        return [[number - 1 for number in row if number] for row in self._gather(table).tolist()]

    def _choose(self) -> list[int]:
        """Returns the number of the likeliest choice of each row; of equal ones the first."""
        table = torch.zeros((len(self._rows.tasks), len(self._rows.choices)), dtype=torch.float64)
        for row in self._own(range(len(table))):
            table[row] = self._log_likelihoods(row)
        numbers: list[int] = self._gather(table).argmax(1).tolist()
        return numbers

    def _log_likelihoods(self, row: int) -> Tensor:
        """Returns the log-probability of each choice: float64 [choices], in nats."""
        examples = choice_examples(self._rows.tasks[row], self._rows, self._tokens)
        parts = []
        # The rows of such a batch have a long prefix in common, which the fused pass computes once.
        with self._loss.evaluating(), torch.compiler.set_stance("force_eager"):
            for start in range(0, len(examples), self._batch_rows):
                batch = single_batch(
                    examples[start : start + self._batch_rows], self._precision.device
                )
                parts.append(-self._loss.row_losses(batch).double().cpu())
        return torch.cat(parts)

    def _own(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """Returns this rank's part of the items."""
        return items if self._ranks.sharded else items[self._ranks.rank :: self._ranks.size]

    def _gather(self, table: Tensor) -> Tensor:
        """Returns the table with the rows that the other ranks have filled, on the host."""
        # Each row was filled by one rank and is zero on the others, so the sum is the complete table.
        if self._ranks.sharded:
            return table
        return self._ranks.all_reduce(table.to(self._precision.device)).cpu()
