"""What a training method is: everything in which `sft`, `dpo` and their like differ.

A method is one file with a subclass of `Method`; `trainer.training.methods.registry` lists them. What the job spec
must know without torch (names, kinds of rows, keys) is in `trainer.spec.training_methods`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from trainer.data.examples.example import Example
from trainer.data.examples.example_set import Dataset
from trainer.spec import DataSection, MethodName, TrainSection
from trainer.training.batches import split_micro_batches
from trainer.training.distributed import ALONE, RankGroup, RankShare
from trainer.training.loss import CausalLoss
from trainer.training.progress import Meter
from trainer.training.token_store import OrderedTokens

Reference = Callable[[], AbstractContextManager[None]]
"""Returns a context in which the model computes what the base model computes, without gradients or dropout."""


@dataclass(frozen=True)
class MethodInputs:
    """What every method is made from.

    Attributes:
        dataset: the examples; a row of pairs gives two neighbours, the chosen answer first.
        loss: loss of the model that is trained.
        train: batch sizes and the method's own keys.
        device: the model's.
        data: how rows make up units.
        reference: switches to the base model; None where the caller has no reference.
        ranks: which of several processes this is.
    """

    dataset: Dataset
    loss: CausalLoss
    train: TrainSection
    device: torch.device
    data: DataSection = field(default_factory=DataSection)
    reference: Reference | None = None
    ranks: RankGroup = ALONE


@dataclass(frozen=True)
class StepRows:
    """The rows of one optimizer step.

    Attributes:
        ordered: rows on the device; those of other steps may be among them.
        rows: this process's rows of the step, as a slice of `ordered`.
        share: what the step has in all, on all processes.
    """

    ordered: OrderedTokens
    rows: slice
    share: RankShare


@dataclass(frozen=True)
class MetricTile:
    """A metric of the last evaluation that stands at the top of the report; `format` is a format specification."""

    metric: str
    label: str
    format: str


@dataclass(frozen=True)
class MetricChart:
    """A chart of the report.

    Attributes:
        title, unit: above it.
        lines: label and metric of each line, at most two.
    """

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class MethodWords:
    """A method in reports and model cards.

    Attributes:
        title: what was done, such as "LoRA by DPO".
        loss_unit: what the loss is a mean of.
        has_perplexity: whether exp(loss) is a perplexity.
        card_sentence: one sentence with the source, in Markdown.
        card_tags: tags of the model card.
        tiles: at the top of the report.
        charts: beside those that every method has.
    """

    title: str
    loss_unit: str
    has_perplexity: bool = False
    card_sentence: str = ""
    card_tags: tuple[str, ...] = ()
    tiles: tuple[MetricTile, ...] = ()
    charts: tuple[MetricChart, ...] = ()


class HeldOutEvaluation(Protocol):
    """Measures the held-out rows.

    Attributes:
        extra: what the last evaluation measured beside the loss, by name.
    """

    extra: dict[str, float]

    def loss(self) -> float | None:
        """Returns the loss with the adapter as it is now; None where there are no held-out rows."""

    def measured(self) -> dict[str, float]:
        """Returns `extra` of the adapter as it is now."""


class Method(ABC):
    """A training method.

    Attributes:
        name: in `train.method`.
        words: for reports.
        rows_per_unit: how many neighbours in the dataset are never separated: 2 for pairs. The first of them is
            what the model should say, and prompts for samples are taken from it.
        uses_reference: whether it is made with `MethodInputs.reference`, while the adapter is still fresh.
        units: the rows of each unit; the batch size counts units.
        evaluation: of the held-out rows.
    """

    name: ClassVar[MethodName]
    words: ClassVar[MethodWords]
    rows_per_unit: ClassVar[int] = 1
    uses_reference: ClassVar[bool] = False

    evaluation: HeldOutEvaluation

    def __init__(self, inputs: MethodInputs) -> None:
        self._loss = inputs.loss
        self.units = self.make_units(inputs.dataset.train, inputs.data)

    def make_units(self, examples: Sequence[Example], data: DataSection) -> list[list[int]]:  # noqa: ARG002
        """Returns the rows of each unit; here `rows_per_unit` neighbours."""
        size = self.rows_per_unit
        return [list(range(start, start + size)) for start in range(0, len(examples), size)]

    def split(self, lengths: Sequence[int], budget: int) -> list[slice]:
        """Returns micro-batches for rows of these lengths, of at most `budget` tokens unless a unit has more."""
        return split_micro_batches(lengths, budget, self._loss.cost, rows_per_unit=self.rows_per_unit)

    @abstractmethod
    def compute_gradients(self, step: StepRows, budget: int) -> Tensor:
        """Add to the parameters' gradients what this process's rows contribute to the step's loss.

        Args:
            step: the rows.
            budget: how many tokens a micro-batch may have.

        Returns:
            float64 [n] on the device, to be added up over the processes; first what the meter adds up as the loss.
        """

    @abstractmethod
    def record_step(self, sums: Tensor, share: RankShare) -> None:
        """Take in what `compute_gradients` returned, over all processes, once the step is complete."""

    @abstractmethod
    def read_metrics(self, recent: Meter) -> dict[str, float]:
        """Returns what is logged of the steps since the last call, `loss` first; waits for the device."""

    @abstractmethod
    def mean_loss(self, total: Meter, steps: int) -> float:
        """Returns the mean loss of a run of so many steps; waits for the device."""

    @abstractmethod
    def state(self) -> tuple[float, ...]:
        """Returns what `read_metrics` needs beside the meter; waits for the device."""

    @abstractmethod
    def restore(self, state: tuple[float, ...]) -> None:
        """Continue from what `state` returned."""
