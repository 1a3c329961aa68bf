"""Checks 59 to 68: are the fresh GPU reports genuine, made for this nonce, and what the policy demands?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from trainer.attestation.checks import CheckCode, Ledger
from trainer.attestation.evidence import FreshGpuEvidence
from trainer.attestation.nvidia.certificate_chain import (
    Chain,
    certified_fwid,
    certified_model,
    different_keys,
    parse_chain,
    verify_chain,
)
from trainer.attestation.nvidia.gpu_endorsements import NO_ENDORSEMENTS, GpuEndorsements
from trainer.attestation.nvidia.ocsp import OcspResponse, parse_answers, verify_not_revoked
from trainer.attestation.nvidia.rim import (
    NVIDIA_RIM_ROOT_SHA256,
    ReferenceIntegrityManifest,
    compare_measurements,
    verify_manifest,
)
from trainer.attestation.nvidia.spdm_report import GpuReport, parse_gpu_report, verify_signature
from trainer.attestation.nvidia.versions import reaches
from trainer.attestation.policy import GpuSection

RELAY_LIMIT: Final = (
    "a genuine GPU answered; that it is one wired to this VM, and not elsewhere and relayed, "
    "cannot be told on Hopper and Blackwell"
)
NOT_LOOKED_AT: Final = "revocation is not looked at: the policy does not demand it"
NOT_COMPARED: Final = "measurements are not compared with NVIDIA's reference values: the policy does not demand it"

_CODES: Final = (
    CheckCode.GPU_REPORT_FORMAT,
    CheckCode.GPU_REPORT_CHAIN,
    CheckCode.GPU_REPORT_SIGNATURE,
    CheckCode.GPU_REPORT_NONCE,
    CheckCode.GPU_REPORT_FWID,
    CheckCode.GPU_REPORT_COUNT,
    CheckCode.GPU_REPORT_VERSIONS,
    CheckCode.GPU_REPORT_MODELS,
    CheckCode.GPU_REPORT_MEASUREMENTS,
    CheckCode.GPU_REPORT_REVOCATION,
)

_THREADS: Final = 8
"""As many GPUs as a machine usually has; their signatures are verified side by side."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class GpuReportContext:
    """What fresh reports must answer.

    Attributes:
        nonce: the 32 bytes that the GPUs were asked with.
        now: Unix seconds.
        root_sha256: fingerprint of the root that vouches for GPUs.
        endorsements: what vouches for their measurements, and for their keys still being good.
        rim_root_sha256: fingerprint of the root that vouches for reference values.
    """

    nonce: bytes
    now: int
    root_sha256: str
    endorsements: GpuEndorsements = NO_ENDORSEMENTS
    rim_root_sha256: str = NVIDIA_RIM_ROOT_SHA256


def judge_gpu_reports(
    ledger: Ledger, shown: Sequence[FreshGpuEvidence], demand: GpuSection, question: GpuReportContext
) -> Sequence[Chain]:
    """Record the checks `gpu-report-…`.

    Reports that are shown are verified whether the policy demands them or not.

    Returns:
        The verified chains behind the reports; none where one was refused.

    Raises:
        UsageError: the policy demands reference values, and the libraries that read them are not installed.
    """
    if not shown and demand.fresh == "any":
        for code in _CODES:
            ledger.leave_open(code, found="no fresh report")
        return ()
    if not shown:
        _judge_count(ledger, (), demand)
        return ()
    # check 59 gpu-report-format
    reports = _each(
        ledger,
        CheckCode.GPU_REPORT_FORMAT,
        [bytes.fromhex(item.report) for item in shown],
        parse_gpu_report,
        expected="SPDM 1.1 measurements with driver version, VBIOS version and firmware id",
    )
    chains = _judge_chains(ledger, shown, demand, question)
    if chains is not None:
        _judge_count(ledger, chains, demand)
        _judge_models(ledger, chains, demand)
        _judge_revocation(ledger, chains, demand, question)
    if reports is not None:
        _judge_nonces(ledger, reports, question.nonce)
        _judge_versions(ledger, reports, demand)
    if reports is not None and chains is not None:
        pairs = list(zip(reports, chains, strict=True))
        _judge_signers(ledger, pairs, demand)
        _judge_measurements(ledger, pairs, demand, question)
    return chains or ()


