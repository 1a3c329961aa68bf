"""Public output: a closed set of typed fields, and nothing else, not even from C."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from trainer import logs
from trainer.errors import ErrorCode, JobError
from trainer.models import Activity, Phase

CHILD = """
import ctypes, os, sys
from pathlib import Path
from trainer import logs
from trainer.models import Activity, Phase
public = logs.take_over_output(Path(sys.argv[1]))
print("canary from print")
sys.stderr.write("canary from stderr\\n")
os.write(1, b"canary from the descriptor\\n")
ctypes.CDLL(None).puts(b"canary from C"); ctypes.CDLL(None).fflush(None)
logs.private.error("canary from the private log")
public(logs.PhaseEntered(Phase.TRAINING))
sys.stdout.flush()
raise RuntimeError("canary from a traceback")
"""


def test_events_are_json_lines() -> None:
    stream = StringIO()
    public = logs.PublicLog(stream)
    public(logs.PhaseEntered(Phase.TRAINING))
    public(logs.TrainingProgress(3, 20, None))
    public(logs.PreparationProgress(Activity.TOKENIZING, 35, 40))
    public(logs.JobFailed(ErrorCode.WORKER_DIED))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["phase", "progress", "preparation", "failed"]
    assert lines[1] | {"time": 0} == {
        "time": 0,
        "event": "progress",
        "step": 3,
        "total_steps": 20,
        "eta_seconds": None,
    }
    assert (lines[2]["activity"], lines[2]["percent"], lines[2]["eta_seconds"]) == (
        "tokenizing",
        35,
        40,
    )
    assert lines[3]["code"] == "worker-died"


@dataclass(frozen=True)
class Leak(logs.PublicEvent):
    event = "leak"
    value: object


@pytest.mark.parametrize(
    "value", ["some text", 1.25, True, ["x"], {"a": 1}, ValueError("x"), Path("/x"), "A" * 64]
)
def test_free_text_losses_and_objects_cannot_be_public(value: object) -> None:
    stream = StringIO()
    with pytest.raises(TypeError):
        logs.PublicLog(stream)(Leak(value))
    assert stream.getvalue() == ""


def test_every_public_event_has_public_fields_only() -> None:
    allowed = {"Phase", "Activity", "ErrorCode", "int", "str", "int | None", "str | None"}
    for event in logs.PublicEvent.__subclasses__():
        if event.__module__ == logs.__name__:
            fields = {name: kind for name, kind in event.__annotations__.items() if name != "event"}
            assert set(fields.values()) <= allowed


def test_a_closed_reader_does_not_stop_the_job() -> None:
    class Closed(StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    logs.PublicLog(Closed())(logs.PhaseEntered(Phase.DONE))


def test_everything_else_goes_to_the_private_log(tmp_path: Path) -> None:
    log = tmp_path / "private.log"
    done = subprocess.run([sys.executable, "-c", CHILD, str(log)], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr == b""
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["phase"]
    private = log.read_text()
    for source in ("print", "stderr", "the descriptor", "C", "the private log", "a traceback"):
        assert f"canary from {source}" in private
    assert log.stat().st_mode & 0o777 == 0o600


def test_an_error_that_was_raised_on_purpose_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = StringIO()
    caplog.set_level(logging.INFO, logs.private.name)  # as in a job
    monkeypatch.setattr(logs.private, "handlers", [logs.limited_handler(text)])
    for error in (
        JobError(ErrorCode.FRONT_DIED, "it ended", expected="a", found="b"),
        ValueError("unexpected"),
    ):
        try:
            raise error
        except (JobError, ValueError) as caught:
            logs.log_error("something did not work", caught)
    purpose, _, rest = text.getvalue().partition("\n")
    assert purpose.endswith("something did not work: it ended: expected a, got b (front-died)")
    assert "Traceback" in rest
    assert "ValueError: unexpected" in rest
