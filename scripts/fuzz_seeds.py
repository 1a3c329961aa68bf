"""Honest inputs that mutations start from: evidence of the simulator, and the public vectors where they are."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from trainer.attestation.evidence import Evidence
from trainer.attestation.policy import policy_yaml
from trainer.attestation.result.record import Record, save_record
from trainer.attestation.verifier import appraise
from trainer.encoding import canonical_json, sha256_hex
from trainer.receipt.dsse import sign_envelope
from trainer.receipt.statement import ReceiptOutcome
from trainer.receipt.statement_writer import StatementInputs, make_statement
from trainer.simulator.appraisal_world import World, honest_world
from trainer.simulator.compose_files import render_app_compose
from trainer.simulator.gpu_evidence import GPU_BOOT, NOW, GpuEvidenceMaker
from trainer.simulator.ocsp_replies import ocsp_reply
from trainer.simulator.reference_manifests import honest_manifests, manifest_root_sha256
from trainer.spec import parse_job_spec

ROOT: Final = Path(__file__).parents[1]
VECTORS: Final = ROOT.parent / "shared" / "vectors"
RECEIPT_KEY: Final = ec.derive_private_key(7, ec.SECP256R1())

GPU_EVENT: Final = canonical_json(
    {
        "version": 1,
        "provider": "nvidia",
        "devices": 1,
        "cc_mode": "on",
        "devtools": False,
        "evidence_sha256": sha256_hex(GPU_BOOT.encode()),
    }
)


def vector(name: str) -> list[bytes]:
    """The bytes of one public vector; nothing where the vectors are not at hand."""
    path = VECTORS / name
    return [path.read_bytes()] if path.is_file() else []


def _answers() -> list[dict[str, str]]:
    return [json.loads(each) for each in vector("tdx/dstack-0.6.0-getquote.json")]


@cache
def world() -> World:
    """One honest appraisal on the simulator."""
    return honest_world()


@cache
def honest_evidence() -> Evidence:
    """Its evidence."""
    return world().evidence()


def evidence() -> list[bytes]:
    """Evidence documents: for a dataset, and for a receipt."""
    return [honest_evidence().canonical(), world().receipt_evidence().canonical()]


def event_logs() -> list[bytes]:
    """Texts of event logs."""
    return [
        honest_evidence().event_log.encode(),
        *(answer["event_log"].encode() for answer in _answers()),
    ]


def vm_configs() -> list[bytes]:
    """Texts of VM configurations; only real ones hold an image's measurement."""
    return [
        honest_evidence().vm_config.encode(),
        *(answer["vm_config"].encode() for answer in _answers()),
    ]


def quotes() -> list[bytes]:
    """TDX quotes."""
    real = [bytes.fromhex(answer["quote"]) for answer in _answers()]
    return [bytes.fromhex(honest_evidence().quote), *vector("tdx/tdx_quote.bin"), *real]


def collateral() -> list[bytes]:
    """Collateral documents."""
    return [world().collateral, *vector("tdx/tdx_quote_collateral.json")]


def gpu_reports() -> list[bytes]:
    """SPDM requests with their responses."""
    real = [
        bytes.fromhex(each.decode())
        for each in vector("gpu/hopperAttestationReport.txt")
        if _is_hex(each)
    ]
    return [bytes.fromhex(honest_evidence().gpu.fresh[0].report), *real]


def _is_hex(data: bytes) -> bool:
    return all(byte in b"0123456789abcdefABCDEF \r\n" for byte in data)


def gpu_chains() -> list[bytes]:
    """PEM chains of GPUs."""
    return [
        honest_evidence().gpu.fresh[0].certificate_chain.encode(),
        *vector("gpu/hopperCertChain.txt"),
    ]


def key_chains() -> list[bytes]:
    """Signatures over the derived keys."""
    chain = honest_evidence().key_chain
    return [] if chain is None else [canonical_json(chain.model_dump(mode="json"))]


def compose_files() -> list[bytes]:
    """Compose files, bare and wrapped."""
    shipped = [
        (ROOT / "configs" / name).read_bytes()
        for name in ("docker-compose.yaml", "app-compose-kms.json")
    ]
    merged = (
        b"x-a: &a\n  image: x\n  environment: [A=b, 'C=${D:-e}']\nservices:\n  one:\n"
        b"    <<: *a\n    ports: ['1:2']\n"
        b"  two: {<<: [*a], volumes: [{type: bind, source: /, target: /x}], command: [x, --token, y]}\n"
    )
    return [*shipped, render_app_compose(), merged]


def job_specs() -> list[bytes]:
    """Job specs."""
    return [
        path.read_bytes()
        for path in sorted((ROOT / "configs").glob("*.yaml"))
        if "compose" not in path.name
    ]


def policies() -> list[bytes]:
    """Policies, as this project writes them."""
    return [policy_yaml(world().policy).encode()]


def measurements() -> list[bytes]:
    """OS measurements in JSON."""
    return [canonical_json(dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2"), "00" * 48))]


def envelopes() -> list[bytes]:
    """DSSE envelopes, signed with `RECEIPT_KEY`."""
    return [sign_envelope(each, RECEIPT_KEY) for each in statements()]


def statements() -> list[bytes]:
    """In-toto statements."""
    run = StatementInputs(
        spec=parse_job_spec((ROOT / "configs" / "demo.yaml").read_bytes()),
        files={"adapter/adapter_model.safetensors": "11" * 32, "report/report.html": "22" * 32},
        dataset_files={"train.jsonl": "33" * 32},
        dataset_manifest_sha256="44" * 32,
        recipients=("age1" + "q" * 58,),
        compose_sha256="55" * 32,
        software={"trainer": "0.1.0"},
        started_at=NOW,
        finished_at=NOW + 60,
        run="7c" * 16,
        outcome=ReceiptOutcome.SUCCEEDED,
        metrics={"train_loss": 1.5, "steps": 10},
    )
    return [make_statement(run)]


def records() -> list[bytes]:
    """Result files of appraisals, as they are loaded: under NVIDIA's root, which the simulator's GPU fails."""
    each = world()
    result = appraise(
        honest_evidence(),
        collateral=each.collateral,
        policy=each.policy,
        nonce=each.nonce,
        now=each.now,
        peer_spki_sha256=each.peer,
    )
    record = Record(
        result, evidence=honest_evidence(), collateral=each.collateral, policy=each.policy
    )
    return [save_record(record)]


def public_keys() -> list[bytes]:
    """DER public keys."""
    return [bytes.fromhex(world().claims.receipt_key)]


def boot_events() -> list[bytes]:
    """Payloads of dstack's `gpu-attestation` event."""
    return [GPU_EVENT]


def boot_claims() -> list[bytes]:
    """Results of nvattest: a simulated one and a real one."""
    return [GPU_BOOT.encode(), *vector("gpu/nvattest_h100.json")]


def manifests() -> list[bytes]:
    """Reference integrity manifests under a development root."""
    return [text.encode() for text in honest_manifests(GpuEvidenceMaker())]


def manifest_root() -> str:
    """Fingerprint of that root."""
    return manifest_root_sha256(GpuEvidenceMaker())


def revocation_answers() -> list[bytes]:
    """An OCSP response of the development responder."""
    return [ocsp_reply(GpuEvidenceMaker()).der()]
