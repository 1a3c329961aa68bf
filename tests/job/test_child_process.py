"""Children start with a short list of variables and the descriptors they are meant to have."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from trainer.job import child_process as children


def test_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("LD_PRELOAD", "/evil.so")
    monkeypatch.setenv("PYTHONPATH", "/evil")
    monkeypatch.setenv("LANG", "C.UTF-8")
    environment = children.clean_environment(tmp_path, {"EXTRA": "1"})
    assert not {"HF_TOKEN", "LD_PRELOAD", "PYTHONPATH"} & set(environment)
    assert environment["LANG"] == "C.UTF-8"
    assert environment["TMPDIR"] == environment["HOME"] == str(tmp_path)
    assert environment["EXTRA"] == "1"


def test_a_child_on_standby_imports_nothing_before_its_byte(tmp_path: Path) -> None:
    """What follows the byte is its own to read; without one it ends."""
    (tmp_path / "echo.py").write_text("import sys; print(sys.argv[1:], sys.stdin.read())")
    out, environment = tmp_path / "out", {"PYTHONPATH": str(tmp_path)}
    for sent, printed in ((b"\nhello", "['-x'] hello\n"), (b"", "")):
        reading, writing = os.pipe()
        with out.open("wb") as log:
            process = children.start_module(
                "echo", ["-x"], environment=environment, log=log, stdin=reading, standby=True
            )
        os.close(reading)
        assert out.read_text() == ""
        os.write(writing, sent)
        os.close(writing)
        assert process.wait(20) == 0
        assert out.read_text() == printed


def test_a_child_inherits_only_the_descriptors_named(tmp_path: Path) -> None:
    (tmp_path / "listing.py").write_text("import os; print(sorted(os.listdir('/proc/self/fd')))")
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    with (tmp_path / "log").open("ab") as log:
        process = children.start_module(
            "listing", [], environment={**os.environ, "PYTHONPATH": str(tmp_path)}, log=log
        )
        assert process.wait(20) == 0
    os.close(reading)
    os.close(writing)
    seen = (tmp_path / "log").read_text()
    assert f"'{writing}'" not in seen or writing <= 3


def test_a_child_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "TERMINATE_SECONDS", 0.3)
    ready = tmp_path / "ready"
    (tmp_path / "stubborn.py").write_text(
        f"import signal, time, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    )
    with (tmp_path / "log").open("ab") as log:
        process = children.start_module(
            "stubborn", [], environment={**os.environ, "PYTHONPATH": str(tmp_path)}, log=log
        )
    while not ready.exists():
        time.sleep(0.02)
    children.stop_process(process)
    assert process.returncode == -signal.SIGKILL
    assert sys.executable in process.args  # type: ignore[operator]
