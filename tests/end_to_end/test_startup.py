"""The provider's commands are light: what they import is asserted, command by command, on their real way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Job, Provider, StartJob, WriteSpec

HEAVY = {
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "numpy",
    "fastapi",
    "uvicorn",
    "dstack_sdk",
    "pynvml",
}
RUN = """
import json, sys
from trainer.cli.app import run_command_line as run
code = run(sys.argv[2:])
open(sys.argv[1], "w").write(json.dumps([code, sorted(sys.modules)]))
"""


def modules_of(tmp_path: Path, *arguments: object, code: int = 0) -> set[str]:
    """Names of all modules that a command had imported when it ended with `code`."""
    report = tmp_path / "modules.json"
    subprocess.run(
        [sys.executable, "-c", RUN, report, *map(str, arguments)], capture_output=True, check=True
    )
    ended, modules = json.loads(report.read_text())
    assert ended == code
    return {name.partition(".")[0] for name in modules}


def test_help_imports_next_to_nothing(tmp_path: Path) -> None:
    assert not (HEAVY | {"httpx", "cryptography", "dcap_qvl", "pydantic"}) & modules_of(
        tmp_path, "--help"
    )


def test_no_step_of_the_provider_imports_the_training_stack(
    start_job: StartJob, write_spec: WriteSpec, provider: Provider, data: Path, tmp_path: Path
) -> None:
    spec, spool = write_spec(tmp_path / "job.yaml"), tmp_path / "spool"
    job: Job = start_job(spec, "--spool", spool)
    job.wait_event(event="phase", phase="awaiting-dataset")
    recipient, policy, record = (
        provider.keygen(),
        provider.policy(spec),
        tmp_path / "attestation.json",
    )
    sealed = tmp_path / "dataset.age"
    grant = f"{sealed}.grant.json"
    steps = (
        ("validate", data, "--job", spec),
        ("policy", "explain", policy),
        ("verify", spool, "--policy", policy, "-o", record),
        ("seal", data, "--policy", policy, "--attestation", record, "-r", recipient, "-o", sealed),
        ("upload", sealed, "--job-url", spool, "--policy", policy, "--attestation", record),
        (
            "watch",
            spool,
            "--policy",
            policy,
            "--attestation",
            record,
            "-i",
            provider.identity,
            "--grant",
            grant,
        ),
        ("pull", spool, "--policy", policy, "--attestation", record, "-o", tmp_path / "result.age"),
        (
            "open",
            tmp_path / "result.age",
            "-i",
            provider.identity,
            "-o",
            tmp_path / "out",
            "--attestation",
            record,
            "--policy",
            policy,
            "--grant",
            grant,
        ),
    )
    for step in steps:
        assert not HEAVY & modules_of(tmp_path, *step), step


def test_submit_does_not_import_the_training_stack(
    provider: Provider, write_spec: WriteSpec, data: Path, tmp_path: Path
) -> None:
    provider.keygen()
    policy = provider.policy(write_spec(tmp_path / "job.yaml"))
    nobody = "https://127.0.0.1:9"
    modules = modules_of(
        tmp_path, "submit", data, "--job-url", nobody, "--policy", policy, "-i", provider.identity,
        "-o", tmp_path / "result", code=3,
    )  # fmt: skip
    assert "httpx" in modules
    assert not HEAVY & modules
