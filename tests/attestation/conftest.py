"""One whole, honest appraisal on the development simulator; tests change one thing in it at a time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.attestation.gpu_bench import GPU_BOOT, NONCE, NOW, GpuBench, GpuCertificate, gpu_answer, gpu_root_sha256
from tests.attestation.honest import PEER, SPEC, demanding_policy, honest_claims, key_chain
from trainer.attestation.checks import Check, CheckState
from trainer.attestation.claims.binding import gpu_evidence_sha256, report_data
from trainer.attestation.evidence import DatasetClaims, Evidence, FreshGpuEvidence, GpuEvidence, ReceiptClaims
from trainer.attestation.nvidia.gpu_endorsements import NO_ENDORSEMENTS, GpuEndorsements
from trainer.attestation.policy import Policy
from trainer.attestation.result.attestation_result import AttestationResult
from trainer.attestation.verifier import appraise, appraise_receipt
from trainer.encoding import sha256_hex
from trainer.simulator.agent import SimulatedVm, VmOptions
from trainer.simulator.fault import Fault

SEED = b"a seed of 32 bytes for appraisals"
COMPOSE = '{\n  "name": "demo",\n  "docker_compose_file": "services: {}"\n}\n'
STATEMENT = b'{"_type": "https://in-toto.io/Statement/v1"}'

Quoted = dict[str, bytes]


@dataclass(frozen=True)
class World:
    """Inputs of an appraisal. The quote is signed for `claims`, with the TD report's fields changed by `td`."""

    vm: SimulatedVm
    claims: DatasetClaims
    gpu: GpuEvidence
    policy: Policy
    collateral: bytes
    receipt: ReceiptClaims
    quote: bytes | None = None
    evidence_changes: dict[str, Any] = field(default_factory=dict)
    td: Quoted = field(default_factory=dict)
    nonce: str = NONCE
    now: int = NOW
    peer: str | None = PEER
    nonce_unused: bool | None = True
    statement: bytes = STATEMENT
    bench: GpuBench = field(default_factory=GpuBench)
    gpu_root_sha256: str = field(default_factory=gpu_root_sha256)
    endorsements: GpuEndorsements = NO_ENDORSEMENTS
    gpu_rim_root_sha256: str = "00" * 32

    def change(self, **changes: Any) -> World:
        """This world with other inputs."""
        return replace(self, **changes)

    def claiming(self, **changes: Any) -> World:
        """With other claims, for which the VM makes a quote."""
        return replace(self, claims=self.claims.model_copy(update=changes))

    def showing(self, **changes: Any) -> World:
        """With other evidence around the same quote."""
        return replace(self, evidence_changes={**self.evidence_changes, **changes})

    def demanding(self, section: str, **changes: Any) -> World:
        """With one section of the policy changed."""
        before = getattr(self.policy, section)
        return replace(self, policy=self.policy.model_copy(update={section: before.model_copy(update=changes)}))

    def opened(self, section: str, value: object = "any") -> World:
        """With one whole section of the policy replaced."""
        return replace(self, policy=self.policy.model_copy(update={section: value}))

    def answering(self, *fresh: FreshGpuEvidence) -> World:
        """With other fresh GPU reports, which the claims name."""
        gpu = self.gpu.model_copy(update={"fresh": fresh})
        return replace(self, gpu=gpu).claiming(gpu_evidence_sha256=gpu_evidence_sha256(gpu))

    def with_gpu(self, *chain: GpuCertificate, **changes: Any) -> World:
        """With one GPU that answers differently."""
        return self.answering(gpu_answer(*chain, **changes))

    def without_reports(self) -> World:
        """Without fresh GPU reports, and a policy that does not ask for them."""
        values = ("boot", "fresh", "count", "models", "min_driver_version", "min_vbios_version")
        left_open = dict.fromkeys((*values, "reference_values", "revocation"), "any")
        return self.answering().demanding("gpu", **left_open)

    def with_collateral(self, **changes: Any) -> World:
        """With other collateral, signed by the same root."""
        return replace(self, collateral=json.dumps(self.vm.pki.collateral(self.now, **changes)).encode())

    def with_faults(self, *faults: Fault) -> World:
        """With a VM that lies in what it shows. What is demanded and asked stays as it was."""
        vm = SimulatedVm(self.vm.app_compose, SEED, options=replace(self.vm.options, faults=faults))
        gpu = self.gpu.model_copy(update={"boot": vm.gpu_attestation})
        lying = replace(self, vm=vm, gpu=gpu, collateral=json.dumps(vm.collateral(self.now)).encode())
        return lying.claiming(gpu_evidence_sha256=gpu_evidence_sha256(gpu))

    def evidence(self, claims: DatasetClaims | ReceiptClaims | None = None) -> Evidence:
        """The evidence as the job would show it."""
        claims = claims or self.claims
        td = {"report_data": report_data(claims), **self.td}
        quoted = self.vm.quote(td.pop("report_data"), **td)
        fields: dict[str, Any] = {
            "claims": claims,
            "quote": (self.quote or quoted.quote).hex(),
            "event_log": quoted.event_log,
            "vm_config": quoted.vm_config,
            "app_compose": self.vm.shown_compose,
            "compose_hash": f"sha256:{sha256_hex(self.vm.shown_compose.encode())}",
            "gpu": self.gpu,
            "key_chain": key_chain(self.vm, self.claims),
        }
        return Evidence(**fields | self.evidence_changes)

    def appraise(self) -> AttestationResult:
        """The verdict."""
        return appraise(
            self.evidence(),
            collateral=self.collateral,
            policy=self.policy,
            nonce=self.nonce,
            now=self.now,
            peer_spki_sha256=self.peer,
            nonce_unused=self.nonce_unused,
            endorsements=self.endorsements,
            gpu_root_sha256=self.gpu_root_sha256,
            gpu_rim_root_sha256=self.gpu_rim_root_sha256,
        )

    def appraise_receipt(self, earlier: AttestationResult) -> tuple[Check, ...]:
        """The verdict on the evidence beside a receipt."""
        return appraise_receipt(
            self.evidence(self.receipt),
            statement=self.statement,
            earlier=earlier,
            collateral=self.collateral,
            policy=self.policy,
            now=self.now,
        )

    def contraindicated(self) -> list[str]:
        """Codes of the checks that do not hold."""
        return [check.code for check in self.appraise().checks if check.state is CheckState.CONTRAINDICATED]

    def state(self, code: str) -> Check:
        """One check."""
        return next(check for check in self.appraise().checks if check.code == code)


