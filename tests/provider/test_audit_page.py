"""The audit that docs/audit.md walks: its commands as they stand, over a result of the shipped compose file."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.provider.honest_result import SPEC, Sealing, opened
from trainer.attestation.policy import policy_yaml
from trainer.cli.app import run_command_line
from trainer.deployment import (
    SHIPPED_COMPOSE,
    DeploymentProfile,
    render_app_compose,
    render_compose,
)
from trainer.provider.receipt_record import record_directory
from trainer.simulator.agent import SimulatedVm, VmOptions
from trainer.simulator.appraisal_world import SEED, honest_world
from trainer.simulator.compose_files import IMAGE
from trainer.simulator.gpu_evidence import GPU_BOOT

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "audit.md").read_text("utf-8").partition("## An audit of a result")[2]
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
ELSEWHERE = ("git ", "scripts/")
"""Beginnings of the commands that build the image."""


@pytest.fixture
def folder(sealing: Sealing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with `result`, its record, and a policy."""
    compose = re.sub(
        r"(?m)^(    image: ).*$", rf"\g<1>{IMAGE}", render_compose(SHIPPED_COMPOSE, SPEC)
    )
    app = render_app_compose(compose, DeploymentProfile.SEALED).decode()
    options = VmOptions(gpu_attestation=GPU_BOOT, image="dstack-0.6.0")
    # Records are judged under NVIDIA's own root, so the test's GPU stays out of them.
    world = honest_world(vm=SimulatedVm(app, SEED, options=options)).without_reports()
    world = world.claiming(job_spec_sha256=sealing.spec.sha256())
    world = world.demanding("app", job_spec_sha256=(sealing.spec.sha256(),))
    result = opened(replace(sealing, world=world), tmp_path)
    result.write_record()
    record_directory(result.folder).rename(tmp_path / "result.record")
    result.folder.rename(tmp_path / "result")
    (tmp_path / "policy.yaml").write_text(policy_yaml(world.policy))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.slow
def test_the_walk_of_the_page_passes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("model_signing")
    pytest.importorskip("securesystemslib")
    ran = []
    for language, block in BLOCKS:
        if language == "python":
            exec(block, {})
            continue
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[0] == "trainer":
                assert run_command_line(words[1:]) == 0, line
            elif not line.startswith(ELSEWHERE):
                subprocess.run(["bash", "-euc", line], check=True)
            ran.append(words[0])
    said = capfd.readouterr().out
    assert IMAGE in said
    assert "every check passed again" in said
    assert "https://slsa.dev/provenance/v1" in said
    assert {"trainer", "python3", "grep", "model_signing"} <= set(ran)
