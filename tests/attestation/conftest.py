"""One whole, honest appraisal on the development simulator; tests change one thing in it at a time."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trainer.attestation.binding import gpu_evidence_sha256, report_data
from trainer.attestation.checks import Check, CheckState
from trainer.attestation.evidence import (
    DatasetClaims,
    DerivedKey,
    Evidence,
    FreshGpuEvidence,
    GpuEvidence,
    ReceiptClaims,
    Recipients,
)
from trainer.attestation.gpu_endorsements import NO_ENDORSEMENTS, GpuEndorsements
from trainer.attestation.gpu_report import gpu_nonce
from trainer.attestation.key_chain import prove_possession
from trainer.attestation.policy import (
    AppSection,
    CollateralUrl,
    FreshnessSection,
    GpuSection,
    KeyProviderDemand,
    OsMeasurements,
    OsSection,
    Policy,
    TcbSection,
    TrustRoot,
)
from trainer.attestation.result import AttestationResult
from trainer.attestation.verifier import appraise, appraise_receipt
from trainer.encoding import sha256_hex
from trainer.tee.keys import possession_path, recipient_path
from trainer.tee.simulator.agent import SimulatedVm, VmOptions, simulated_measurements
from trainer.tee.simulator.nvattest import SimulatedGpu, nvattest_result

NOW = 1_790_000_000
SEED = b"a seed of 32 bytes for appraisals"
COMPOSE = '{\n  "name": "demo",\n  "docker_compose_file": "services: {}"\n}\n'
SPEC = "ab" * 32
NONCE = "01" * 32
PEER = "0e" * 32
STATEMENT = b'{"_type": "https://in-toto.io/Statement/v1"}'
GPU_BOOT = nvattest_result([SimulatedGpu()], "5b" * 32)

Quoted = dict[str, bytes]
FWID = b"\x0f" * 48
FWID_OID = x509.ObjectIdentifier("2.23.133.5.4.1")
FWID_HEADER = bytes.fromhex("303d06096086480165030402020430")
LEAF_USE = ("digital_signature",)
CA_USE = ("key_cert_sign", "crl_sign")
USES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
Extensions = tuple[tuple[x509.ExtensionType, bool], ...]


def key_usage(*uses: str) -> tuple[x509.ExtensionType, bool]:
    return x509.KeyUsage(**{use: use in uses for use in USES}), True


def constraints(ca: bool, path_length: int | None = None) -> tuple[x509.ExtensionType, bool]:
    return x509.BasicConstraints(ca=ca, path_length=path_length), True


def fwid_extension(value: bytes = FWID_HEADER + FWID) -> tuple[x509.ExtensionType, bool]:
    return x509.UnrecognizedExtension(FWID_OID, value), False


CA: Extensions = (constraints(True), key_usage(*CA_USE))
LEAF: Extensions = (key_usage(*LEAF_USE), fwid_extension())


@dataclass(frozen=True)
class GpuCertificate:
    """One certificate of a chain to be made: everything that a test may change."""

    name: str
    scalar: int
    extensions: Extensions = CA
    begin: int = NOW - 86400
    end: int = NOW + 86400
    curve: ec.EllipticCurve = field(default_factory=ec.SECP384R1)

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(self.scalar, self.curve)

    def issued_by(self, issuer: GpuCertificate) -> str:
        """The certificate in PEM."""
        builder = x509.CertificateBuilder(
            subject_name=x509.Name.from_rfc4514_string(f"CN={self.name}"),
            issuer_name=x509.Name.from_rfc4514_string(f"CN={issuer.name}"),
            public_key=self.key.public_key(),
            serial_number=self.scalar,
            not_valid_before=dt.datetime.fromtimestamp(self.begin, dt.UTC),
            not_valid_after=dt.datetime.fromtimestamp(self.end, dt.UTC),
        )
        for extension, critical in self.extensions:
            builder = builder.add_extension(extension, critical)
        signed = builder.sign(issuer.key, hashes.SHA384(), ecdsa_deterministic=True)
        return signed.public_bytes(Encoding.PEM).decode()


GPU_ROOT = GpuCertificate("NOT NVIDIA - test root", 1001)
GPU_CA = GpuCertificate("GH100 - NOT NVIDIA - test GPU", 1002)
GPU_LEAF = GpuCertificate("NOT NVIDIA - test GPU's firmware", 1003, LEAF)


def chain_pem(*certificates: GpuCertificate) -> str:
    """A chain, leaf first; the last one signs itself."""
    issuers = (*certificates[1:], certificates[-1])
    return "".join(each.issued_by(issuer) for each, issuer in zip(certificates, issuers, strict=True))


@cache
def gpu_root_sha256() -> str:
    root = x509.load_pem_x509_certificate(GPU_ROOT.issued_by(GPU_ROOT).encode())
    return root.fingerprint(hashes.SHA256()).hex()


def tlv(fields: Mapping[int, bytes]) -> bytes:
    return b"".join(
        kind.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value for kind, value in fields.items()
    )


def block(index: int, value: bytes = b"\7" * 48) -> bytes:
    size = len(value)
    return bytes([index, 1]) + (size + 3).to_bytes(2, "little") + b"\0" + size.to_bytes(2, "little") + value


OPAQUE = {3: b"550.90.07\0", 6: bytes.fromhex("009f009601000000"), 20: FWID, 1: b"x"}


def gpu_report(
    *,
    nonce: bytes | None = None,
    request: bytes = b"\x11\xe0\x01\xff",
    slot: int = 0,
    header: bytes = b"\x11\x60\0\0",
    blocks: tuple[bytes, ...] = (block(1), block(2)),
    opaque: Mapping[int, bytes] = OPAQUE,
    opaque_bytes: bytes | None = None,
    key: ec.EllipticCurvePrivateKey = GPU_LEAF.key,
    tail: bytes = b"",
) -> bytes:
    """A signed report; every argument is one thing to change."""
    record = b"".join(blocks)
    fields = tlv(opaque) if opaque_bytes is None else opaque_bytes
    asked = request + (gpu_nonce(NONCE) if nonce is None else nonce) + bytes([slot])
    body = header + bytes([len(blocks)]) + len(record).to_bytes(3, "little") + record + b"\5" * 32
    signed = asked + body + len(fields).to_bytes(2, "little") + fields
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA384(), deterministic_signing=True)))
    return signed + r.to_bytes(48, "big") + s.to_bytes(48, "big") + tail


def gpu_answer(*chain: GpuCertificate, **changes: Any) -> FreshGpuEvidence:
    """The honest GPU's report and chain, but for `changes`; signed by the key of the chain's leaf."""
    certificates = chain or (GPU_LEAF, GPU_CA, GPU_ROOT)
    key = certificates[0].key if isinstance(certificates[0].curve, ec.SECP384R1) else GPU_LEAF.key
    return FreshGpuEvidence(
        report=gpu_report(**{"key": key, **changes}).hex(), certificate_chain=chain_pem(*certificates)
    )


def _receipt_key() -> str:
    key = ec.derive_private_key(7, ec.SECP256R1()).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()


def _key_chain(vm: SimulatedVm, claims: DatasetClaims) -> tuple[DerivedKey, ...]:
    """The recipient's key, and the one that signs claims."""
    signed = prove_possession(vm.keys.derive(possession_path(SPEC), "possession").secret, claims)
    possession = _proof(vm, possession_path(SPEC), "possession").model_copy(update={"possession": signed})
    return _proof(vm, recipient_path(SPEC), "sealing"), possession


