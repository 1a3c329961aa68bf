"""What a person sees while a job runs: one line that moves on a terminal, and few plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.test_widths import CODES, on_a_terminal, too_long
from trainer.cli.terminal_progress import TerminalProgress
from trainer.models import Activity, Phase, Status
from trainer.provider.job_events import EventDisplay, PrivateMetrics

STEPS = 40


def events() -> list[Status | PrivateMetrics]:
    training = Status(phase=Phase.TRAINING)
    return [
        Status(phase=Phase.OPENING),
        training.model_copy(
            update={"activity": Activity.TOKENIZING, "percent": 10, "eta_seconds": 300}
        ),
        training.model_copy(
            update={"activity": Activity.TOKENIZING, "percent": 90, "eta_seconds": 30}
        ),
        training.model_copy(update={"activity": Activity.LOADING}),
        PrivateMetrics({"step": 0, "eval_loss": 4.5}),
        *(
            event
            for step in range(1, STEPS + 1)
            for event in (
                Status(
                    phase=Phase.TRAINING,
                    step=step,
                    total_steps=STEPS,
                    eta_seconds=60 * (STEPS - step),
                ),
                PrivateMetrics({"step": step, "loss": 5.0 - step / 10, "learning_rate": 1e-4}),
            )
        ),
        Status(phase=Phase.SEALING),
        Status(phase=Phase.AWAITING_PULL, result_bytes=1),
    ]


def show_all(**options: Any) -> None:
    with TerminalProgress(**options) as progress:
        display = EventDisplay(progress)
        for event in events():
            display.show(event)


@pytest.mark.parametrize("columns", [80, 60])
def test_training_is_one_line_on_a_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    shown = on_a_terminal(columns, show_all)
    lines = [
        CODES.sub("", line).split("\r")[-1].rstrip()
        for line in shown.replace("\r\n", "\n").split("\n")
    ]
    assert not too_long("\n".join(lines), columns)
    last = [line for line in lines if "training" in line and f"{STEPS}/{STEPS}" in line]
    assert len(last) == 1, lines
    assert last[0].endswith("loss 1  eval loss 4.5")
    assert len([line for line in lines if line]) <= 10, lines
    assert any("tokenizing" in line and "30 s left" in line for line in lines)


def test_plain_lines_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    show_all()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[:3] == ["  opening", "  training", "  tokenizing 10 %, 5 min left"]
    assert "  step 0  eval loss 4.5" in lines
    assert f"  training: {STEPS} of {STEPS} (100 %)" in lines
    assert sum(line.startswith("  training: ") for line in lines) <= 11
    assert lines[-2:] == ["  sealing", "  awaiting-pull"]


def test_where_a_command_follows_a_job_its_lines_are_the_result(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_all(on_stdout=True)
    out, err = capsys.readouterr()
    assert "  awaiting-pull" in out.splitlines()
    assert err == ""


@pytest.mark.parametrize("show", [show_all])
def test_quiet_is_quiet(show: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    show(quiet=True)
    assert capsys.readouterr() == ("", "")