def _each(
    ledger: Ledger,
    code: CheckCode,
    items: Sequence[T],
    verify: Callable[[T], R],
    *,
    expected: str,
    detail: str | None = None,
    threads: int = 1,
) -> list[R] | None:
    """Record `code` over all items; what `verify` made of them, or None if it refused one.

    Signatures are worth `threads`: verifying one takes half a millisecond, in which no other Python code waits.
    """

    def attempt(item: T) -> R | ValueError:
        try:
            return verify(item)
        except ValueError as error:
            return error

    if threads > 1 and len(items) > 1:
        with ThreadPoolExecutor(min(threads, len(items))) as pool:
            outcomes = list(pool.map(attempt, items))
    else:
        outcomes = [attempt(item) for item in items]
    problems = [f"report {at}: {each}" for at, each in enumerate(outcomes) if isinstance(each, ValueError)]
    results = [each for each in outcomes if not isinstance(each, ValueError)]
    found = "; ".join(problems) or f"{len(items)} of {len(items)} reports"
    return results if ledger.judge(code, not problems, expected=expected, found=found, detail=detail) else None


def _judge_chains(
    ledger: Ledger, shown: Sequence[FreshGpuEvidence], demand: GpuSection, question: GpuReportContext
) -> list[Chain] | None:
    """The chains, once they are verified: what they certify means nothing before."""

    def verified(item: FreshGpuEvidence) -> Chain:
        chain = parse_chain(item.certificate_chain)
        verify_chain(chain, root_sha256=question.root_sha256, now=question.now)
        return chain

    # check 60 gpu-report-chain
    return _each(
        ledger,
        CheckCode.GPU_REPORT_CHAIN,
        shown,
        verified,
        expected=f"valid certificates up to root {question.root_sha256}",
        detail=NOT_LOOKED_AT if demand.revocation == "any" else None,
        threads=_THREADS,
    )


def _judge_signers(ledger: Ledger, pairs: Sequence[tuple[GpuReport, Chain]], demand: GpuSection) -> None:
    # check 61 gpu-report-signature
    _each(
        ledger,
        CheckCode.GPU_REPORT_SIGNATURE,
        pairs,
        lambda pair: verify_signature(pair[0], pair[1][0].public_key()),
        expected="signed by the certified key",
        detail=RELAY_LIMIT,
        threads=_THREADS,
    )
    # check 63 gpu-report-fwid
    _each(
        ledger,
        CheckCode.GPU_REPORT_FWID,
        pairs,
        lambda pair: _same(certified_fwid(pair[1][0]), pair[0].fwid),
        expected="the certified firmware id",
        detail=NOT_COMPARED if demand.reference_values == "any" else None,
    )


def _same(expected: bytes, found: bytes) -> None:
    if expected != found:
        raise ValueError(f"expected {expected.hex()}, got {found.hex()}")


def _judge_nonces(ledger: Ledger, reports: Sequence[GpuReport], nonce: bytes) -> None:
    # check 62 gpu-report-nonce
    _each(
        ledger,
        CheckCode.GPU_REPORT_NONCE,
        reports,
        lambda report: _same(nonce, report.nonce),
        expected=nonce.hex(),
    )


def _judge_count(ledger: Ledger, chains: Sequence[Chain], demand: GpuSection) -> None:
    # check 64 gpu-report-count
    different = different_keys([chain[0] for chain in chains])
    wanted = demand.count == "any" or demand.count == different
    ledger.judge(
        CheckCode.GPU_REPORT_COUNT,
        wanted and len(chains) == different > 0,
        expected=f"{'1 or more' if demand.count == 'any' else demand.count} different GPUs, one report each",
        found=f"{len(chains)} reports by {different} GPUs",
    )


