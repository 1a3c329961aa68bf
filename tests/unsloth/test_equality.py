"""unsloth's kernels compute what transformers computes, over kinds of adapters, precisions and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unsloth.measured_step import CASES, LLAMA, make_spec, measure

Measured = dict[str, Any]
GRADIENTS = 0.05
"""Distance of all gradients from those in float32, over their norm; transformers in bfloat16 is 2 % away."""
LOSSES = 5e-3
"""The same of the losses."""


def distance(found: Measured, expected: Measured) -> float:
    def joined(gradients: dict[str, Tensor]) -> Tensor:
        return torch.cat([gradients[name].flatten() for name in sorted(gradients)])

    exact = joined(expected["gradients"])
    return float((joined(found["gradients"]) - exact).norm() / exact.norm())


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_transformers(
    case: str, unsloth_loader: Any, reference: dict[tuple[str, bool], Measured], models: Path, tmp_path: Path
) -> None:
    """Losses and gradients of one step, and the loss of held-out rows."""
    model_dir = models / CASES[case].get("architecture", LLAMA)
    found = measure(unsloth_loader, make_spec(case, "unsloth"), model_dir, tmp_path)
    exact = reference[case, True]
    assert found["gradients"].keys() == exact["gradients"].keys()
    assert distance(found, exact) < GRADIENTS
    assert found["sums"][0] == pytest.approx(exact["sums"][0], rel=LOSSES)
    assert found["held_out"] == pytest.approx(exact["held_out"], rel=LOSSES)
