"""The worker's variables: chosen here, not by whoever started the VM."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from trainer.worker.environment import QUIET, replace_environment, worker_environment

HOSTILE = {
    "HF_ENDPOINT": "https://evil.example",
    "HTTPS_PROXY": "https://evil.example",
    "HF_HUB_OFFLINE": "0",
    "HF_HUB_DISABLE_TELEMETRY": "0",
    "WANDB_API_KEY": "x",
    "PYTHONSTARTUP": "/tmp/evil.py",
    "LD_PRELOAD": "/tmp/evil.so",
    "HOME": "/root",
    "TMPDIR": "/mnt/disk",
    "TORCH_LOGS": "+all",
}


def test_nothing_hostile_is_kept() -> None:
    environment = worker_environment({**HOSTILE, "PATH": "/bin", "LC_ALL": "C"}, Path("/scratch"))
    assert environment["PATH"] == "/bin"
    assert environment["LC_ALL"] == "C"
    for name, value in HOSTILE.items():
        assert environment.get(name) != value, name
    assert {name: environment[name] for name in QUIET} == dict(QUIET)


def test_every_place_to_write_is_in_the_scratch_directory() -> None:
    environment = worker_environment(HOSTILE, Path("/scratch"))
    places = {name: value for name, value in environment.items() if value.startswith("/")}
    assert {"HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME", "UNSLOTH_COMPILE_LOCATION"} <= set(
        places
    )
    assert all(Path(place).is_relative_to("/scratch") for place in places.values())


def test_the_process_gets_exactly_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, place = dict(os.environ), tempfile.gettempdir()  # looked up once, and remembered
    try:
        os.environ.update(HOSTILE)
        replace_environment(tmp_path / "scratch")
        assert dict(os.environ) == worker_environment({**before, **HOSTILE}, tmp_path / "scratch")
        assert (tmp_path / "scratch").stat().st_mode & 0o777 == 0o700
        assert Path(os.environ["TMPDIR"]).is_dir()
        assert tempfile.gettempdir() == os.environ["TMPDIR"] != place
    finally:
        os.environ.clear()
        os.environ.update(before)
        tempfile.tempdir = None
