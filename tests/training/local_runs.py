"""Runs in the process of the test: the same order again and again, watched, broken off, and compared."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.data.rows import read_files
from trainer.model_files.start_adapter import StartAdapter
from trainer.spec import JobSpec
from trainer.training.engines.choice import choose_engine
from trainer.training.events import CheckpointWritten, StepCompleted, TrainingEvent
from trainer.training.interruption import Interruption, Interrupts
from trainer.training.report.summary import Summary
from trainer.training.run import run
from trainer.training.run_inputs import CHECKPOINT_FILES, RunInputs
from trainer.training.stages.run_context import RunContext
from trainer.training.stopwatch import Stopwatch

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

RATES = {"tokens_per_second", "input_tokens_per_second"}
"""The only metrics that depend on how fast the machine is."""


@dataclass(frozen=True)
class Went:
    """How far a run went, and what it left."""

    output: Path
    summary: Summary | None
    saved: dict[int, Path]

    @property
    def adapter(self) -> bytes:
        return (self.output / "adapter" / "adapter_model.safetensors").read_bytes()

    @property
    def curve(self) -> list[dict[str, float]]:
        lines = (self.output / "report" / "metrics.jsonl").read_text().splitlines()
        return [
            {key: value for key, value in json.loads(line).items() if key not in RATES}
            for line in lines
        ]

    @property
    def facts(self) -> dict[str, object]:
        assert self.summary is not None
        return self.summary.model_dump(exclude={"seconds", "resumed_at"})


class Runs:
    """Carries out the same order again and again, as the worker does, with a supervisor who takes checkpoints."""

    def __init__(self, folder: Path, model: Path, data: Path, spec: JobSpec) -> None:
        self.folder, self.model, self.data, self.spec = folder, model, data, spec
        self.count = 0
        self.adapter: Path | None = None  # directory of the adapter that training starts from

    def __call__(
        self, resume: Path | None = None, *, watch: Callable[[TrainingEvent, Interrupts], None] | None = None,
        interrupts: Interrupts | None = None,
    ) -> Went:  # fmt: skip
        self.count += 1
        output, taken = self.folder / f"out{self.count}", self.folder / f"taken{self.count}"
        output.mkdir()
        taken.mkdir()
        interrupts = interrupts or Interrupts()
        saved: dict[int, Path] = {}

        def report(message: TrainingEvent) -> None:
            if isinstance(message, CheckpointWritten):
                saved[message.step] = taken / str(message.step)
                (output / "checkpoints" / str(message.step)).rename(saved[message.step])
                assert sorted(path.name for path in saved[message.step].iterdir()) == sorted(
                    CHECKPOINT_FILES
                )
            if watch is not None:
                watch(message, interrupts)

        start = self.adapter
        order = RunInputs(
            spec=self.spec, model_dir=self.model, output_dir=output, resume_dir=resume, split_key=b"\x5b" * 32,
            start_adapter=StartAdapter(*(start / name for name in ADAPTER_FILES)) if start else None,
        )  # fmt: skip
        rows = read_files({self.data.name: self.data}, max_rows=1000)
        torch.manual_seed(self.count)  # a new process begins anywhere
        random.seed(self.count)
        loader = choose_engine(self.spec)
        try:
            summary = run(order, rows, loader, RunContext(report, Stopwatch(), interrupts))
        except Interruption:
            summary = None
        return Went(output, summary, saved)

    def stopped_after(self, step: int, resume: Path | None = None) -> Path:
        """A run to which the signal comes while `step` is reported; returns its checkpoint."""

        def stop(message: TrainingEvent, interrupts: Interrupts) -> None:
            if isinstance(message, StepCompleted) and message.step == step:
                interrupts.arrive()

        went = self(resume, watch=stop)
        assert went.summary is None
        assert not (went.output / "adapter").exists()
        return went.saved[step]


def same(went: Went, expected: Went) -> None:
    assert went.adapter == expected.adapter
    assert went.curve == expected.curve
    assert went.facts == expected.facts
