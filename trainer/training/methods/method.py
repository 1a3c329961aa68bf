"""The interface of a training method, such as `sft` or `dpo`.

A method is one file with a subclass of `Method`; `trainer.training.methods.registry` lists the methods. The parts
that the job spec needs without torch (names, row kinds, keys) are in `trainer.spec.training_methods`.
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
"""Returns a context in which the model computes what training starts from, without gradients or dropout."""


@dataclass(frozen=True)
class MethodInputs:
    """The arguments of every method's constructor.

    Attributes:
        dataset: the examples; a row with a pair gives two adjacent examples, the chosen answer first.
        loss: loss of the trained model.
        train: batch sizes and the method's own keys.
        device: device of the model.
        data: how rows are grouped into units.
        reference: switches the model to what training starts from; None where the caller has no reference.
        ranks: the ranks that train together, and which of them this process is.
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
        ordered: rows on the device; may contain rows of other steps.
        rows: the rows of this rank in the step, as a slice of `ordered`.
        share: this rank's share of the step, and the totals of the step on all ranks.
    """

    ordered: OrderedTokens
    rows: slice
    share: RankShare


@dataclass(frozen=True)
class MetricTile:
    """A metric of the last evaluation, shown at the top of the report. `format` is a format specification."""

    metric: str
    label: str
    format: str


@dataclass(frozen=True)
class MetricChart:
    """A chart of the report.

    Attributes:
        title: heading of the chart.
        unit: unit of the values, shown beside the title.
        lines: label and metric of each line, at most two.
    """

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class MethodWords:
    """The texts, tiles and charts of a method in reports and model cards.

    Attributes:
        title: name of the procedure, such as "LoRA by DPO".
        loss_unit: unit of the loss.
        has_perplexity: whether exp(loss) is a perplexity: only for a mean of nats per token.
        card_sentence: one sentence with the source, in Markdown.
        card_tags: tags of the model card.
        tiles: tiles at the top of the report.
        charts: charts in addition to those of every method.
    """

    title: str
    loss_unit: str
    has_perplexity: bool = False
    card_sentence: str = ""
    card_tags: tuple[str, ...] = ()
    tiles: tuple[MetricTile, ...] = ()
    charts: tuple[MetricChart, ...] = ()


class HeldOutEvaluation(Protocol):
    """Evaluates the adapter on the held-out rows.

    Attributes:
        extra: metrics of the last evaluation apart from the loss, by name.
    """

    # The loop clears it after it has replaced the adapter: the metrics were measured with another one.

    extra: dict[str, float]

    def loss(self) -> float | None:
        """Returns the loss with the present adapter; None where there are no held-out rows."""

    def measured(self) -> dict[str, float]:
        """Returns `extra` for the present adapter."""


class Method(ABC):
    """A training method: defines the loss of a step and computes its gradients.

    Attributes:
        name: name in `train.method`.
        words: texts for reports.
        rows_per_unit: number of adjacent examples that always stay together: 2 for pairs. The first of them is the
            desired answer, and the prompts of samples are taken from it.
        uses_reference: whether the method needs `MethodInputs.reference`. It is then created before the first
            step, and before a checkpoint is restored.
        mean_metrics: names of its metrics, apart from the loss, that are means of real numbers. Every provider of
            a joint job may read them: a fraction of rows would tell how many rows there are.
        units: the rows of each unit; the batch size counts units.
        evaluation: evaluation on the held-out rows.
    """

    name: ClassVar[MethodName]
    words: ClassVar[MethodWords]
    rows_per_unit: ClassVar[int] = 1
    uses_reference: ClassVar[bool] = False
    mean_metrics: ClassVar[tuple[str, ...]] = ()

    evaluation: HeldOutEvaluation

    def __init__(self, inputs: MethodInputs) -> None:
        self._loss = inputs.loss
        self.units = self.make_units(inputs.dataset.train, inputs.data)

    def make_units(self, examples: Sequence[Example], data: DataSection) -> list[list[int]]:  # noqa: ARG002
        """Returns the rows of each unit. By default a unit has `rows_per_unit` adjacent rows."""
        # A dataset of pairs has an even number of rows, so that no unit is incomplete.
        size = self.rows_per_unit
        return [list(range(start, start + size)) for start in range(0, len(examples), size)]

    def split(self, lengths: Sequence[int], budget: int) -> list[slice]:
        """Splits rows of these lengths into micro-batches of at most `budget` tokens, or of one longer unit."""
        return split_micro_batches(
            lengths, budget, self._loss.cost, rows_per_unit=self.rows_per_unit
        )

    @abstractmethod
    def compute_gradients(self, step: StepRows, budget: int) -> Tensor:
        """Adds the contribution of this rank's rows to the gradient of the step's loss.

        Args:
            step: the rows of the step.
            budget: maximum number of tokens in a micro-batch.

        Returns:
            float64 [n] on the device, to be summed over the ranks. The first number is the one that the meter adds
            up.
        """

    def record_step(self, sums: Tensor, share: RankShare) -> None:  # noqa: B027 -- see `state`
        """Adds a complete step to the metrics; `sums` is the sum of `compute_gradients` over all ranks."""

    @abstractmethod
    def read_metrics(self, recent: Meter) -> dict[str, float]:
        """Returns the metrics of the steps since the last call, `loss` first; waits for the device."""

    @abstractmethod
    def mean_loss(self, total: Meter, steps: int) -> float:
        """Returns the mean loss of a run of `steps` steps; waits for the device."""

    def state(self) -> tuple[float, ...]:
        """Returns the numbers that `read_metrics` needs apart from the meter; waits for the device.

        By default there are none: a method that logs the loss alone finds it in the meter.
        """
        return ()

    def restore(self, state: tuple[float, ...]) -> None:  # noqa: B027 -- see `state`
        """Continues from the return value of `state`."""
