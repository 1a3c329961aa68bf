"""Who is confined to what: decided once, from the spec and from what this machine permits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import ErrorCode, UsageError
from trainer.job import sandbox_plans as planning
from trainer.job.sandbox_plans import FRONT, WORKER, JobPaths, make_plans
from trainer.job.workspace import Workspace, is_memory, open_workspace
from trainer.provider.policies import select_sandbox_demands
from trainer.sandbox import privileges
from trainer.sandbox.plan import Role
from trainer.spec import JobSpec, parse_job_spec

SHM = Path("/dev/shm")
pytestmark = pytest.mark.skipif(not is_memory(SHM), reason="no tmpfs at /dev/shm")


def spec(engine: str = "transformers", model: str = "/model", **train: object) -> JobSpec:
    document = {
        "version": 1,
        "model": {
            "model_name_or_path": model,
            "model_file_sha256": {"config.json": "0" * 64, "model.safetensors": "0" * 64},
            **({} if model.startswith("/") else {"model_revision": "0" * 40}),
        },
        "train": {"engine": engine, **train},
    }
    return parse_job_spec(json.dumps(document).encode())


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    with open_workspace(SHM) as workspace:
        yield workspace


def places(workspace: Workspace, ciphertext: Path, *, by_files: bool = False) -> JobPaths:
    return JobPaths(workspace, ciphertext, Path("/specs"), by_files=by_files)


def test_nobody_writes_where_another_reads(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "can_separate_users", lambda: False)
    plans = make_plans(spec(), places(workspace, tmp_path))
    assert not plans.separate_users
    assert {plan.account for plan in (plans.front, plans.worker, plans.fetch)} == {None}
    assert set(plans.worker.readable) == {workspace.model, workspace.dataset}
    assert set(plans.worker.writable) == {workspace.output, workspace.scratch}
    assert plans.standby == ()
    assert plans.front.writable == (tmp_path,)
    assert not plans.front.readable
    assert plans.fetch.writable == (workspace.model,)
    assert plans.fetch.readable == (Path("/model"),)
    assert {workspace.root, tmp_path} == set(plans.supervisor.writable)
    assert tmp_path in plans.worker.forbidden
    assert workspace.root in plans.front.forbidden
    assert [plan.role for plan in (plans.supervisor, plans.front, plans.worker)] == [
        Role.SUPERVISOR, Role.FRONT, Role.WORKER,
    ]  # fmt: skip


def test_the_worker_of_one_try_reaches_the_directories_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "can_separate_users", lambda: False)
    with open_workspace(SHM, tries=3) as workspace:
        plans = make_plans(spec(), places(workspace, tmp_path))
        tries = [workspace.of_try(number) for number in (1, 2, 3)]
        for own, plan in zip(tries, (plans.worker, *plans.standby), strict=True):
            assert plan.readable == (workspace.model, own.dataset)
            assert plan.writable == (own.output, own.scratch)
            same = {"readable": plans.worker.readable, "writable": plans.worker.writable}
            assert plan.model_copy(update=same) == plans.worker


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to hand directories over")
def test_directories_are_handed_over(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "can_separate_users", lambda: True)
    monkeypatch.setattr(planning, "may_pass", lambda *_: True)
    plans = make_plans(spec(model="org/name"), places(workspace, tmp_path))
    assert plans.separate_users
    assert (plans.front.account, plans.worker.account) == (FRONT, WORKER)
    assert plans.fetch.account == WORKER, "who talks to a hub does not own the keys"
    assert plans.supervisor.account is None
    assert workspace.root.stat().st_mode & 0o007 == 0
    assert (workspace.output.stat().st_uid, workspace.output.stat().st_mode & 0o777) == (
        WORKER.uid,
        0o700,
    )
    assert workspace.dataset.stat().st_mode & 0o7777 == 0o2750
    assert tmp_path.stat().st_gid == FRONT.gid
    secret = workspace.dataset / "data" / "rows.jsonl"
    secret.parent.mkdir(mode=0o700)
    secret.touch(0o600)
    planning.grant_worker_access(workspace.dataset)
    assert secret.stat().st_mode & 0o777 == 0o640
    assert secret.stat().st_gid == WORKER.gid


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to hand directories over")
def test_what_is_added_later_is_readable_too_with_the_capabilities_that_a_container_gets(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without CAP_FSETID a chmod would clear setgid, and a checkpoint that is opened later had root's group."""
    monkeypatch.setattr(planning, "can_separate_users", lambda: True)
    monkeypatch.setattr(planning, "may_pass", lambda *_: True)
    pid = os.fork()  # capabilities that are given up do not come back
    if pid == 0:
        try:
            privileges.drop_capabilities(keep=planning._ACCOUNT_CAPABILITIES)
            make_plans(spec(), places(workspace, tmp_path))
            privileges.drop_capabilities(keep=(privileges.CAP_DAC_OVERRIDE, privileges.CAP_KILL))
            for name in ("data/rows.jsonl", "checkpoint/state/state.json"):
                path = workspace.dataset / name
                path.parent.mkdir(mode=0o700, parents=True)
                path.touch(0o600)
                planning.grant_worker_access(workspace.dataset)
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    found = [workspace.dataset, *workspace.dataset.rglob("*")]
    assert len(found) == 6
    assert {path.stat().st_gid for path in found} == {WORKER.gid}
    assert {path.stat().st_mode & 0o777 for path in found} == {0o750, 0o640}


@pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to be told that users cannot be separated"
)
def test_users_are_not_separated_where_they_could_not_reach_their_files(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "can_separate_users", lambda: True)
    closed = tmp_path / "closed" / "ciphertext"
    closed.mkdir(parents=True)
    closed.parent.chmod(0o700)
    assert not make_plans(spec(), places(workspace, closed)).separate_users


def test_users_are_not_separated_without_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.sandbox.privileges.permitted", frozenset)
    assert not planning.can_separate_users()


def test_accounts_that_are_somebody_elses_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        pw_name = "alice"

    monkeypatch.setattr("pwd.getpwuid", lambda _: Entry())
    assert not planning._is_free(WORKER.uid)
    monkeypatch.setattr(Entry, "pw_name", "worker")
    assert planning._is_free(WORKER.uid)


@pytest.mark.parametrize("train", [{"engine": "unsloth"}, {"torch_compile": True}, {}])
def test_a_compiler_only_where_kernels_are_compiled(
    train: dict[str, Any], workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "can_separate_users", lambda: False)
    assert make_plans(spec(**train), places(workspace, tmp_path)).worker.programs is bool(train)


def test_what_policies_demand() -> None:
    strict = select_sandbox_demands([spec()])
    assert "worker_no_programs" in strict
    assert "worker_no_network" in strict
    assert not any(
        name.endswith(("_files_confined", "_own_network", "_memory_locked")) for name in strict
    )
    lenient = select_sandbox_demands([spec(), spec("unsloth")])
    assert set(strict) - set(lenient) == {"worker_no_programs", "worker_no_signals"}
    assert select_sandbox_demands([spec(torch_compile=True)]) == lenient


def test_one_process_for_each_gpu_if_so_asked(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(**train: Any) -> tuple[int, bool]:
        plan = make_plans(spec(**train), places(workspace, tmp_path)).worker
        return plan.processes, plan.loopback

    monkeypatch.setattr(planning, "can_separate_users", lambda: False)
    for found, expected in (
        ([], 1),
        (["/dev/nvidia0"], 1),
        ([f"/dev/nvidia{n}" for n in range(8)], 8),
    ):
        monkeypatch.setattr(planning, "gpus", lambda found=found: found)
        assert planned(num_processes="auto") == (expected, expected > 1)
        assert planned() == (1, False)
        assert planned(num_processes=2) == (2, True)


@pytest.mark.parametrize(
    "train",
    [
        {"fsdp": "full_shard"},
        {"engine": "unsloth", "num_processes": 2},
        {"num_processes": 0},
    ],
)
def test_what_does_not_go_together(train: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        spec(**train)  # type: ignore[arg-type]
    assert caught.value.code is ErrorCode.SPEC_INVALID
