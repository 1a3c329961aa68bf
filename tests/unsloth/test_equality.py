"""unsloth's kernels compute what transformers computes, over methods, kinds of adapters and architectures."""

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
METHOD_FACTOR: dict[str, float] = {}


def distance(found: Measured, expected: Measured) -> float:
    def joined(gradients: dict[str, Tensor]) -> Tensor:
        return torch.cat([gradients[name].flatten() for name in sorted(gradients)])

    exact = joined(expected["gradients"])
    return float((joined(found["gradients"]) - exact).norm() / exact.norm())


@pytest.mark.parametrize("case", [case for case in CASES if case != "dropout"])
def test_a_step_is_that_of_transformers(
    case: str, unsloth_loader: Any, reference: dict[tuple[str, bool], Measured], models: Path, tmp_path: Path
) -> None:
    """Losses and gradients of one step, and the loss of held-out rows."""
    model_dir = models / CASES[case].get("architecture", LLAMA)
    found = measure(unsloth_loader, make_spec(case, "unsloth"), model_dir, tmp_path)
    exact, same_types = reference[case, True], reference[case, False]
    assert found["gradients"].keys() == exact["gradients"].keys()
    # bfloat16 moves the two answers of a pair each by itself, and their difference is what trains.
    assert distance(found, exact) < max(GRADIENTS, 3 * distance(same_types, exact))
    assert found["sums"][0] == pytest.approx(exact["sums"][0], rel=LOSSES * METHOD_FACTOR.get(case, 1))
    assert found["held_out"] == pytest.approx(exact["held_out"], rel=LOSSES)


def test_dropout_drops_while_training_alone(
    unsloth_loader: Any, reference: dict[tuple[str, bool], Measured], models: Path, tmp_path: Path
) -> None:
    """Its masks are drawn by a kernel of its own: no step is that of transformers, but no less is dropped."""
    found = measure(unsloth_loader, make_spec("dropout", "unsloth"), models / LLAMA, tmp_path)
    dropped, plain = reference["dropout", True], reference["sft", True]
    assert found["held_out"] == pytest.approx(plain["held_out"], rel=LOSSES)
    assert 0.5 < distance(found, plain) / distance(dropped, plain) < 2


def test_nothing_is_compiled_but_triton_kernels(unsloth_loader: Any) -> None:
    """After the steps above: what torch.compile would make for a GPU cannot be tested here: no job runs it."""
    assert not torch._dynamo.utils.counters["stats"]
