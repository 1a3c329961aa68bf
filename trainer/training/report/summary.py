"""The numbers of a finished run. All of them are private: they go into the sealed result only."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import peft
import torch
import transformers

from trainer.data.examples.example import Example
from trainer.data.examples.example_set import Dataset
from trainer.models import Strict
from trainer.training.engines.base import Precision
from trainer.training.loss import CausalLoss
from trainer.training.methods.method import Method
from trainer.training.privacy.privacy_findings import Privacy
from trainer.training.progress import TrainingOutcome
from trainer.training.task_summary import TaskSummary


class Summary(Strict):
    """The content of `report/summary.json`.

    Attributes:
        eval_loss_before: held-out loss before training, in nats per trained token, every token weighing the same;
            in preference training the mean over pairs. None without held-out rows.
        eval_loss_after: the same after training.
        train_loss: mean training loss of the run, in the same unit.
        trained_tokens: tokens trained on, over all steps.
        input_tokens: tokens read, over all steps.
        steps: optimizer steps.
        pairs: in preference training, what else the last evaluation measured, such as `eval_rewards_accuracies`.
        rows: counts of rows: `train`, `eval`, `dropped`, `truncated`; with `data.mix` also `undrawn`.
        mix: with `data.mix`, the counts of each data set by its pattern: `rows`, `drawn`, `uses` in an epoch.
        tokens: what `describe_lengths` returned.
        seconds: durations of the run's parts. `ahead` is what was done before there was a dataset; it is not part
            of `total`.
        environment: what the run was computed with.
        adapter: what was trained, by the last parts of modules' names, and the adapter that training started from.
        warnings: texts for the provider.
        resumed_at: the steps after which the run was interrupted and resumed.
        privacy: findings on the privacy of the weights, where the job spec asks for any.
        task: task metrics on held-out rows, where the job spec names any.
    """

    eval_loss_before: float | None
    eval_loss_after: float | None
    train_loss: float
    trained_tokens: int
    input_tokens: int
    steps: int
    pairs: dict[str, float] = {}  # noqa: RUF012 -- frozen, and copied
    rows: dict[str, int]
    mix: dict[str, dict[str, int]] = {}  # noqa: RUF012 -- frozen, and copied
    tokens: dict[str, int]
    seconds: dict[str, float]
    environment: dict[str, str]
    adapter: dict[str, str] = {}  # noqa: RUF012 -- frozen, and copied
    warnings: tuple[str, ...]
    resumed_at: tuple[int, ...] = ()
    privacy: Privacy | None = None
    task: TaskSummary | None = None


_SHARED: Final = frozenset(
    {
        "adapter",
        "environment",
        "eval_loss_after",
        "eval_loss_before",
        "input_tokens",
        "resumed_at",
        "steps",
        "train_loss",
        "trained_tokens",
    }
)
"""What every provider of a joint job may read: it follows from the steps, whose number the job spec states."""

_SHARED_METRICS: Final = frozenset(
    {
        "eval_loss",
        "grad_norm",
        "input_tokens_per_second",
        "learning_rate",
        "learning_rate_b",
        "loss",
        "tokens_per_second",
    }
)
"""The same of the metrics of every training method: the steps in an epoch are not among them."""


def shared_metrics(method: type[Method]) -> frozenset[str]:
    """Returns the names of the metrics that every provider of a joint job may read."""
    means = method.mean_metrics
    return _SHARED_METRICS.union(means, (f"eval_{name}" for name in means))


def shared_by_providers(summary: Summary, method: type[Method]) -> Summary:
    """Returns the summary of a joint job without what tells how many rows there are, or how long they are.

    Warnings count rows, and the seconds of the preparation grow with them.
    """
    hidden = Summary.model_fields.keys() - _SHARED
    empty = {name: type(getattr(summary, name))() for name in hidden}
    names = shared_metrics(method)
    pairs = {name: value for name, value in summary.pairs.items() if name in names}
    return summary.model_copy(update={**empty, "pairs": pairs})


def describe_lengths(examples: Sequence[Example]) -> dict[str, int]:
    """Returns quantiles of the examples' lengths in tokens, their total, and how many of them are trained."""
    # The quantile q of n sorted lengths is the one whose index is next to q (n - 1): always a length that occurs.
    lengths = sorted(example.length for example in examples)
    last = len(lengths) - 1
    return {
        "shortest": lengths[0],
        "median": lengths[last // 2],
        "p95": lengths[round(0.95 * last)],
        "longest": lengths[last],
        "total": sum(lengths),
        "trained": sum(example.targets for example in examples),
    }


def describe_environment(
    engine: str, precision: Precision, loss: CausalLoss, allocator: str
) -> dict[str, str]:
    """Returns what the run was computed with, by name.

    Args:
        engine: name of the engine.
        precision: device and number formats.
        loss: the loss, whose forward mode is reported.
        allocator: name of the memory allocator.
    """
    gpu = precision.device.type == "cuda"
    return {
        "engine": engine,
        "device": torch.cuda.get_device_name()
        if gpu
        else f"CPU, {torch.get_num_threads()} threads",
        "weights": str(precision.weights).removeprefix("torch."),
        "autocast": "bfloat16" if precision.autocast else "off",
        "forward": loss.forward_mode,
        "allocator": allocator,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def summarize(
    outcome: TrainingOutcome,
    data: Dataset,
    seconds: dict[str, float],
    environment: dict[str, str],
    adapter: dict[str, str],
    warnings: tuple[str, ...],
    privacy: Privacy | None,
    resumed_at: tuple[int, ...],
    task: TaskSummary | None,
) -> Summary:
    """Builds the summary at the end of a run.

    Args:
        outcome: losses, steps and tokens.
        data: the examples.
        seconds: durations of the run's parts, by name.
        environment: return value of `describe_environment`, and the ranks where there are several.
        adapter: what was trained and from which start, as `Placement` and `CheckedAdapter` describe it.
        warnings: texts for the provider.
        privacy: findings on the privacy of the weights, if asked for.
        resumed_at: steps after which the run was resumed.
        task: task metrics, if asked for.
    """
    return Summary(
        eval_loss_before=outcome.eval_loss_before,
        eval_loss_after=outcome.eval_loss_after,
        train_loss=outcome.train_loss,
        trained_tokens=outcome.trained_tokens,
        input_tokens=outcome.input_tokens,
        steps=outcome.steps,
        pairs=outcome.pairs,
        rows=data.rows.as_dict(),
        mix={name: asdict(counts) for name, counts in data.mix.items()},
        tokens=describe_lengths((*data.train, *data.evaluation)),
        seconds=seconds,
        environment=environment,
        adapter=adapter,
        warnings=warnings,
        resumed_at=resumed_at,
        privacy=privacy,
        task=task,
    )