def _judge_versions(ledger: Ledger, reports: Sequence[GpuReport], demand: GpuSection) -> None:
    # check 65 gpu-report-versions
    least_driver, least_vbios = demand.min_driver_version, demand.min_vbios_version
    found = "; ".join(f"driver {report.driver_version}, VBIOS {report.vbios_version}" for report in reports)
    if least_driver == least_vbios == "any":
        ledger.leave_open(CheckCode.GPU_REPORT_VERSIONS, found=found)
        return
    reached = all(
        reaches(report.driver_version, least_driver, base=10)
        and reaches(report.vbios_version, least_vbios, base=16)
        for report in reports
    )
    wanted = f"driver {least_driver}, VBIOS {least_vbios}, or later"
    ledger.judge(CheckCode.GPU_REPORT_VERSIONS, reached, expected=wanted, found=found)


def _judge_models(ledger: Ledger, chains: Sequence[Chain], demand: GpuSection) -> None:
    # check 66 gpu-report-models
    def listed(chain: Chain) -> None:
        model = certified_model(chain)
        if demand.models != "any" and not model.startswith(demand.models):
            raise ValueError(f"the model is {model}")

    if demand.models == "any":
        ledger.leave_open(CheckCode.GPU_REPORT_MODELS)
        return
    wanted = " or ".join(demand.models)
    _each(ledger, CheckCode.GPU_REPORT_MODELS, chains, listed, expected=f"GPUs certified as {wanted}")


def _judge_measurements(
    ledger: Ledger, pairs: Sequence[tuple[GpuReport, Chain]], demand: GpuSection, question: GpuReportContext
) -> None:
    # check 67 gpu-report-measurements
    if demand.reference_values == "any":
        ledger.leave_open(CheckCode.GPU_REPORT_MEASUREMENTS)
        return
    manifests, refused = _manifests(question)
    _each(
        ledger,
        CheckCode.GPU_REPORT_MEASUREMENTS,
        pairs,
        lambda pair: compare_measurements(pair[0], certified_model(pair[1]), manifests),
        expected="what NVIDIA published for this driver and this VBIOS",
        detail="; ".join(refused) or None,
    )


def _manifests(question: GpuReportContext) -> tuple[list[ReferenceIntegrityManifest], list[str]]:
    """The manifests that hold, and why the others do not: one that nobody needs may have run out."""
    manifests, refused = [], []
    for place, text in enumerate(question.endorsements.reference_values):
        try:
            manifests.append(verify_manifest(text, root_sha256=question.rim_root_sha256, now=question.now))
        except ValueError as error:
            refused.append(f"manifest {place}: {error}")
    return manifests, refused


def _judge_revocation(
    ledger: Ledger, chains: Sequence[Chain], demand: GpuSection, question: GpuReportContext
) -> None:
    # check 68 gpu-report-revocation
    if demand.revocation == "any":
        ledger.leave_open(CheckCode.GPU_REPORT_REVOCATION)
        return
    answers, refused = _answers(question.endorsements)
    _each(
        ledger,
        CheckCode.GPU_REPORT_REVOCATION,
        chains,
        lambda chain: verify_not_revoked(chain, answers, now=question.now),
        expected="signed answers of NVIDIA's responder that no certificate is revoked",
        detail="; ".join(refused) or None,
    )


def _answers(endorsements: GpuEndorsements) -> tuple[list[OcspResponse], list[str]]:
    """What responders answered, and which responses are none."""
    answers, refused = [], []
    for place, der in enumerate(endorsements.revocation):
        try:
            answers += parse_answers(der)
        except ValueError as error:
            refused.append(f"response {place}: {error}")
    return answers, refused
