"""`trainer audit`: exit codes, the one JSON object, and what a person reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from trainer.cli.app import run_command_line as run
from trainer.deployment import SHIPPED_COMPOSE, render_compose
from trainer.errors import ExitCode
from trainer.simulator.compose_files import JOB

IMAGE = "x@sha256:" + "ab" * 32
SHIPPED = render_compose(SHIPPED_COMPOSE, JOB).replace(
    "@sha256:" + "00" * 32, "@sha256:" + "ab" * 32
)
CHANGED = SHIPPED.replace(
    "    environment:\n", "    pid: host\n    environment:\n      API_KEY: hunter2\n"
)


@pytest.fixture
def compose(tmp_path: Path) -> Path:
    path = tmp_path / "docker-compose.yaml"
    path.write_text(CHANGED)
    return path


@pytest.mark.parametrize(
    ("fail_on", "code"), [("high", 4), ("medium", 4), ("info", 4), ("critical", 0), ("never", 0)]
)
def test_exit_code_by_threshold(compose: Path, fail_on: str, code: int) -> None:
    assert run(["audit", str(compose), "--fail-on", fail_on]) == code


def test_high_is_the_default(compose: Path) -> None:
    assert run(["audit", str(compose)]) == ExitCode.VERIFICATION
    compose.write_text(SHIPPED)
    assert run(["audit", str(compose)]) == ExitCode.DONE
    assert run(["audit", str(compose), "--fail-on", "low"]) == ExitCode.DONE
    assert run(["audit", str(compose), "--fail-on", "info"]) == ExitCode.VERIFICATION


def test_json_is_one_object(compose: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["audit", str(compose), "--against", str(compose), "--json"]) == ExitCode.VERIFICATION
    )
    audited = json.loads(capsys.readouterr().out)
    assert set(audited) == {
        "compose_sha256",
        "job_spec_sha256",
        "who_may_submit",
        "findings",
        "changes",
    }
    assert (audited["compose_sha256"], audited["changes"]) == (None, [])
    assert len(audited["job_spec_sha256"]) == 64
    first = audited["findings"][0]
    assert set(first) == {"severity", "code", "line", "path", "message", "hint"}
    assert (first["severity"], first["code"], first["line"]) == ("high", "shared-namespace", 10)


def test_a_person_reads_findings_changes_and_a_summary(
    compose: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = compose.with_name("old.yaml")
    old.write_text(
        compose.read_text().replace("pid: host", "tty: true").replace("hunter2", "hunter1")
    )
    run(["audit", str(compose), "--against", str(old)])
    text = capsys.readouterr().out
    assert "shared-namespace" in text
    assert "services.trainer.environment.API_KEY" in text
    assert "hunter" not in text
    assert "compose hash: none" in text
    assert text.rstrip().endswith("findings: 3 high, 1 info")


@pytest.mark.parametrize("text", [None, "services: [", "a: 1", "{"])
def test_what_cannot_be_read_is_a_usage_error(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "compose"
    if text is not None:
        path.write_text(text)
    assert run(["audit", str(path)]) == ExitCode.USAGE
    assert "error[" in capsys.readouterr().err


def test_a_path_is_printed_as_it_is(compose: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = compose.with_name("old.yaml")
    old.write_text(CHANGED)
    compose.write_text(
        CHANGED.replace("    pid: host\n", "    pid: host\n    working_dir: '/data:key:/x'\n")
    )
    run(["audit", str(compose), "--against", str(old)])
    assert "/data:key:/x" in capsys.readouterr().out


def test_a_table_ends_somewhere(compose: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compose.write_text(
        "services:\n"
        + "".join(
            f"  s{index}: {{image: {IMAGE}, tty: {index}, read_only: true, init: true}}\n"
            for index in range(600)
        )
    )
    old = compose.with_name("old.yaml")
    old.write_text(compose.read_text().replace("tty", "hostname").replace("image", "imag"))
    run(["audit", str(old), "--against", str(compose)])
    text = capsys.readouterr().out
    assert "… and 1302 more findings: --json lists all" in text
    assert "… and 1900 more changes: --json lists all" in text


@pytest.mark.parametrize("columns", [80, 120])
def test_nothing_is_wider_than_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    configs = Path(__file__).parents[2] / "configs"
    old, new = configs / "app-compose-sealed.json", configs / "app-compose-kms.json"
    run(["audit", str(new), "--against", str(old)])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert any(line.startswith("changed ") for line in lines)
    assert [line for line in lines if len(line) > columns or line != line.rstrip()] == []
