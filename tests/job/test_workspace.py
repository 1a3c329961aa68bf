"""The private directory is in memory or there is none, and it does not outlive the job."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import ErrorCode, JobError
from trainer.job.destruction import destroy_try
from trainer.job.workspace import Workspace, filesystem_type, open_workspace

SHM = Path("/dev/shm")
needs_tmpfs = pytest.mark.skipif(filesystem_type(SHM) != "tmpfs", reason="no tmpfs at /dev/shm")


@needs_tmpfs
def test_it_is_private_and_gone_afterwards() -> None:
    with open_workspace(SHM) as workspace:
        assert workspace.root.stat().st_mode & 0o777 == 0o700
        (workspace.dataset / "rows.jsonl").write_text("plaintext")
        root = workspace.root
    assert not root.exists()


@needs_tmpfs
def test_it_is_gone_after_a_failure_too() -> None:
    roots = []

    def fail() -> None:
        with open_workspace(SHM) as workspace:
            roots.append(workspace.root)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not roots[0].exists()


@needs_tmpfs
def test_each_try_has_directories_of_its_own() -> None:
    with open_workspace(SHM, tries=3) as workspace:
        tries = [workspace.of_try(number) for number in (1, 2, 3)]
        assert [one.tries_left for one in tries] == [2, 1, 0]
        folders = {folder for one in tries for folder in (one.dataset, one.output, one.scratch)}
        assert len(folders) == 9
        assert all(folder.is_dir() for folder in folders)
        assert {one.model for one in tries} == {workspace.model}


@needs_tmpfs
def test_what_a_refused_dataset_left_is_destroyed_and_the_next_ones_directories_stay() -> None:
    """The log too: the worker wrote about rows to it, and it is sealed to the next provider."""
    with open_workspace(SHM, tries=2) as workspace:
        for folder in (workspace.dataset, workspace.output, workspace.scratch, workspace.result):
            folder.mkdir(exist_ok=True)
            (folder / "canary").write_text("canary")
        for log in (workspace.private_log, workspace.front_log):
            log.write_text("canary")
        (workspace.model / "config.json").write_text("public")
        destroy_try(workspace)
        files = {path.relative_to(workspace.root).as_posix() for path in workspace.root.rglob("*")}
        assert files == {
            "job.log", "front.log", "model", "model/config.json",
            "tries", "tries/2", "tries/2/dataset", "tries/2/output", "tries/2/scratch",
        }  # fmt: skip
        assert [log.stat().st_size for log in (workspace.private_log, workspace.front_log)] == [
            0,
            0,
        ]


ABANDON = """
import os, signal, sys
from pathlib import Path
from trainer.job.workspace import open_workspace

with open_workspace(Path(sys.argv[1])) as workspace:
    (workspace.dataset / "rows.jsonl").write_text("plaintext")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_tmpfs
def test_plaintext_of_a_killed_start_is_removed_by_the_next_and_that_of_a_running_one_is_not() -> (
    None
):
    with tempfile.TemporaryDirectory(dir=SHM) as folder:
        base = Path(folder)
        (base / "trainer-job-link").symlink_to("/usr")
        (base / "trainer-other").mkdir()
        with open_workspace(base) as running:
            subprocess.run([sys.executable, "-c", ABANDON, base], check=False, timeout=60)
            assert len([*base.glob("trainer-job-*/tries/1/dataset/rows.jsonl")]) == 1
            with open_workspace(base) as workspace:
                assert {*base.iterdir()} == {
                    running.root,
                    workspace.root,
                    base / "trainer-job-link",
                    base / "trainer-other",
                }


def test_a_workspace_that_goes_while_it_is_looked_at_is_nobodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of another job on this machine, which ends at that moment."""
    with tempfile.TemporaryDirectory(dir=SHM) as name:
        going = Path(name) / "trainer-job-going"
        going.mkdir()
        really = os.open

        def go(path: Any, *options: int, **more: Any) -> int:
            if path == going:
                going.rmdir()
            return really(path, *options, **more)

        monkeypatch.setattr(os, "open", go)
        with open_workspace(Path(name)) as workspace:
            assert workspace.root.is_dir()
        assert not going.exists()


def test_a_disk_is_refused() -> None:
    disk = Path("/usr")
    if filesystem_type(disk) == "tmpfs":
        pytest.skip("everything here is memory")
    with pytest.raises(JobError) as caught, open_workspace(disk):
        pass
    assert caught.value.code is ErrorCode.WORKSPACE_UNSAFE
    assert "tmpfs" in str(caught.value)


def test_file_system_of_the_deepest_mount_counts() -> None:
    assert filesystem_type(Path("/proc/self")) == "proc"
    assert filesystem_type(Path("/")) != "proc"


@pytest.mark.parametrize("keeps", [True, False])
def test_the_last_sound_adapter_is_kept_while_room_is_made(tmp_path: Path, keeps: bool) -> None:
    workspace = Workspace(tmp_path)
    for folder in (workspace.model, workspace.output, workspace.scratch):
        (folder / "adapter").mkdir(parents=True)
    workspace.make_room(keep_output=keeps)
    left = [
        folder
        for folder in (workspace.model, workspace.output, workspace.scratch)
        if any(folder.iterdir())
    ]
    assert left == ([workspace.output] if keeps else [])
