"""Measure the duration of the provider's commands: complete processes, alternating, medians.

    python benchmarks/startup.py [--rounds 7] [--result DIR] [--json]

`verify` reads evidence from a file and collateral from the policy, so that no network time is included.
`--result` names an opened result with its record beside it, for `receipt verify`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trainer.attestation.evidence import DatasetClaims, GpuEvidence, Recipients
from trainer.job.job_keys import derive_keys
from trainer.provider.policies import select_sandbox_demands
from trainer.receipt.dsse import public_key_der
from trainer.sealing.age import generate_identity
from trainer.simulator.agent import SimulatedVm
from trainer.simulator.server import simulated_agent_server
from trainer.simulator.state import publish
from trainer.tee.guest_agent import GuestAgent
from trainer.tee.quoted_evidence import collect

NONCE = "5a" * 32
SPEC = f"""\
version: 1
model:
  model_name_or_path: ./model
  model_file_sha256: {{config.json: {"a" * 64}, model.safetensors: {"b" * 64}}}
"""


def trainer(folder: Path, *arguments: object) -> float:
    """Run one command, with its state in `folder`; returns its seconds."""
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "xdg")}
    command = [sys.executable, "-m", "trainer", *map(str, arguments)]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def prepare(folder: Path) -> None:
    """Write evidence, and a policy that accepts it."""
    from trainer.spec import parse_job_spec

    spec = parse_job_spec(SPEC.encode())
    (folder / "job.yaml").write_text(SPEC)
    vm = SimulatedVm('{"name":"benchmark"}', b"benchmark seed, 32 bytes long ..")
    now = int(time.time())
    publish(vm, folder, now)
    with simulated_agent_server(folder / "s", vm):
        agent = GuestAgent(str(folder / "s"))
        keys = derive_keys(agent, spec.sha256())
        claims = DatasetClaims(
            version=1,
            purpose="dataset",
            nonce=NONCE,
            job_spec_sha256=spec.sha256(),
            recipients=Recipients(
                derived=str(keys.derived.recipient()), instance=str(generate_identity().recipient())
            ),
            derived_keys=keys.derived_keys,
            receipt_key=public_key_der(keys.receipt.public_key()).hex(),
            tls_key=None,
            gpu_evidence_sha256=None,
            sandbox=dict.fromkeys(select_sandbox_demands([spec]), True),
            software={},
            issued_at=now,
            expires_at=now + 86400,
        )
        evidence = collect(
            agent,
            claims,
            possession=keys.prove_possession(claims),
            gpu=GpuEvidence(),
            key_chain=keys.key_chain,
        )
    (folder / "evidence.json").write_bytes(evidence.canonical())
    trainer(
        folder, "policy", "init", "--app-compose", folder / "app-compose.json", "--job", folder / "job.yaml",
        "--trust-root", folder / "root.pem", "--collateral", folder / "collateral.json",
        "--measurements", folder / "measurements.json", "--no-gpu", "-o", folder / "policy.yaml",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        commands: dict[str, tuple[object, ...]] = {
            "--help": ("--help",),
            "verify --help": ("verify", "--help"),
            "policy explain": ("policy", "explain", folder / "policy.yaml"),
            "verify": (
                "verify", folder / "evidence.json", "--nonce", NONCE, "--policy", folder / "policy.yaml",
                "-o", folder / "attestation.json", "--html", folder / "attestation.html",
            ),
            "verify bundle": ("verify", folder / "attestation.json", "--json"),
        }  # fmt: skip
        if options.result:
            commands["receipt verify"] = ("receipt", "verify", options.result, "--json")
        seconds: dict[str, list[float]] = {command: [] for command in commands}
        for _ in range(options.rounds):
            for output in folder.glob("attestation.*"):  # which no command overwrites
                output.unlink()
            for command, arguments in commands.items():
                seconds[command].append(trainer(folder, *arguments))
    medians = {command: round(statistics.median(values), 3) for command, values in seconds.items()}
    if options.json:
        print(json.dumps(medians))
        return
    for command, median in medians.items():
        print(f"trainer {command:16} {median:.3f} s")


if __name__ == "__main__":
    main()
