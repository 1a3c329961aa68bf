"""Measure the cost of confidentiality: a complete job, and the same training in one plain process.

    python scripts/prepare_demo.py CACHE
    python -m benchmarks.job_cost --cache CACHE [--rounds 3] [--steps 240] [--json]

Sides, each measured as real processes from the start of the first to the end of the last:

- `job`: `trainer run` and `trainer submit` with the development guest agent: supervisor, front and worker in their
  sandboxes; verify, seal, upload, train, sign, seal, pull, open, acknowledge. The provider's command starts when
  the job accepts datasets. Key and policy are made once, before the measurement.
- `plain`: the worker's code in one process with the same spec, model, data, seed and allocator, without sandbox,
  supervisor, network and encryption. It makes the same adapter, evaluations, samples and report.
- `stock`: HF `Trainer` on a PEFT model, as a user without this project would write it; it does not evaluate.
- `before`: like `job`, with another interpreter (`--before PYTHON`) that imports an earlier version of the code.

The order of the sides is reversed from round to round. Figures:

- *whole*: duration of a side, in wall-clock seconds and in processor seconds of all processes; the latter depend
less
  on other work of the machine;
- *step*: ratio of the durations of an optimizer step. Both sides run the same steps, so the steps between two that
  the job publishes are compared with the same ones of the other side, and the median is taken over all of these
  and all rounds; in wall-clock seconds and (*step CPU*) in processor seconds of the training process;
- *beside training*: seconds of the whole that are not training: starts, attestation, uploads, evaluation, samples.
  With `--lean` neither side evaluates or samples, so that their difference is visible on a busy machine, too;
- *least training*: the duration of training from which the job takes at most 1.02 times as long as the plain run,
  computed from these medians: (job's beside - 1.02 · plain's beside) / (1.02 - step); none if a step costs more
  than 1.02. *By CPU* is the same in processor seconds; use it on a machine with other work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from benchmarks.job_cost_sides import Confidential, Run, Setting, confidential, run_plain, run_stock

GOAL: Final = 1.02
ROOT: Final = Path(__file__).parents[1]
MARKS: Final = (
    "spec", "listening", "awaiting-dataset", "submit", "dataset-received", "opening", "training", "first step",
    "sealing", "result-sealed", "submitted", "end",
)  # fmt: skip
PARTS: Final = ("import", "load", "tokenize", "sample", "eval", "train", "save", "total")

Side = Callable[[], Run]


def write_job(options: argparse.Namespace, folder: Path) -> Setting:
    """Write the demo's job spec with `options.steps` steps and the model's absolute path."""
    spec = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text("utf-8"))
    model = (options.cache / "models" / "SmolLM2-135M-Instruct").resolve()
    spec["model"]["model_name_or_path"] = str(model)
    spec["train"] |= {"max_steps": options.steps, "eval_steps": None}
    if options.lean:
        spec["data"]["test_split_size"], spec["output"] = 0.0, {"samples": 0}
        del spec["train"]["per_device_eval_batch_size"]  # means nothing without held-out rows
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump(spec))
    return Setting(folder, job, model, (options.cache / "faq-en.jsonl").resolve())


def measure(sides: Mapping[str, Side], rounds: int) -> dict[str, list[Run]]:
    """Run all sides in turn, in reverse order in every second round."""
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            runs[name].append(sides[name]())
            last = runs[name][-1]
            said = f"{last.whole:7.1f} s, training {last.train_seconds:7.1f} s, CPU {last.cpu_seconds:7.1f} s"
            print(f"round {number + 1}  {name:7}{said}", file=sys.stderr, flush=True)
    return runs


def summarise(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Return the medians of each side, and the ratios of the job to the other sides."""
    summary: dict[str, Any] = {"sides": {name: side_summary(found) for name, found in runs.items()}}
    jobs = runs["job"]
    summary["job_against"] = {
        name: against(jobs, found) for name, found in runs.items() if name != "job"
    }
    if "before" in runs and "plain" in runs:
        summary["before_against_plain"] = against(runs["before"], runs["plain"])
    return summary


def side_summary(runs: Sequence[Run]) -> dict[str, Any]:
    marks = {name: median(run.marks[name] for run in runs) for name in runs[0].marks}
    parts = {name: median(run.parts.get(name, 0.0) for run in runs) for name in runs[0].parts}
    return {
        "whole": median(run.whole for run in runs),
        "cpu": median(run.cpu_seconds for run in runs),
        "train": median(run.train_seconds for run in runs),
        "beside": median(run.whole - run.train_seconds for run in runs),
        "step": median(pace for run in runs for pace in paces(run, run)),
        "eval_loss_after": runs[0].loss,
        "marks": marks,
        "parts": parts,
    }


