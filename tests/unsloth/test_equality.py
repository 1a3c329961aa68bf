"""unsloth's kernels compute what transformers computes, over kinds of adapters, precisions and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unsloth.measured_step import CASES, ROUNDED, make_spec, measure, model_name

Measured = dict[str, Any]
SAME = 1e-5
"""Distance in float32, where only the order of sums may differ: 1e-6 was seen."""


def gradient_distance(found: Measured, expected: Measured) -> float:
    """Returns the distance of all gradients from the expected ones, over their norm."""

    def joined(gradients: dict[str, Tensor]) -> Tensor:
        return torch.cat([gradients[name].flatten() for name in sorted(gradients)])

    exact = joined(expected["gradients"])
    return float((joined(found["gradients"]) - exact).norm() / exact.norm())


def loss_distance(found: Measured, expected: Measured) -> float:
    """Returns the larger relative distance of the step's loss and of that of held-out rows."""
    return max(abs(float(found[name]) / float(expected[name]) - 1) for name in ("loss", "held_out"))


@pytest.mark.parametrize("case", CASES)
def test_a_step_in_float32_is_that_of_transformers(
    case: str,
    unsloth_loader: Any,
    reference: dict[tuple[str, bool], Measured],
    models: Path,
    tmp_path: Path,
) -> None:
    """Over methods, adapters, dropout and noise by the same seed, and models: it is the same formula."""
    found = measure(
        unsloth_loader, make_spec(case, "unsloth", exact=True), models / model_name(case), tmp_path
    )
    exact = reference[case, True]
    assert found["gradients"].keys() == exact["gradients"].keys()
    assert gradient_distance(found, exact) < SAME
    assert loss_distance(found, exact) < SAME


@pytest.mark.parametrize("case", ROUNDED)
def test_bfloat16_loses_no_more_than_with_transformers(
    case: str,
    unsloth_loader: Any,
    reference: dict[tuple[str, bool], Measured],
    models: Path,
    tmp_path: Path,
) -> None:
    """Both are compared with float32. A loss of pairs is a difference of sums, which loses several times more."""
    found = measure(unsloth_loader, make_spec(case, "unsloth"), models / model_name(case), tmp_path)
    exact, ours = reference[case, True], reference[case, False]
    assert gradient_distance(found, exact) < 2 * gradient_distance(ours, exact)
    assert loss_distance(found, exact) < max(0.005, 2 * loss_distance(ours, exact))
