"""A supervisor with its two children, confined by the project's own plans; each then attacks the others.

`python -P household.py`: what there is to attack comes as JSON on stdin, what became of it goes to stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.sandbox import attacks
from tests.sandbox.attack_tools import Targets, pretend_there_is_no_landlock
from tests.sandbox.channel_attacks import NOTES, was_found
from trainer.job import sandbox_plans as planning
from trainer.job.workspace import Workspace, open_workspace
from trainer.sandbox import privileges
from trainer.sandbox.confine import confine
from trainer.sandbox.plan import SandboxPlan
from trainer.spec import JobSpec


def main() -> None:
    """Run as the supervisor or, with a role as argument, as a child of it."""
    given = json.load(sys.stdin)
    if len(sys.argv) > 1:
        found = attack(given["plan"], Targets(**given["targets"]), sys.argv[1])
    else:
        found = household(given)
    json.dump(found, sys.stdout)


def household(given: dict[str, Any]) -> dict[str, Any]:
    """Outcomes by role."""
    if not given["landlock"]:
        pretend_there_is_no_landlock()
    privileges.keep_to_itself()
    if not given["separate"]:
        planning.can_separate_users = lambda: False
    spec = JobSpec.model_validate_json(json.dumps(given["spec"]))
    ciphertext = Path(given["targets"]["ciphertext"])
    with open_workspace(Path(given["base"]), tries=2) as workspace, init_process() as init:
        places = planning.JobPaths(workspace, ciphertext, Path("/"), by_files=False)
        plans = planning.make_plans(spec, places)
        tries = {"own": str(workspace.own), "other": str(workspace.of_try(2).own)}
        known = {"supervisor": os.getpid(), "init": init, "workspace": str(workspace.root), **tries}
        targets = {**given["targets"], **known}
        fill(workspace, ciphertext, plans)
        if not given["confined"]:
            return {"worker": child("worker", None, targets)}
        found: dict[str, Any] = {}
        for role in ("worker", "front"):
            found[role] = child(role, getattr(plans, role), targets)
            # Again: an attack that worked may have removed something.
            fill(workspace, ciphertext, plans)
        found["separate"] = plans.separate_users
        own = plans.supervisor.model_dump(mode="json")
        found["supervisor"] = attack(own, Targets(**targets), "supervisor")
    return found


@contextmanager
def init_process() -> Iterator[int]:
    """The container's init, which engines start with all variables of the container, tokens included."""
    with subprocess.Popen(["/bin/sleep", "600"], env={"HF_TOKEN": "hf_secret"}) as process:
        yield process.pid
        process.kill()


def fill(workspace: Workspace, ciphertext: Path, plans: planning.SandboxPlans) -> None:
    """Put something where each process has something to lose."""
    workspace.private_log.write_text("a row")
    for one in (workspace, workspace.of_try(2)):
        (one.dataset / "rows.jsonl").write_text("a row")
    (workspace.model / "config.json").write_text("{}")
    (workspace.output / "own").write_text("weights")
    (ciphertext / "dataset.age").write_text("sealed")
    if plans.separate_users:
        planning.grant_worker_access(workspace.dataset)
        (workspace.model / "config.json").chmod(0o640)
        os.chown(workspace.output / "own", planning.WORKER.uid, planning.WORKER.gid)
        os.chown(ciphertext / "dataset.age", planning.FRONT.uid, planning.FRONT.gid)


def child(role: str, plan: SandboxPlan | None, targets: dict[str, Any]) -> dict[str, Any]:
    """Outcomes of a child in its own process."""
    order = json.dumps({"plan": plan.model_dump(mode="json") if plan else None, "targets": targets})
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.sandbox.household", role],
        input=order,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{role}: {done.returncode} {done.stderr}")
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    seen = {name: was_found(found["pid"], name) for name in NOTES}
    found["attacks"] |= {
        name: "own"
        for name, is_seen in seen.items()
        if not is_seen and found["attacks"][name] == "worked"
    }
    return found


def attack(plan: dict[str, Any] | None, targets: Targets, role: str) -> dict[str, Any]:
    """Confine this process (unless there is no plan), then try everything."""
    walls = confine(SandboxPlan.model_validate_json(json.dumps(plan))) if plan else {}
    return {
        "walls": {wall.value: stands for wall, stands in walls.items()},
        "allowed": attacks.try_all(attacks.ALLOWED[role], targets),
        "attacks": attacks.try_all(attacks.ATTACKS[role], targets),
        "pid": os.getpid(),
        "uid": os.getuid(),
        "targets": asdict(targets),
    }


if __name__ == "__main__":
    main()
