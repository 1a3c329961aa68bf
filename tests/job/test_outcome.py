"""What goes into the sealed result of a job that failed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer.errors import ErrorCode, JobError
from trainer.job.outcome import MAX_LOG_BYTES, _gather_tree, _without_rows, with_checked_output
from trainer.job.result_statements import JobOutcome
from trainer.job.tree_removal import remove_tree
from trainer.job.workspace import Workspace, filesystem_type, open_workspace
from trainer.spec import parse_job_spec

SHM = Path("/dev/shm")


SPEC = parse_job_spec(
    f"""\
version: 1
model:
  model_name_or_path: ./model
  model_file_sha256: {{config.json: {"a" * 64}, model.safetensors: {"b" * 64}}}
""".encode()
)
WEIGHTS = b"\x02\0\0\0\0\0\0\0{}"

pytestmark = pytest.mark.skipif(filesystem_type(SHM) != "tmpfs", reason="no tmpfs at /dev/shm")


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    with open_workspace(SHM) as workspace:
        (workspace.output / "adapter").mkdir()
        (workspace.output / "adapter" / "adapter_model.safetensors").write_bytes(WEIGHTS)
        (workspace.output / "adapter" / "adapter_config.json").write_bytes(b"{}")
        yield workspace


def tree_of(workspace: Workspace, code: ErrorCode) -> set[str]:
    outcome = JobOutcome(1, 2, {}, JobError(code, "it went wrong"))
    tree = _gather_tree(outcome, workspace, SPEC)
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("code", "released"), [(ErrorCode.TRAINING_DIVERGED, True), (ErrorCode.INTERNAL, False)]
)
def test_only_a_divergence_brings_the_last_sound_adapter_along(
    workspace: Workspace, code: ErrorCode, *, released: bool
) -> None:
    assert ("adapter/adapter_model.safetensors" in tree_of(workspace, code)) is released


def checked(workspace: Workspace) -> JobOutcome:
    return with_checked_output(JobOutcome(1, 2, {}, None), workspace, SPEC)


def test_an_output_of_weights_is_a_success(workspace: Workspace) -> None:
    assert checked(workspace).failure is None


@pytest.mark.parametrize(
    "name", ["adapter/extra.py", "report/report.html", "merged/model.bin", "adapter/link"]
)
def test_a_worker_that_leaves_something_else_has_failed(workspace: Workspace, name: str) -> None:
    path = workspace.output / name
    path.parent.mkdir(exist_ok=True)
    if path.name == "link":
        path.symlink_to("/etc/passwd")
    else:
        path.write_bytes(b"<script>1</script>")
    failure = checked(workspace).failure
    assert failure is not None
    assert failure.code is ErrorCode.JOB_FAILED
    assert name in str(failure.found)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_worker_that_leaves_no_complete_adapter_has_failed(
    workspace: Workspace, file: str
) -> None:
    (workspace.output / "adapter" / file).unlink()
    failure = checked(workspace).failure
    assert failure is not None
    assert failure.found == f"no adapter/{file}"


@pytest.mark.parametrize("name", ["adapter", "report", "merged"])
def test_a_link_in_the_place_of_a_directory_is_not_followed(
    workspace: Workspace, name: str, tmp_path: Path
) -> None:
    if (workspace.output / name).exists():
        (workspace.output / name).rename(workspace.root / "elsewhere")
    (workspace.output / name).symlink_to(tmp_path)
    failure = checked(workspace).failure
    assert failure is not None
    assert failure.found == f"{name}: a link"


def test_directories_without_end_are_a_failure_and_are_removed(workspace: Workspace) -> None:
    """Deeper than Python calls itself, and than a path may be long."""
    descriptor = os.open(workspace.output / "adapter", os.O_RDONLY)
    for _ in range(3_000):
        os.mkdir("deeper", dir_fd=descriptor)
        below = os.open("deeper", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=descriptor))
    os.close(descriptor)
    failure = checked(workspace).failure
    assert failure is not None
    assert failure.code is ErrorCode.JOB_FAILED
    remove_tree(workspace.output)
    assert not workspace.output.exists()


def test_metrics_nested_without_end_are_a_failure_with_a_report(workspace: Workspace) -> None:
    """Python raises RecursionError for them, which is no ValueError."""
    (workspace.output / "report").mkdir()
    (workspace.output / "report" / "metrics.jsonl").write_bytes(b"[" * 100_000)
    failure = checked(workspace).failure
    assert failure is not None
    assert failure.found == "report/metrics.jsonl: nested too deeply"


def test_something_else_is_not_released_with_a_failure_either(workspace: Workspace) -> None:
    (workspace.output / "adapter" / "extra.py").write_bytes(b"import os")
    assert tree_of(workspace, ErrorCode.TRAINING_DIVERGED) == {"report/failure.json"}


def test_logs_are_sealed_as_text(workspace: Workspace) -> None:
    workspace.private_log.write_bytes(b"a \x1b[31mred\xff line\r\nnext\n")
    assert "logs/job.log" in tree_of(workspace, ErrorCode.INTERNAL)
    (log,) = workspace.root.rglob("logs/job.log")
    assert log.read_text("utf-8") == "a \\u001b[31mred\\xff line\nnext\n"


JOINT_SPEC = SPEC.model_copy(
    update={
        "exchange": SPEC.exchange.model_copy(update={"joint": True}),
        "output": SPEC.output.model_copy(update={"include_logs": False}),
    }
)
FAILED = JobOutcome(
    1, 2, {}, JobError(ErrorCode.INTERNAL, "a row of the first says: secret", found="secret")
)


@pytest.mark.parametrize("at_fault", [None, 1])
def test_no_log_of_a_joint_job_is_sealed(workspace: Workspace, at_fault: int | None) -> None:
    """It names files and rows of all providers, also where the report is for one of them."""
    workspace.private_log.write_bytes(b"secret")
    tree = _gather_tree(replace(FAILED, at_fault=at_fault), workspace, JOINT_SPEC)
    assert not (tree / "logs").exists()


def test_what_several_providers_are_told_of_a_failure_quotes_none_of_them() -> None:
    grant = SimpleNamespace(recipients=("age1a",), joint=None)
    several = cast("Any", SimpleNamespace(grants=(grant, grant)))
    shown = _without_rows(FAILED, several).failure
    assert shown is not None
    assert shown.code is ErrorCode.INTERNAL
    assert "secret" not in f"{shown} {shown.found} {shown.expected} {shown.hint}"
    one = cast("Any", SimpleNamespace(grants=(grant,)))
    assert _without_rows(FAILED, one) == FAILED


def test_a_log_that_grew_without_end_is_cut(workspace: Workspace) -> None:
    """A worker writes to it as it likes; the provider reads how it began and how it ended."""
    lines = [f"line {number}\n".encode() for number in range(MAX_LOG_BYTES // 8)]
    workspace.private_log.write_bytes(b"".join(lines))
    tree_of(workspace, ErrorCode.INTERNAL)
    (log,) = workspace.root.rglob("logs/job.log")
    text = log.read_bytes()
    assert MAX_LOG_BYTES <= len(text) < MAX_LOG_BYTES + 200
    assert text.startswith(b"line 0\n")
    assert text.endswith(lines[-1])
    assert (
        b"\n[ %d bytes are left out ]\n" % (workspace.private_log.stat().st_size - MAX_LOG_BYTES)
        in text
    )
