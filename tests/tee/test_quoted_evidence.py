"""Evidence made of a real agent's answers."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from trainer.attestation.claims.binding import gpu_evidence_sha256, report_data
from trainer.attestation.evidence import (
    DatasetClaims,
    DerivedKeys,
    GpuEvidence,
    KeyChain,
    Recipients,
    StatementClaims,
    parse_evidence,
    parse_statement_evidence,
)
from trainer.errors import ErrorCode, UnavailableError
from trainer.simulator.agent import SimulatedVm
from trainer.tee.guest_agent import GuestAgent, Quote, VmInfo
from trainer.tee.key_derivation import recipient_path
from trainer.tee.quoted_evidence import collect, collect_statement

SPEC = "ab" * 32
SIGNED = "00" * 64


def dataset_claims(gpu: GpuEvidence) -> DatasetClaims:
    return DatasetClaims(
        version=1,
        purpose="dataset",
        nonce="01" * 32,
        job_spec_sha256=SPEC,
        recipients=Recipients(derived="age1" + "q" * 58, instance="age1" + "p" * 58),
        derived_keys=DerivedKeys(recipient="02" * 33, possession="03" * 33),
        receipt_key="02" * 91,
        tls_key=None,
        gpu_evidence_sha256=gpu_evidence_sha256(gpu),
        sandbox={"seccomp": True},
        software={"trainer": "0.1.0"},
        issued_at=1_790_000_000,
        expires_at=1_790_003_600,
    )


class CannedAgent:
    """Answers of the right types and any content."""

    def __init__(self, info: VmInfo, quote: Quote) -> None:
        self._info, self._quote = info, quote

    def info(self) -> VmInfo:
        return self._info

    def quote(self, report_data: bytes) -> Quote:
        return self._quote


INFO = VmInfo(app_id="00" * 20, instance_id="00" * 20, app_compose="{}", vm_config="from info")
QUOTE = Quote(quote=bytes(700), event_log="[]", vm_config="from quote")


def test_evidence_of_a_dataset(
    endpoint: str, vm: SimulatedVm, compose: str, judge: Callable[..., dict[str, Any]]
) -> None:
    agent = GuestAgent(endpoint)
    gpu = GpuEvidence(boot='{"x": 1}\n')
    claims = dataset_claims(gpu)
    key = agent.derive_key(recipient_path(SPEC), "sealing")
    assert key.app_signature == ""  # the VM has no key service
    chain = KeyChain(app=key.signature, recipient=key.signature, possession=key.signature)
    evidence = collect(agent, claims, possession=SIGNED, gpu=gpu, key_chain=chain)
    assert (
        judge(bytes.fromhex(evidence.quote), vm.pki)["report"]["TD10"]["report_data"]
        == report_data(claims).hex()
    )
    assert evidence.app_compose == compose
    assert evidence.compose_hash == "sha256:" + hashlib.sha256(compose.encode()).hexdigest()
    assert evidence.event_log == vm.event_log()
    assert evidence.vm_config == vm.vm_config
    assert evidence.gpu == gpu
    assert (evidence.possession, evidence.key_chain) == (SIGNED, chain)
    assert parse_evidence(evidence.canonical()) == evidence


def test_evidence_of_a_receipt(
    endpoint: str, vm: SimulatedVm, judge: Callable[..., dict[str, Any]]
) -> None:
    claims = StatementClaims(
        version=1,
        purpose="receipt",
        job_spec_sha256=SPEC,
        statement_sha256="cd" * 32,
        receipt_key="02" * 91,
        issued_at=1_790_000_000,
    )
    evidence = collect_statement(GuestAgent(endpoint), claims)
    assert (
        judge(bytes.fromhex(evidence.quote), vm.pki)["report"]["TD10"]["report_data"]
        == report_data(claims).hex()
    )
    assert evidence.claims == claims
    assert parse_statement_evidence(evidence.canonical()) == evidence


@pytest.mark.parametrize(
    ("claimed", "given"),
    [(GpuEvidence(), GpuEvidence(boot="x")), (GpuEvidence(boot="x"), GpuEvidence())],
)
def test_claims_about_other_gpu_evidence(
    endpoint: str, claimed: GpuEvidence, given: GpuEvidence
) -> None:
    with pytest.raises(ValueError, match="other GPU evidence"):
        collect(GuestAgent(endpoint), dataset_claims(claimed), possession=SIGNED, gpu=given)


def test_vm_config_of_the_quote_comes_first() -> None:
    claims = dataset_claims(GpuEvidence())
    assert collect(CannedAgent(INFO, QUOTE), claims, possession=SIGNED).vm_config == "from quote"
    unsaid = CannedAgent(INFO, replace(QUOTE, vm_config=""))
    assert collect(unsaid, claims, possession=SIGNED).vm_config == "from info"


@pytest.mark.parametrize(
    ("info", "quote", "field"),
    [
        (INFO, replace(QUOTE, quote=b""), "quote"),
        (INFO, replace(QUOTE, quote=bytes(65537)), "quote"),
        (INFO, replace(QUOTE, event_log="x" * ((4 << 20) + 1)), "event_log"),
        (INFO, replace(QUOTE, vm_config="x" * ((1 << 20) + 1)), "vm_config"),
        (replace(INFO, app_compose="x" * ((1 << 20) + 1)), QUOTE, "app_compose"),
        (replace(INFO, app_compose="\ud800"), QUOTE, "app_compose"),
    ],
)
def test_answers_that_do_not_fit(info: VmInfo, quote: Quote, field: str) -> None:
    with pytest.raises(UnavailableError, match=f"`{field}` does not fit") as caught:
        collect(CannedAgent(info, quote), dataset_claims(GpuEvidence()), possession=SIGNED)
    assert caught.value.code is ErrorCode.GUEST_AGENT_PROTOCOL