@pytest.fixture
def make_world() -> Callable[..., World]:
    """Makes the honest world on a VM with other options, or on a given one."""

    def make(options: VmOptions | None = None, vm: SimulatedVm | None = None) -> World:
        chosen = replace(options or VmOptions(gpu_attestation=GPU_BOOT), image="dstack-0.6.0")
        vm = vm or SimulatedVm(COMPOSE, SEED, options=chosen)
        boot = vm.options.gpu_attestation
        gpu = GpuEvidence(boot=boot, fresh=(gpu_answer(),) if boot else ())
        receipt = ReceiptClaims(
            version=1,
            purpose="receipt",
            job_spec_sha256=SPEC,
            statement_sha256=sha256_hex(STATEMENT),
            issued_at=NOW + 1000,
        )
        return World(
            vm=vm,
            claims=honest_claims(gpu),
            gpu=gpu,
            policy=demanding_policy(vm),
            collateral=json.dumps(vm.collateral(NOW)).encode(),
            receipt=receipt,
        )

    return make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """The honest world: GPU, live connection, and a policy that demands everything."""
    return make_world()


@pytest.fixture
def gpus() -> GpuBench:
    """What GPU reports and their certificates are made with."""
    return GpuBench()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a path short enough for a unix socket in it, wherever pytest keeps its own."""
    with tempfile.TemporaryDirectory(prefix="tee-") as folder:
        yield Path(folder)
