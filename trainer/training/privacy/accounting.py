"""Computes the noise that a privacy budget requires, and the ε that a run has spent, with Opacus's accountants.

The accountants analyse the Gaussian mechanism under Poisson sampling: every step draws every row independently
with the same probability. Two datasets are neighbours if one has a row that the other lacks. The accountants are:

- `prv`: Gopi, Lee and Wutschitz, "Numerical composition of differential privacy", arXiv:2106.02848;
- `rdp`: Mironov, Talwar and Zhang, "Rényi differential privacy of the sampled Gaussian mechanism",
  arXiv:1908.10530.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from trainer.data.examples.privacy_rows import require_rows_for_delta
from trainer.errors import ErrorCode, JobError
from trainer.spec import PrivacySection

_T = TypeVar("_T")


@dataclass(frozen=True)
class Mechanism:
    """The sampled Gaussian mechanism of a run; fixed before the first step.

    Attributes:
        rows: number of training rows; considered public.
        expected_rows: expected number of rows in a step. The noisy sum is divided by it, not by the number drawn,
            which depends on the presence of a single row.
        steps: number of optimizer steps.
        noise_multiplier: standard deviation of the noise in multiples of `max_grad_norm`.
        max_grad_norm: bound on the L2 norm of a row's gradient, taken over all trained parameters together.
        delta: the δ of (ε, δ).
        accountant: `prv` or `rdp`.
    """

    rows: int
    expected_rows: int
    steps: int
    noise_multiplier: float
    max_grad_norm: float
    delta: float
    accountant: str

    @property
    def sample_rate(self) -> float:
        """Returns the probability with which a step draws a given row."""
        return min(1.0, self.expected_rows / self.rows)


def plan_mechanism(
    section: PrivacySection, *, rows: int, expected_rows: int, steps: int
) -> Mechanism:
    """Chooses the noise that keeps a run within its privacy budget.

    Args:
        section: the budget (ε, δ), or a fixed noise multiplier.
        rows: number of training rows.
        expected_rows: expected number of rows in a step.
        steps: number of optimizer steps.

    Raises:
        DataError: `PRIVACY_NOT_MET`: δ is too large for this number of rows.
        JobError: `PRIVACY_NOT_MET`: no amount of noise suffices.
    """
    delta = section.target_delta
    if delta is None:
        raise AssertionError("the spec refuses a budget without target_delta")
    require_rows_for_delta(rows, delta)
    rate = min(1.0, expected_rows / rows)
    multiplier = section.noise_multiplier or _noise_for(section, rate, steps)
    return Mechanism(
        rows, expected_rows, steps, multiplier, section.max_grad_norm, delta, section.accountant
    )


def _noise_for(section: PrivacySection, rate: float, steps: int) -> float:
    """Returns the smallest noise multiplier, within a tolerance, for which all steps together stay below ε.

    ε falls as the noise grows, so Opacus bisects. The tolerance is on ε and one-sided: the result never exceeds
    it.
    """
    from opacus.accountants.utils import get_noise_multiplier  # noqa: PLC0415 -- an optional dependency

    search = partial(
        get_noise_multiplier,
        target_epsilon=section.target_epsilon,
        target_delta=section.target_delta,
        sample_rate=rate,
        steps=steps,
        accountant=section.accountant,
        # At most 1 % of ε is left unspent, and at most 0.01.
        epsilon_tolerance=min(0.01, 0.01 * (section.target_epsilon or 1)),
    )
    return float(_no_bound_if_raising(search))


def new_accountant(kind: str) -> Any:
    """Creates an accountant of Opacus with an empty history."""
    from opacus.accountants import create_accountant  # noqa: PLC0415 -- an optional dependency

    return create_accountant(kind)


def spent(accountant: Any, delta: float) -> float:
    """Returns an upper bound on ε at `delta` for the steps in an accountant's history.

    Raises:
        JobError: `PRIVACY_NOT_MET`: the accountant finds no finite bound.
    """
    # The history has the noise and sample rate of every step. The accountant composes the steps, which is tighter
    # than adding up what each one spends.
    epsilon = float(_no_bound_if_raising(lambda: accountant.get_epsilon(delta=delta)))
    if not math.isfinite(epsilon) or epsilon < 0:
        raise _no_bound(f"ε = {epsilon}")
    return epsilon


def require_within(epsilon: float, section: PrivacySection) -> None:
    """Checks the ε that a run has spent against the budget; a section with a fixed noise multiplier may have none.

    Raises:
        JobError: `PRIVACY_NOT_MET`: `epsilon` exceeds `target_epsilon`.
    """
    if section.target_epsilon is not None and epsilon > section.target_epsilon:
        raise JobError(
            ErrorCode.PRIVACY_NOT_MET,
            "more privacy was spent than privacy.target_epsilon",
            expected=f"ε of at most {section.target_epsilon}",
            found=epsilon,
        )


def _no_bound_if_raising(compute: Callable[[], _T]) -> _T:
    """Calls an accountant, and turns the errors of its numerics into `PRIVACY_NOT_MET`.

    An accountant that cannot compute a bound must never count as one that found a small one.
    """
    try:
        # With a sample rate of 1, Opacus takes logarithms of 0, which are correct there but cause warnings.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compute()
    except (ArithmeticError, ValueError, RuntimeError, MemoryError, IndexError) as error:
        raise _no_bound(type(error).__name__) from error


def _no_bound(found: str) -> JobError:
    return JobError(
        ErrorCode.PRIVACY_NOT_MET,
        "the accountant finds no bound on the privacy spent",
        expected="a finite ε",
        found=found,
        hint="raise privacy.target_epsilon or target_delta, take fewer steps, or set privacy.accountant to rdp",
    )