def against(jobs: Sequence[Run], others: Sequence[Run]) -> dict[str, Any]:
    """Return the ratios of one side to another, as medians over the rounds."""
    pairs = list(zip(jobs, others, strict=True))
    step = median(
        mine / theirs
        for job, other in pairs
        for mine, theirs in zip(paces(job, job), paces(job, other), strict=True)
    )
    step_cpu = median(job.step_seconds_cpu / other.step_seconds_cpu for job, other in pairs)
    cpu, their_cpu = (
        median(run.cpu_seconds - run.train_cpu for run in side) for side in (jobs, others)
    )
    beside, their_beside = (
        median(run.whole - run.train_seconds for run in side) for side in (jobs, others)
    )
    return {
        "whole": median(job.whole / other.whole for job, other in pairs),
        "cpu": median(job.cpu_seconds / other.cpu_seconds for job, other in pairs),
        "step": step,
        "train": median(job.train_seconds / other.train_seconds for job, other in pairs),
        "more_seconds": round(beside - their_beside, 2),
        "least_training_seconds": least_training(beside, their_beside, step),
        "step_cpu": step_cpu,
        "more_cpu_seconds": round(cpu - their_cpu, 2),
        "least_training_cpu_seconds": least_training(cpu, their_cpu, step_cpu),
    }


def least_training(beside: float, their_beside: float, step: float) -> float | None:
    """Return *least training* in seconds, as the module defines it; None if no duration suffices."""
    missing = beside - GOAL * their_beside
    if missing <= 0:
        return 0.0 if step <= GOAL else None
    return round(missing / (GOAL - step), 1) if step < GOAL else None


def paces(job: Run, run: Run) -> list[float]:
    """Return the seconds per step of `run` between the steps that `job` published; interpolates where it must."""
    steps = sorted(job.steps)
    times = np.interp(steps, sorted(run.steps), [run.steps[step] for step in sorted(run.steps)])
    return [
        float(end - begin) / (last - first)
        for (first, begin), (last, end) in itertools.pairwise(zip(steps, times, strict=True))
    ]


def median(values: Iterator[float] | Sequence[float]) -> float:
    return round(statistics.median(values), 4)


def show(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the table."""
    sides = summary["sides"]
    yield f"{'':10}{'whole':>9}{'training':>10}{'beside':>9}{'step':>9}{'CPU':>9}   seconds, medians"
    for name, row in sides.items():
        times = f"{row['whole']:9.2f}{row['train']:10.2f}{row['beside']:9.2f}{row['step']:9.3f}{row['cpu']:9.1f}"
        yield f"{name:10}{times}"
    compared = {f"job / {name}": row for name, row in summary["job_against"].items()}
    if "before_against_plain" in summary:
        compared["before / plain"] = summary["before_against_plain"]
    yield ""
    yield f"{'':24}{'whole':>8}{'step':>8}{'more s':>9}   within {GOAL} from"
    for name, row in compared.items():
        for kind, whole, step, more, least in (
            ("clock", "whole", "step", "more_seconds", "least_training_seconds"),
            ("CPU", "cpu", "step_cpu", "more_cpu_seconds", "least_training_cpu_seconds"),
        ):
            met = "no length" if row[least] is None else f"{row[least]:.0f} s of training"
            yield f"{name:16}{kind:8}{row[whole]:8.3f}{row[step]:8.3f}{row[more]:9.2f}   {met}"
    yield from show_times(sides)


def show_times(sides: Mapping[str, Any]) -> Iterator[str]:
    confidential_sides = [name for name in ("before", "job") if name in sides]
    yield ""
    yield f"{'a job, seconds from its start':34}" + "".join(
        f"{name:>9}" for name in confidential_sides
    )
    for mark in MARKS:
        times = [sides[name]["marks"].get(mark) for name in confidential_sides]
        yield f"  {mark:32}" + "".join("        -" if at is None else f"{at:9.2f}" for at in times)
    steps = [
        name for name in sides[confidential_sides[-1]]["marks"] if name.startswith("provider: ")
    ]
    for mark in steps:
        yield f"  {mark:32}" + "".join(
            f"{sides[name]['marks'][mark]:9.2f}" for name in confidential_sides
        )
    own = [name for name in (*confidential_sides, "plain") if name in sides]
    yield ""
    yield f"{'the worker by its own watch':34}" + "".join(f"{name:>9}" for name in own)
    for part in PARTS:
        yield f"  {part:32}" + "".join(
            f"{sides[name]['parts'].get(part, 0.0):9.2f}" for name in own
        )


def sides_of(options: argparse.Namespace, setting: Setting, job: Confidential) -> dict[str, Side]:
    sides: dict[str, Side] = {"job": job.run}
    if "plain" in options.sides:
        sides["plain"] = lambda: run_plain(setting, sys.executable)
    if "stock" in options.sides:
        sides["stock"] = lambda: run_stock(setting, sys.executable)
    return sides


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cache", type=Path, required=True, help="directory that scripts/prepare_demo.py filled"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=240, help="optimizer steps of 4 rows (240: some minutes)"
    )
    parser.add_argument(
        "--sides", type=lambda text: text.split(","), default=["plain", "stock"],
        help="sides to compare the job with: plain, stock, or both (default)",
    )  # fmt: skip
    parser.add_argument(
        "--before",
        metavar="PYTHON",
        help="an interpreter that imports an earlier version of the code",
    )
    parser.add_argument(
        "--lean",
        action="store_true",
        help="no held-out rows and no samples, on which both sides spend the same",
    )
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        setting = write_job(options, Path(name))
        with confidential(setting) as job:
            sides = sides_of(options, setting, job)
            if options.before is None:
                summary = summarise(measure(sides, options.rounds))
            else:
                with confidential(setting, options.before) as before:
                    summary = summarise(measure({"before": before.run, **sides}, options.rounds))
    print(json.dumps(summary) if options.json else "\n".join(show(summary)))


if __name__ == "__main__":
    main()
