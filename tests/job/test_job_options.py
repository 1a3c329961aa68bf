"""Where the job spec comes from: a path, or the measured environment of the container."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.errors import ErrorCode, UsageError
from trainer.job.job_options import JobOptions
from trainer.simulator.compose_files import JOB
from trainer.spec import from_compose, parse_job_spec, read_job_spec, to_compose


def test_a_path_and_the_variable_give_the_same_job(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    by_path, folder = JobOptions(path).read_spec({})
    by_variable, root = JobOptions(None).read_spec({"TRAINER_JOB": JOB})
    assert by_path == by_variable == read_job_spec(path)
    assert (folder, root) == (tmp_path, Path("/"))


def test_path_and_variable_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    with pytest.raises(UsageError, match="given twice") as refusal:
        JobOptions(path).read_spec({"TRAINER_JOB": JOB})
    assert int(refusal.value.exit_code) == 2
    assert str(path) in str(refusal.value.found)


def test_neither_is_refused() -> None:
    with pytest.raises(UsageError, match="no job spec") as refusal:
        JobOptions(None).read_spec({"TRAINER_JOBS": JOB})
    assert "TRAINER_JOB" in str(refusal.value.expected)


def test_a_variable_that_is_no_job_spec_is_refused() -> None:
    for text in ("", "version: 1\n", "\udcff: 1\n"):
        with pytest.raises(UsageError) as refusal:
            JobOptions(None).read_spec({"TRAINER_JOB": text})
        assert refusal.value.code is ErrorCode.SPEC_INVALID


def test_the_command_line_refuses_both_with_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    command = [sys.executable, "-m", "trainer", "run"]
    for arguments, job in (([str(path)], JOB), ([], None)):
        environment = {**os.environ, **({"TRAINER_JOB": job} if job else {})}
        ended = subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, check=False, timeout=60
        )
        assert ended.returncode == 2, ended.stderr
        assert b"TRAINER_JOB" in ended.stderr


def test_dollar_signs_pass_through_a_compose_file() -> None:
    for text in ("", "a", "$", "$$", "a${b}$c$$"):
        assert from_compose(to_compose(text)) == text
    for text in ("$A", "${A}", "$$$A", "a$"):
        assert from_compose(text) is None


def test_the_digest_is_that_of_the_text_that_the_process_gets() -> None:
    job = JOB.replace("./model", "./mo$del")
    received = from_compose(to_compose(job))
    assert received is not None
    assert parse_job_spec(received.encode()).sha256() == parse_job_spec(job.encode()).sha256()
