"""The number of optimizer steps of a run, from the lengths of its rows. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.spec import METHOD_RULES, JobSpec, total_steps
from trainer.training.bin_packing import best_fit_decreasing


def count_steps(spec: JobSpec, lengths: Sequence[int], processes: int = 1) -> int:
    """Returns the number of optimizer steps.

    Args:
        spec: the job.
        lengths: tokens of each training example; a pair has two.
        processes: how many ranks share a step.
    """
    if spec.data.packing:
        return total_steps(
            spec.train, len(best_fit_decreasing(lengths, spec.data.max_length)), processes
        )
    return total_steps(
        spec.train, len(lengths) // METHOD_RULES[spec.train.method].examples_per_row, processes
    )
