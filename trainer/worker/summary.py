"""The numbers of a finished run. All of it is private: it goes into the sealed result only."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.models import Strict
from trainer.worker.encode import Example
from trainer.worker.privacy.findings import Privacy


class Summary(Strict):
    """What `report/summary.json` holds.

    Losses are nats per trained token, every token weighing the same. Of preference training they are means over
    pairs, and `pairs` holds what else the last evaluation measured: `eval_rewards_accuracies` and the like. `rows`
    counts `train`, `eval`, `dropped` and `truncated`; `tokens` describes the examples (see `describe_lengths`);
    `seconds` names the parts of the run. `resumed_at`: the steps behind which an interrupted run was gone on with.
    `privacy` is there where the job spec asks for some.
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
