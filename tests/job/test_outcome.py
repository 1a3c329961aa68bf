"""What goes into the sealed result of a job that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.errors import ErrorCode, JobError
from trainer.job.outcome import JobOutcome, _gather_tree
from trainer.job.workspace import Workspace, filesystem_type, open_workspace

SHM = Path("/dev/shm")


def tree_of(workspace: Workspace, code: ErrorCode) -> set[str]:
    adapter = workspace.output / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    outcome = JobOutcome(1, 2, {}, JobError(code, "it went wrong"))
    tree = _gather_tree(outcome, workspace, include_logs=True)
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}


@pytest.mark.skipif(filesystem_type(SHM) != "tmpfs", reason="no tmpfs at /dev/shm")
def test_only_a_divergence_brings_the_last_sound_adapter_along() -> None:
    with open_workspace(SHM) as workspace:
        assert "adapter/adapter_model.safetensors" in tree_of(workspace, ErrorCode.TRAINING_DIVERGED)
    with open_workspace(SHM) as workspace:
        assert "adapter/adapter_model.safetensors" not in tree_of(workspace, ErrorCode.INTERNAL)
