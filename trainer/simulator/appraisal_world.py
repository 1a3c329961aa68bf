"""The inputs of an honest appraisal: claims, evidence and collateral of a simulated VM, and the strictest policy.

Tests, benchmarks and the fuzzer start from `honest_world()` and change one thing in it. Nothing here is random:
the same call makes the same evidence.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Final

from trainer.attestation.checks import Check, CheckState
from trainer.attestation.claims.binding import gpu_evidence_sha256, report_data
from trainer.attestation.dstack.key_source import read_key_source
from trainer.attestation.evidence import (
    DatasetClaims,
    Evidence,
    FreshGpuEvidence,
    GpuEvidence,
    Recipients,
    StatementClaims,
    StatementEvidence,
    StatementPurpose,
)
from trainer.attestation.nvidia.gpu_endorsements import NO_ENDORSEMENTS, GpuEndorsements
from trainer.attestation.policy import (
    AppSection,
    CollateralUrl,
    FreshnessSection,
    GpuSection,
    KeyProviderDemand,
    OsMeasurements,
    OsSection,
    PlatformSection,
    Policy,
    TcbSection,
    TrustRoot,
)
from trainer.attestation.result.attestation_result import AttestationResult
from trainer.attestation.verifier import appraise, appraise_statement_evidence
from trainer.deployment import CLEAN_START
from trainer.encoding import sha256_hex
from trainer.simulator.agent import SimulatedQuote, SimulatedVm, VmOptions, simulated_measurements
from trainer.simulator.claimed_keys import (
    JOB_SPEC_SHA256,
    PEER_SPKI_SHA256,
    RECEIPT_KEY,
    TLS_KEY,
    derived_keys,
    key_chain,
    possession,
)
from trainer.simulator.fault import Fault
from trainer.simulator.gpu_evidence import (
    GPU_BOOT,
    NONCE,
    NOW,
    GpuCertificate,
    GpuEvidenceMaker,
    gpu_answer,
    gpu_root_sha256,
)

SEED: Final = b"a seed of 32 bytes for appraisals"
SEALED_COMPOSE: Final = '{\n  "name": "demo",\n  "docker_compose_file": "services: {}"\n}\n'
"""app-compose.json without a key service."""
APP_COMPOSE: Final = json.dumps(
    {
        "name": "demo",
        "docker_compose_file": "services: {}",
        "key_provider": "kms",
        "kms_enabled": True,
        "key_provider_id": "3059" + "0b" * 89,
        "init_script": CLEAN_START,
    },
    indent=2,
)
"""app-compose.json with a key service: evidence then has most to judge."""
STATEMENT: Final = b'{"_type": "https://in-toto.io/Statement/v1"}'

Quoted = dict[str, bytes]
"""Fields of a TD report by name."""


def honest_claims(vm: SimulatedVm, gpu: GpuEvidence) -> DatasetClaims:
    """Returns claims of a job that does what the policy demands, over `gpu`."""
    return DatasetClaims(
        version=1,
        purpose="dataset",
        nonce=NONCE,
        job_spec_sha256=JOB_SPEC_SHA256,
        recipients=Recipients(derived="age1" + "q" * 58, instance="age1" + "p" * 58),
        derived_keys=derived_keys(vm),
        receipt_key=RECEIPT_KEY,
        tls_key=TLS_KEY,
        gpu_evidence_sha256=gpu_evidence_sha256(gpu),
        sandbox={"seccomp": True, "landlock": True, "separate_users": False},
        software={"trainer": "0.1.0"},
        issued_at=NOW - 60,
        expires_at=NOW + 3600,
    )


def demanding_policy(vm: SimulatedVm) -> Policy:
    """Returns a policy for `vm` that demands everything that a policy can demand."""
    provider = json.loads(vm.key_provider)
    return Policy(
        version=1,
        trust_root=TrustRoot(pem=vm.pki.root_pem, sha256=sha256_hex(vm.pki.root_der)),
        collateral=CollateralUrl(url="https://pccs.invalid/"),
        tcb=TcbSection(
            accepted_statuses=("UpToDate",),
            grace_days=0,
            min_evaluation_number=19,
            refused_advisories=("INTEL-SA-00001",),
            mr_seam=("00" * 48,),
        ),
        platform=PlatformSection(ppid=(vm.pki.ppid.hex(),), xfam=()),
        app=AppSection(
            compose_sha256=(vm.compose_hash.hex(),),
            job_spec_sha256=(JOB_SPEC_SHA256,),
            app_id=vm.app_id.hex(),
            key_provider=KeyProviderDemand(name=provider["name"], id=provider["id"]),
            kms_root_key=vm.key_service.root_public_key.hex() if vm.has_key_service else "none",
            init_script_sha256=read_key_source(vm.app).init_scripts or (),
            recipient="instance",
        ),
        os=OsSection(measurements=(OsMeasurements(**vars(simulated_measurements())),)),
        gpu=GpuSection(
            required=True,
            boot="required",
            fresh="required",
            count=1,
            models=("GH100",),
            min_driver_version="550.90.07",
            min_vbios_version="96.00.9F.00.01",
            devtools="refused",
            firmware_id="required",
            reference_values="any",
            revocation="any",
        ),
        sandbox=("landlock", "seccomp"),
        freshness=FreshnessSection(max_age_seconds=600),
    )


@dataclass(frozen=True)
class World:
    """Inputs of an appraisal. The quote is signed for `claims`, over a TD report whose fields `td` replaces."""

    vm: SimulatedVm
    claims: DatasetClaims
    gpu: GpuEvidence
    policy: Policy
    collateral: bytes
    receipt: StatementClaims
    quote: bytes | None = None
    evidence_changes: dict[str, Any] = field(default_factory=dict)
    td: Quoted = field(default_factory=dict)
    nonce: str = NONCE
    now: int = NOW
    peer: str | None = PEER_SPKI_SHA256
    nonce_unused: bool | None = True
    statement: bytes = STATEMENT
    bench: GpuEvidenceMaker = field(default_factory=GpuEvidenceMaker)
    gpu_root_sha256: str = field(default_factory=gpu_root_sha256)
    endorsements: GpuEndorsements = NO_ENDORSEMENTS
    gpu_rim_root_sha256: str = "00" * 32

    def change(self, **changes: Any) -> World:
        """Returns this world with other inputs."""
        return replace(self, **changes)

    def claiming(self, **changes: Any) -> World:
        """Returns this world with other claims, over which the VM signs a new quote."""
        return replace(self, claims=self.claims.model_copy(update=changes))

    def showing(self, **changes: Any) -> World:
        """Returns this world with other fields of the evidence and the same quote."""
        return replace(self, evidence_changes={**self.evidence_changes, **changes})

    def demanding(self, section: str, **changes: Any) -> World:
        """Returns this world with other values in one section of the policy."""
        before = getattr(self.policy, section)
        return replace(
            self, policy=self.policy.model_copy(update={section: before.model_copy(update=changes)})
        )

    def opened(self, section: str, value: object = "any") -> World:
        """Returns this world with one section of the policy replaced by `value`."""
        return replace(self, policy=self.policy.model_copy(update={section: value}))

    def answering(self, *fresh: FreshGpuEvidence) -> World:
        """Returns this world with other fresh GPU reports, whose digest the claims contain."""
        gpu = self.gpu.model_copy(update={"fresh": fresh})
        return replace(self, gpu=gpu).claiming(gpu_evidence_sha256=gpu_evidence_sha256(gpu))

    def with_gpu(self, *chain: GpuCertificate, **changes: Any) -> World:
        """Returns this world with one GPU that has another certificate chain or report."""
        return self.answering(gpu_answer(*chain, **changes))

    def without_reports(self) -> World:
        """Returns this world without fresh GPU reports, and with a policy that does not require them."""
        values = ("boot", "fresh", "count", "models", "min_driver_version", "min_vbios_version")
        left_open = dict.fromkeys((*values, "reference_values", "revocation"), "any")
        return self.answering().demanding("gpu", **left_open)

    def with_collateral(self, **changes: Any) -> World:
        """Returns this world with other collateral that the same root signs."""
        return replace(
            self, collateral=json.dumps(self.vm.pki.collateral(self.now, **changes)).encode()
        )

    def with_faults(self, *faults: Fault) -> World:
        """Returns this world with a VM that has `faults`; policy and nonce are unchanged."""
        vm = SimulatedVm(self.vm.app_compose, SEED, options=replace(self.vm.options, faults=faults))
        gpu = self.gpu.model_copy(update={"boot": vm.gpu_attestation})
        lying = replace(
            self, vm=vm, gpu=gpu, collateral=json.dumps(vm.collateral(self.now)).encode()
        )
        return lying.claiming(
            gpu_evidence_sha256=gpu_evidence_sha256(gpu), derived_keys=derived_keys(vm)
        )

    def evidence(self) -> Evidence:
        """Returns the evidence that the job would send."""
        quoted = self._quoted(self.claims)
        fields: dict[str, Any] = {
            "claims": self.claims,
            "quote": (self.quote or quoted.quote).hex(),
            "possession": possession(self.vm, self.claims),
            "event_log": quoted.event_log,
            "vm_config": quoted.vm_config,
            "app_compose": self.vm.shown_compose,
            "compose_hash": f"sha256:{sha256_hex(self.vm.shown_compose.encode())}",
            "gpu": self.gpu,
            "key_chain": key_chain(self.vm),
        }
        return Evidence(**fields | self.evidence_changes)

    def receipt_evidence(self) -> StatementEvidence:
        """Returns the evidence that the job would put beside its receipt."""
        fields: dict[str, Any] = {
            "claims": self.receipt,
            "quote": (self.quote or self._quoted(self.receipt).quote).hex(),
        }
        return StatementEvidence(**fields | self.evidence_changes)

    def _quoted(self, claims: DatasetClaims | StatementClaims) -> SimulatedQuote:
        td = {"report_data": report_data(claims), **self.td}
        return self.vm.quote(td.pop("report_data"), **td)

    def appraise(self, *, fresh: bool = False) -> AttestationResult:
        """Appraises the evidence over the dataset's claims."""
        return appraise(
            self.evidence(),
            collateral=self.collateral,
            policy=self.policy,
            nonce=self.nonce,
            now=self.now,
            peer_spki_sha256=self.peer,
            fresh=fresh,
            nonce_unused=self.nonce_unused,
            endorsements=self.endorsements,
            gpu_root_sha256=self.gpu_root_sha256,
            gpu_rim_root_sha256=self.gpu_rim_root_sha256,
        )

    def appraise_receipt(
        self, earlier: AttestationResult, purpose: StatementPurpose = "receipt"
    ) -> tuple[Check, ...]:
        """Appraises the evidence that accompanies a receipt, under the result of an `earlier` appraisal."""
        return appraise_statement_evidence(
            self.receipt_evidence(),
            purpose=purpose,
            statement=self.statement,
            earlier=earlier,
            collateral=self.collateral,
            policy=self.policy,
            now=self.now,
        )

    def contraindicated(self) -> list[str]:
        """Appraises, and returns the codes of the checks that are contraindicated."""
        wrong = CheckState.CONTRAINDICATED
        return [check.code for check in self.appraise().checks if check.state is wrong]

    def state(self, code: str) -> Check:
        """Appraises, and returns the check with this code."""
        return next(check for check in self.appraise().checks if check.code == code)


def honest_world(options: VmOptions | None = None, vm: SimulatedVm | None = None) -> World:
    """Returns an honest VM with one GPU, with other `options`, or `vm` itself, and all inputs of its appraisal."""
    chosen = replace(options or VmOptions(gpu_attestation=GPU_BOOT), image="dstack-0.6.0")
    vm = vm or SimulatedVm(APP_COMPOSE, SEED, options=chosen)
    boot = vm.options.gpu_attestation
    return world_of(vm, GpuEvidence(boot=boot, fresh=(gpu_answer(),) if boot else ()))


def world_of(vm: SimulatedVm, gpu: GpuEvidence) -> World:
    """Returns the inputs of an appraisal of `vm` whose claims name `gpu`."""
    receipt = StatementClaims(
        version=1,
        purpose="receipt",
        job_spec_sha256=JOB_SPEC_SHA256,
        statement_sha256=sha256_hex(STATEMENT),
        receipt_key=RECEIPT_KEY,
        issued_at=NOW + 1000,
    )
    return World(
        vm=vm,
        claims=honest_claims(vm, gpu),
        gpu=gpu,
        policy=demanding_policy(vm),
        collateral=json.dumps(vm.collateral(NOW)).encode(),
        receipt=receipt,
    )
