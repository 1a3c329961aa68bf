"""The numbers of a finished run. All of it is private: it goes into the sealed result only."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import peft
import torch
import transformers

from trainer.data.examples.example import Example
from trainer.data.examples.example_set import Dataset
from trainer.models import Strict
from trainer.training.engines.base import Precision
from trainer.training.loss import CausalLoss
from trainer.training.privacy.privacy_findings import Privacy
from trainer.training.progress import TrainingOutcome


class Summary(Strict):
    """What `report/summary.json` holds.

    Losses are nats per trained token, every token weighing the same. Of preference training they are means over
    pairs, and `pairs` holds what else the last evaluation measured: `eval_rewards_accuracies` and the like. `rows`
    counts `train`, `eval`, `dropped` and `truncated`; `tokens` describes the examples (see `describe_lengths`);
    `seconds` names the parts of the run; `ahead` was done before the order came, and is no part of `total`.
    `resumed_at`: the steps behind which an interrupted run was gone on with. `privacy` is there
    where the job spec asks for some.
    """

    eval_loss_before: float | None
    eval_loss_after: float | None
    train_loss: float
    trained_tokens: int
    input_tokens: int
    steps: int
    pairs: dict[str, float] = {}  # noqa: RUF012 -- frozen, and copied
    rows: dict[str, int]
    tokens: dict[str, int]
    seconds: dict[str, float]
    environment: dict[str, str]
    warnings: tuple[str, ...]
    resumed_at: tuple[int, ...] = ()
    privacy: Privacy | None = None


def describe_lengths(examples: Sequence[Example]) -> dict[str, int]:
    """Quantiles of the examples' lengths in tokens, and how many tokens they have and train on in all."""
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


def describe_environment(engine: str, precision: Precision, loss: CausalLoss, allocator: str) -> dict[str, str]:
    """What a run was made with, by name."""
    gpu = precision.device.type == "cuda"
    return {
        "engine": engine,
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
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
    warnings: tuple[str, ...],
    privacy: Privacy | None,
    resumed_at: tuple[int, ...],
) -> Summary:
    """All of it, at the end of a run."""
    return Summary(
        eval_loss_before=outcome.eval_loss_before,
        eval_loss_after=outcome.eval_loss_after,
        train_loss=outcome.train_loss,
        trained_tokens=outcome.trained_tokens,
        input_tokens=outcome.input_tokens,
        steps=outcome.steps,
        pairs=outcome.pairs,
        rows=data.rows.as_dict(),
        tokens=describe_lengths((*data.train, *data.evaluation)),
        seconds=seconds,
        environment=environment,
        warnings=warnings,
        resumed_at=resumed_at,
        privacy=privacy,
    )
