"""Measure how much a job's other processes slow training down: within one job they are stopped and continued in
turn.

    python scripts/prepare_demo.py CACHE
    python -m benchmarks.process_interference --cache CACHE [--steps 240] [--window 6] [--json]

On a shared machine, step times of two runs differ by some percent, which is more than the effect to be measured.
This compares adjacent time windows of one run: in every second window, supervisor, front and the provider's
`submit` are stopped with SIGSTOP, while the worker continues to train. The worker's seconds per token are those of
`metrics.jsonl`; a step that spans two windows is left out.

*Ratio* is (seconds per token of a window in which the others run) / (those of a window in which they are stopped),
each window compared with the mean of the two adjacent ones, averaged over all windows. Its standard error is
computed as if the ratios were independent; adjacent ratios share windows, so the true error is up to about 1.7
times larger. A window should contain several steps, because rows differ in length: with 30 steps and windows of 2
s the ratio is noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.job_cost import write_job
from benchmarks.job_cost_sides import children_of, confidential, worker_of

Window = tuple[bool, float]
"""Whether the others ran, and the worker's mean seconds for a token."""


@dataclass
class Alternation:
    """Stops and continues the other processes while a job trains.

    Attributes:
        seconds: of a window.
        edges: steps done at the beginning of each window, and whether the others run in it.
        seconds_per_token: of each step.
    """

    seconds: float
    edges: list[tuple[int, bool]] = field(default_factory=list)
    seconds_per_token: list[float] = field(default_factory=list)

    def __call__(self, workspace: Path, job: int, submit: int) -> None:
        """Run windows from the first steps until the worker removes its metrics."""
        others: list[int] = []
        running = True
        try:
            while self._look(workspace):
                if self.seconds_per_token:
                    others = others or sorted({submit, job, *children_of(job)} - {worker_of(job)})
                    running = not running
                    self.edges.append((len(self.seconds_per_token), running))
                    tell(others, signal.SIGCONT if running else signal.SIGSTOP)
                time.sleep(self.seconds)
        finally:
            tell(others, signal.SIGCONT)

    def _look(self, workspace: Path) -> bool:
        """Read the new steps; returns False at the end of training, which may shorten the last window."""
        found = next(workspace.rglob("metrics.jsonl"), None)
        if found is None or (found.parent / "summary.json").exists():
            return not self.seconds_per_token
        lines = [
            json.loads(line)
            for line in found.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]
        self.seconds_per_token = [
            1 / line["input_tokens_per_second"]
            for line in lines
            if "input_tokens_per_second" in line
        ]
        return True

    def windows(self) -> list[Window]:
        """Return the windows that contain at least one complete step."""
        spans = (
            (running, start + 1, end)
            for (start, running), (end, _) in itertools.pairwise(self.edges)
        )
        return [
            (running, statistics.fmean(self.seconds_per_token[start:end]))
            for running, start, end in spans
            if start < end
        ]


def tell(processes: Iterable[int], what: signal.Signals) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, what)


def ratios(windows: Sequence[Window]) -> list[float]:
    """Return the ratio of each window to the two adjacent ones, running over stopped."""
    found = []
    for place in range(1, len(windows) - 1):
        (before, first), (running, own), (after, last) = windows[place - 1 : place + 2]
        beside = (first + last) / 2
        if before == after != running:
            found.append(own / beside if running else beside / own)
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        options.lean = True
        setting = write_job(options, Path(name))
        alternation = Alternation(options.window)
        with confidential(setting) as job:
            job.run(meanwhile=alternation)
    found = ratios(alternation.windows())
    if len(found) < 2:
        raise SystemExit("too few windows: give more --steps")
    return {
        "steps": len(alternation.seconds_per_token),
        "windows": len(found),
        "ratio": round(statistics.fmean(found), 4),
        "standard_error": round(statistics.stdev(found) / len(found) ** 0.5, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cache", type=Path, required=True, help="directory that scripts/prepare_demo.py filled"
    )
    parser.add_argument(
        "--steps", type=int, default=240, help="optimizer steps of 4 rows (240: some minutes)"
    )
    parser.add_argument("--window", type=float, default=6.0, help="seconds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options)
    if options.json:
        print(json.dumps(found))
    else:
        print(f"ratio {found['ratio']} ± {found['standard_error']}, {found['windows']} windows")


if __name__ == "__main__":
    main()