def _proof(vm: SimulatedVm, path: str, purpose: str) -> DerivedKey:
    derived = vm.keys.derive(path, purpose)
    return DerivedKey(
        path=path,
        purpose=purpose,
        public_key=derived.public_key.hex(),
        signature_chain=tuple(signature.hex() for signature in derived.signature_chain),
    )


def _claims(gpu: GpuEvidence) -> DatasetClaims:
    return DatasetClaims(
        version=1,
        purpose="dataset",
        nonce=NONCE,
        job_spec_sha256=SPEC,
        recipients=Recipients(derived="age1" + "q" * 58, instance="age1" + "p" * 58),
        receipt_key=_receipt_key(),
        tls_spki_sha256=PEER,
        gpu_evidence_sha256=gpu_evidence_sha256(gpu),
        sandbox={"seccomp": True, "landlock": True, "separate_users": False},
        software={"trainer": "0.1.0"},
        issued_at=NOW - 60,
        expires_at=NOW + 3600,
    )


def _policy(vm: SimulatedVm) -> Policy:
    """Everything that can be demanded, demanded."""
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
        app=AppSection(
            compose_sha256=(vm.compose_hash.hex(),),
            job_spec_sha256=(SPEC,),
            app_id=vm.app_id.hex(),
            key_provider=KeyProviderDemand(name=provider["name"], id=provider["id"]),
            kms_root_key=vm.key_service.root_public_key.hex(),
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
            reference_values="any",
            revocation="any",
        ),
        sandbox=("landlock", "seccomp"),
        freshness=FreshnessSection(max_age_seconds=600),
    )


@dataclass(frozen=True)
class GpuBench:
    """Makers and honest parts of GPU evidence, for test files, which do not import from here."""

    root, ca, leaf = GPU_ROOT, GPU_CA, GPU_LEAF
    certificate = GpuCertificate
    ca_extensions, leaf_extensions = CA, LEAF
    fwid, opaque = FWID, OPAQUE
    key_usage = staticmethod(key_usage)
    constraints = staticmethod(constraints)
    fwid_extension = staticmethod(fwid_extension)
    fwid_header = FWID_HEADER
    answer = staticmethod(gpu_answer)
    report = staticmethod(gpu_report)
    chain = staticmethod(chain_pem)
    block = staticmethod(block)
    tlv = staticmethod(tlv)

    @property
    def root_sha256(self) -> str:
        """Fingerprint of the test root."""
        return gpu_root_sha256()


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
            "app_compose": self.vm.app_compose,
            "compose_hash": f"sha256:{self.vm.compose_hash.hex()}",
            "gpu": self.gpu,
            "key_chain": _key_chain(self.vm, self.claims),
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
    """Makes the honest world on a VM with other options."""

    def make(options: VmOptions | None = None) -> World:
        vm = SimulatedVm(
            COMPOSE,
            SEED,
            options=replace(options or VmOptions(gpu_attestation=GPU_BOOT), image="dstack-0.6.0"),
        )
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
            claims=_claims(gpu),
            gpu=gpu,
            policy=_policy(vm),
            collateral=json.dumps(vm.pki.collateral(NOW)).encode(),
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
