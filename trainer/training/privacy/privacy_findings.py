"""What is known of the privacy of a run's weights: the numbers of report, model card and receipt."""

from __future__ import annotations

from typing import Literal

from trainer.models import Strict


class DifferentialPrivacy(Strict):
    """The weights are (ε, δ)-differentially private with respect to single rows, present or absent.

    `sample_rate` is the probability with which each of `steps` steps drew each of `rows` rows by itself;
    `expected_rows` is their product, the divisor of each gradient; a row's gradient is clipped to `max_grad_norm`,
    and the noise on each coordinate of the sum has the standard deviation `noise_multiplier` · `max_grad_norm`.
    `epsilon` is the accountant's upper bound at `delta`.
    """

    unit: Literal["row"] = "row"
    epsilon: float
    delta: float
    accountant: str
    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    expected_rows: int
    rows: int
    steps: int


class Separation(Strict):
    """How well a number tells training rows from held-out ones.

    `auc` is the probability that a training row looks more trained on than a held-out one (0.5: by chance), with
    its 95 % interval; `tpr` is the share of training rows found by a threshold that at most 1 % of the held-out
    rows pass, with its 95 % interval.
    """

    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]


class Membership(Strict):
    """A membership test by loss: `members` training rows against `outsiders` held-out rows.

    `loss` tells by the trained model's loss alone, `calibrated` by how far training lowered it.
    """

    members: int
    outsiders: int
    loss: Separation
    calibrated: Separation

    @property
    def worst(self) -> float:
        """The AUC of the better of both tests."""
        return max(self.loss.auc, self.calibrated.auc)


class Exposure(Strict):
    """What the weights give away of random texts that were trained on.

    `bits` has for each of `canaries` texts log2(candidates) - log2(rank) among as many candidates by loss, one of
    which was trained on, `repetitions` times. An untrained one exceeds b bits with a probability of 2^-b.
    """

    canaries: int
    repetitions: int
    candidates: int
    bits: tuple[float, ...]

    @property
    def largest(self) -> float:
        """Of the canary that is remembered best."""
        return max(self.bits)

    @property
    def mean(self) -> float:
        """Over the canaries; 1.44 where nothing is remembered."""
        return sum(self.bits) / len(self.bits)


class Privacy(Strict):
    """All of it; what was not asked for is None.

    `withheld` says why the weights were not handed out.
    """

    differential: DifferentialPrivacy | None = None
    membership: Membership | None = None
    exposure: Exposure | None = None
    withheld: str | None = None
