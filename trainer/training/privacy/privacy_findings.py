"""The measured and computed privacy of a run's weights, as report, model card and receipt contain it."""

from __future__ import annotations

from typing import Literal

from trainer.encoding import rounded_up
from trainer.models import Strict


class DifferentialPrivacy(Strict):
    """The weights are (ε, δ)-differentially private with respect to adding or removing one row.

    For every set S of weights and all neighbouring datasets D, D': P(weights of D in S) ≤ e^ε · P(weights of D' in
    S) + δ.

    Attributes:
        unit: what neighbouring datasets differ by.
        epsilon: the accountant's upper bound on ε at `delta`.
        delta: δ.
        accountant: `prv` or `rdp`.
        noise_multiplier: standard deviation of the noise on each coordinate of the sum, in multiples of
            `max_grad_norm`.
        max_grad_norm: L2 norm that a row's gradient is clipped to.
        sample_rate: probability with which a step drew a row, independently of all others.
        expected_rows: `sample_rate` · `rows`, the divisor of the noisy sum.
        rows: number of training rows.
        steps: number of optimizer steps.
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

    @property
    def rounded_epsilon(self) -> float:
        """Returns ε rounded up to two significant digits, for what travels with the weights.

        All digits of ε, like the sampling rate, would lead to the exact number of rows, and so to whether one is
        among them.
        """
        return rounded_up(self.epsilon)


class Separation(Strict):
    """How well an attack separates training rows from held-out rows.

    Attributes:
        auc: probability that a training row has a higher score than a held-out row; 0.5 is chance.
        auc_interval: its 95 % confidence interval.
        tpr: share of the training rows that the attack finds at a false positive rate of at most 1 %.
        tpr_interval: its 95 % confidence interval.
    """

    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]


class Membership(Strict):
    """The result of membership inference by loss.

    Attributes:
        members: number of training rows that were measured.
        outsiders: number of held-out rows that were measured.
        loss: the attack by the trained model's loss.
        calibrated: the attack by how far training lowered the loss.
    """

    members: int
    outsiders: int
    loss: Separation
    calibrated: Separation

    @property
    def worst(self) -> float:
        """Returns the AUC of the stronger attack: an attacker would use it."""
        return max(self.loss.auc, self.calibrated.auc)

    @property
    def upper_bound(self) -> float:
        """Returns the larger upper end of the attacks' 95 % confidence intervals."""
        return max(self.loss.auc_interval[1], self.calibrated.auc_interval[1])


class Exposure(Strict):
    """How well the weights remember canaries.

    Attributes:
        canaries: number of canaries.
        repetitions: how often each canary occurs in the training rows.
        candidates: number of texts that a canary is ranked among by loss, itself included.
        bits: exposure of each canary, log2(candidates) - log2(rank). A text that was not trained on exceeds b bits
            with probability 2^-b.
    """

    canaries: int
    repetitions: int
    candidates: int
    bits: tuple[float, ...]

    @property
    def largest(self) -> float:
        """Returns the exposure of the canary that is remembered best, in bits."""
        return max(self.bits)

    @property
    def mean(self) -> float:
        """Returns the mean exposure in bits; about 1.44 = 1/ln 2 where nothing is remembered."""
        return sum(self.bits) / len(self.bits)


class Privacy(Strict):
    """All findings of a run; those that the job spec does not demand are None.

    Attributes:
        differential: the guarantee of differentially private training.
        membership: the result of membership inference.
        exposure: the exposure of the canaries.
        withheld: the reason for which the release gate withheld the weights; None if it released them.
    """

    differential: DifferentialPrivacy | None = None
    membership: Membership | None = None
    exposure: Exposure | None = None
    withheld: str | None = None
