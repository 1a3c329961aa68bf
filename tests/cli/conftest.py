"""Evidence, collateral and policy in files: what `trainer verify` needs where there is no network."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trainer.attestation.claims.binding import report_data
from trainer.attestation.evidence import DatasetClaims, Evidence, Recipients
from trainer.attestation.policy import (
    CollateralDocument,
    OsMeasurements,
    OsSection,
    Policy,
    policy_yaml,
    strict_app,
    strict_policy,
)
from trainer.sandbox.properties import EXPECTED
from trainer.simulator.agent import SimulatedVm, simulated_measurements
from trainer.simulator.claimed_keys import RECEIPT_KEY, derived_keys, key_chain, possession
from trainer.spec import parse_job_spec

NONCE = "5a" * 32
COMPOSE = '{"name":"files"}'
SEED = b"a seed of 32 bytes for the files"
SPEC = f"""\
version: 1
model:
  model_name_or_path: ./model
  model_file_sha256: {{config.json: {"a" * 64}, model.safetensors: {"b" * 64}}}
""".encode()


@dataclass(frozen=True)
class Files:
    """A job's evidence and the provider's policy, as files in `folder`."""

    folder: Path
    evidence: Path
    policy: Path
    nonce: str
    demanded: Policy
    again: Callable[..., Path]
    """Writes other evidence of the same job: `again(nonce=…)`."""

    def write_policy(self, name: str, **sections: Any) -> Path:
        """The policy with some sections changed: `write_policy("p.yaml", sandbox=("seccomp",))`."""
        path = self.folder / name
        path.write_text(policy_yaml(self.demanded.model_copy(update=sections)))
        return path


def _claims(vm: SimulatedVm, nonce: str, now: int, **changes: Any) -> DatasetClaims:
    claims = DatasetClaims(
        version=1,
        purpose="dataset",
        nonce=nonce,
        job_spec_sha256=parse_job_spec(SPEC).sha256(),
        recipients=Recipients(derived="age1" + "q" * 58, instance="age1" + "p" * 58),
        derived_keys=derived_keys(vm),
        receipt_key=RECEIPT_KEY,
        tls_key=None,
        gpu_evidence_sha256=None,
        sandbox={"core_dumps_off": True},
        software={},
        issued_at=now,
        expires_at=now + 86400,
    )
    return claims.model_copy(update=changes)


def _evidence(vm: SimulatedVm, claims: DatasetClaims) -> Evidence:
    quoted = vm.quote(report_data(claims))
    return Evidence(
        claims=claims,
        quote=quoted.quote.hex(),
        possession=possession(vm, claims),
        event_log=quoted.event_log,
        vm_config=quoted.vm_config,
        app_compose=vm.app_compose,
        compose_hash=f"sha256:{vm.compose_hash.hex()}",
        key_chain=key_chain(vm),
    )


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Honest evidence for `NONCE`, in date now, and a strict policy without GPUs that brings its collateral."""
    for name in ("STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("COLUMNS", "80")
    now, vm = int(time.time()), SimulatedVm(COMPOSE, SEED)

    def again(name: str = "evidence.json", nonce: str = NONCE, **changes: Any) -> Path:
        path = tmp_path / name
        path.write_bytes(_evidence(vm, _claims(vm, nonce, now, **changes)).canonical())
        return path

    policy = strict_policy(
        strict_app(COMPOSE, [parse_job_spec(SPEC)]),
        trust_root_pem=vm.pki.root_pem,
        collateral=CollateralDocument(document=json.dumps(vm.pki.collateral(now))),
        os=OsSection(measurements=(OsMeasurements(**vars(simulated_measurements())),)),
        gpu_required=False,
        sandbox=("core_dumps_off",),
    )
    path = tmp_path / "policy.yaml"
    path.write_text(policy_yaml(policy))
    return Files(tmp_path, again(), path, NONCE, policy, again)


@dataclass(frozen=True)
class DeployedJob:
    """A job in a simulated VM that answers as a carrier does, and the options of `policy init` that fit it.

    `pins` are those that name its key service, if it has one.
    """

    vm: SimulatedVm
    options: tuple[str, ...]
    pins: tuple[str, ...] = ()
    peer_spki_sha256: str | None = None

    def attestation(self, nonce: str) -> bytes:
        """Evidence over `nonce`."""
        sandbox = dict.fromkeys((name.value for name in EXPECTED), True)
        return _evidence(
            self.vm, _claims(self.vm, nonce, int(time.time()), sandbox=sandbox)
        ).canonical()


@pytest.fixture
def deploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], DeployedJob]:
    """Starts a VM with an app-compose.json; every `--from-job` reaches it."""
    for name in ("STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))

    def start(app_compose: str) -> DeployedJob:
        vm = SimulatedVm(app_compose, SEED)
        (tmp_path / "job.yaml").write_bytes(SPEC)
        (tmp_path / "root.pem").write_text(vm.pki.root_pem)
        (tmp_path / "collateral.json").write_text(json.dumps(vm.pki.collateral(int(time.time()))))
        (tmp_path / "measurements.json").write_text(json.dumps(vars(simulated_measurements())))
        options = (
            f"--job={tmp_path}/job.yaml",
            f"--trust-root={tmp_path}/root.pem",
            f"--collateral={tmp_path}/collateral.json",
            f"--measurements={tmp_path}/measurements.json",
            "--no-gpu",
            f"--output={tmp_path}/policy.yaml",
        )
        pins = (
            f"--kms-root-key={vm.key_service.root_public_key.hex()}",
            f"--app-id={vm.app_id.hex()}",
        )
        job = DeployedJob(vm, options, pins if vm.has_key_service else ())
        monkeypatch.setattr("trainer.provider.connect_to_job", lambda _location: job)
        return job

    return start
