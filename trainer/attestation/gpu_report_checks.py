"""Checks 59 to 68: are the fresh GPU reports genuine, made for this nonce, and what the policy demands?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from trainer.attestation.checks import CheckCode, Ledger
from trainer.attestation.evidence import FreshGpuEvidence
from trainer.attestation.gpu_chain import Chain, certified_fwid, different_keys, parse_chain, verify_chain
from trainer.attestation.gpu_report import GpuReport, parse_gpu_report, verify_signature
from trainer.attestation.policy import GpuSection
from trainer.attestation.versions import reaches

RELAY_LIMIT: Final = (
    "a genuine GPU answered; that it is one wired to this VM, and not elsewhere and relayed, "
    "cannot be told on Hopper and Blackwell"
)
NOT_LOOKED_AT: Final = "revocation is not looked at: it needs NVIDIA's OCSP service"

_CODES: Final = (
    CheckCode.GPU_REPORT_FORMAT,
    CheckCode.GPU_REPORT_CHAIN,
    CheckCode.GPU_REPORT_SIGNATURE,
    CheckCode.GPU_REPORT_NONCE,
    CheckCode.GPU_REPORT_FWID,
    CheckCode.GPU_REPORT_COUNT,
    CheckCode.GPU_REPORT_VERSIONS,
)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class GpuQuestion:
    """What fresh reports must answer.

    Attributes:
        nonce: the 32 bytes that the GPUs were asked with.
        now: Unix seconds.
        root_sha256: fingerprint of the root that vouches for GPUs.
    """

    nonce: bytes
    now: int
    root_sha256: str


def judge_gpu_reports(
    ledger: Ledger, shown: Sequence[FreshGpuEvidence], demand: GpuSection, question: GpuQuestion
) -> None:
    """Record gpu-report-format, -chain, -signature, -nonce, -fwid, -count and -versions.

    Reports that are shown are verified whether the policy demands them or not.
    """
    for code in (
        CheckCode.GPU_REPORT_MODELS,
        CheckCode.GPU_REPORT_MEASUREMENTS,
        CheckCode.GPU_REPORT_REVOCATION,
    ):
        ledger.leave_open(code)
    if not shown and demand.fresh == "any":
        for code in _CODES:
            ledger.leave_open(code, found="no fresh report")
        return
    if not shown:
        _judge_count(ledger, (), demand)
        return
    # check 59 gpu-report-format
    reports = _each(
        ledger,
        CheckCode.GPU_REPORT_FORMAT,
        [bytes.fromhex(item.report) for item in shown],
        parse_gpu_report,
        expected="SPDM 1.1 measurements with driver version, VBIOS version and firmware id",
    )
    chains = _judge_chains(ledger, shown, question)
    if chains is not None:
        _judge_count(ledger, chains, demand)
    if reports is not None:
        _judge_nonces(ledger, reports, question.nonce)
        _judge_versions(ledger, reports, demand)
    if reports is not None and chains is not None:
        _judge_signers(ledger, list(zip(reports, chains, strict=True)))


def _each(
    ledger: Ledger,
    code: CheckCode,
    items: Sequence[T],
    verify: Callable[[T], R],
    *,
    expected: str,
    detail: str | None = None,
) -> list[R] | None:
    """Record `code` over all items; what `verify` made of them, or None if it refused one."""
    results, problems = [], []
    for index, item in enumerate(items):
        try:
            results.append(verify(item))
        except ValueError as error:
            problems.append(f"report {index}: {error}")
    found = "; ".join(problems) or f"{len(items)} of {len(items)} reports"
    return results if ledger.judge(code, not problems, expected=expected, found=found, detail=detail) else None


def _judge_chains(ledger: Ledger, shown: Sequence[FreshGpuEvidence], question: GpuQuestion) -> list[Chain] | None:
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
        detail=NOT_LOOKED_AT,
    )


def _judge_signers(ledger: Ledger, pairs: Sequence[tuple[GpuReport, Chain]]) -> None:
    # check 61 gpu-report-signature
    _each(
        ledger,
        CheckCode.GPU_REPORT_SIGNATURE,
        pairs,
        lambda pair: verify_signature(pair[0], pair[1][0].public_key()),
        expected="signed by the certified key",
        detail=RELAY_LIMIT,
    )
    # check 63 gpu-report-fwid
    _each(
        ledger,
        CheckCode.GPU_REPORT_FWID,
        pairs,
        lambda pair: _same(certified_fwid(pair[1][0]), pair[0].fwid),
        expected="the certified firmware id",
        detail="measurements are not compared with NVIDIA's reference values (RIM)",
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
