"""Checks of fresh GPU reports: are they genuine, made for this nonce, and what the policy demands?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trainer.attestation.checks import CheckDefinition, Ledger, Submodule, TrustClaim
from trainer.attestation.evidence import FreshGpuEvidence
from trainer.attestation.nvidia.certificate_chain import (
    Chain,
    certified_fwid,
    certified_model,
    different_keys,
    parse_chain,
    verify_chain,
)
from trainer.attestation.nvidia.gpu_endorsement_checks import (
    GPU_REPORT_MEASUREMENTS,
    GPU_REPORT_REVOCATION,
    judge_measurements,
    judge_revocation,
)
from trainer.attestation.nvidia.report_judgement import GpuReportContext, judge_each_report
from trainer.attestation.nvidia.spdm_report import GpuReport, parse_gpu_report, verify_signature
from trainer.attestation.nvidia.versions import reaches
from trainer.attestation.policy import GpuSection

GPU_REPORT_FORMAT: Final = CheckDefinition(
    "gpu-report-format",
    title="each fresh GPU report is a complete SPDM measurements request and response",
    attack="a report that two readers understand differently",
    claim=(Submodule.GPU, TrustClaim.HARDWARE),
)
GPU_REPORT_CHAIN: Final = CheckDefinition(
    "gpu-report-chain",
    title="the signer's certificates chain to NVIDIA's device identity root, in date",
    attack="a GPU made of software, with certificates of the attacker's own",
    claim=(Submodule.GPU, TrustClaim.INSTANCE_IDENTITY),
    is_signature=True,
)
GPU_REPORT_SIGNATURE: Final = CheckDefinition(
    "gpu-report-signature",
    title="the certified P-384 key of a GPU signed each report",
    attack="any change to any byte of a GPU's report",
    claim=(Submodule.GPU, TrustClaim.INSTANCE_IDENTITY),
    is_signature=True,
)
GPU_REPORT_NONCE: Final = CheckDefinition(
    "gpu-report-nonce",
    title="each report answers the nonce that was asked with",
    attack="replay of a genuine GPU's earlier report",
    claim=(Submodule.GPU, TrustClaim.INSTANCE_IDENTITY),
)
GPU_REPORT_FWID: Final = CheckDefinition(
    "gpu-report-fwid",
    title="each report names the firmware that its certificate was issued for",
    attack="a signing key of one firmware used by another",
    claim=(Submodule.GPU, TrustClaim.EXECUTABLES),
    hint="GPUs with older firmware name none: ask the operator to update it, or write `gpu.firmware_id: any`",
)
GPU_REPORT_COUNT: Final = CheckDefinition(
    "gpu-report-count",
    title="as many different GPUs report as the policy demands",
    attack="one good GPU that answers for the others",
    claim=(Submodule.GPU, TrustClaim.HARDWARE),
)
GPU_REPORT_VERSIONS: Final = CheckDefinition(
    "gpu-report-versions",
    title="driver and VBIOS versions reach the policy's minimum",
    attack="a driver or VBIOS with known, unpatched holes",
    claim=(Submodule.GPU, TrustClaim.EXECUTABLES),
    hint="ask the operator to update driver or VBIOS",
)
GPU_REPORT_MODELS: Final = CheckDefinition(
    "gpu-report-models",
    title="every GPU that reports is of a model that the policy lists",
    attack="a GPU of a kind that was not reviewed",
    claim=(Submodule.GPU, TrustClaim.HARDWARE),
)

RELAY_LIMIT: Final = (
    "a genuine GPU answered; that it is one wired to this VM, and not elsewhere and relayed, "
    "cannot be told on Hopper and Blackwell"
)
NOT_LOOKED_AT: Final = "revocation is not looked at: the policy does not demand it"
NOT_COMPARED: Final = (
    "measurements are not compared with NVIDIA's reference values: the policy does not demand it"
)

_CHECKS: Final = (
    GPU_REPORT_FORMAT,
    GPU_REPORT_CHAIN,
    GPU_REPORT_SIGNATURE,
    GPU_REPORT_NONCE,
    GPU_REPORT_FWID,
    GPU_REPORT_COUNT,
    GPU_REPORT_VERSIONS,
    GPU_REPORT_MODELS,
    GPU_REPORT_MEASUREMENTS,
    GPU_REPORT_REVOCATION,
)


def judge_gpu_reports(
    ledger: Ledger,
    shown: Sequence[FreshGpuEvidence],
    demands: GpuSection,
    context: GpuReportContext,
) -> Sequence[Chain]:
    """Records the checks of this module and of `gpu_endorsement_checks`.

    Reports in the evidence are verified whether the policy demands them or not.

    Args:
        ledger: receives the outcomes.
        shown: the reports, each with the certificate chain of its signer.
        demands: the policy's section `gpu`.
        context: what the reports must answer, and what they are verified with.

    Returns:
        The verified certificate chains; none where one was refused.

    Raises:
        UsageError: the policy demands reference values, and the libraries that read them are not installed.
    """
    if not shown and demands.fresh == "any":
        for definition in _CHECKS:
            ledger.leave_open(definition, found="no fresh report")
        return ()
    if not shown:
        _judge_count(ledger, (), demands)
        return ()
    reports = judge_each_report(
        ledger,
        GPU_REPORT_FORMAT,
        [bytes.fromhex(item.report) for item in shown],
        parse_gpu_report,
        expected="SPDM 1.1 measurements with driver version and VBIOS version",
    )
    chains = _judge_chains(ledger, shown, demands, context)
    # Each of the two may fail by itself; what depends on the failed one is left not reached.
    if chains is not None:
        _judge_count(ledger, chains, demands)
        _judge_models(ledger, chains, demands)
        judge_revocation(ledger, chains, demands, context)
    if reports is not None:
        _judge_contents(ledger, reports, demands, context.nonce)
    if reports is not None and chains is not None:
        pairs = list(zip(reports, chains, strict=True))
        _judge_signers(ledger, pairs, demands)
        judge_measurements(ledger, pairs, demands, context)
    return chains or ()


def _judge_chains(
    ledger: Ledger,
    shown: Sequence[FreshGpuEvidence],
    demands: GpuSection,
    context: GpuReportContext,
) -> list[Chain] | None:
    """Records gpu-report-chain and returns the chains if all are verified: an unverified one certifies nothing."""

    def parse_verified(item: FreshGpuEvidence) -> Chain:
        chain = parse_chain(item.certificate_chain)
        verify_chain(chain, root_sha256=context.root_sha256, now=context.now)
        return chain

    return judge_each_report(
        ledger,
        GPU_REPORT_CHAIN,
        shown,
        parse_verified,
        expected=f"valid certificates up to root {context.root_sha256}",
        detail=NOT_LOOKED_AT if demands.revocation == "any" else None,
        in_threads=True,
    )


def _judge_signers(
    ledger: Ledger, pairs: Sequence[tuple[GpuReport, Chain]], demands: GpuSection
) -> None:
    """Records gpu-report-signature and gpu-report-fwid."""
    # The leaf's key signs the report, and the report must name the firmware that the GPU issued that key to:
    # otherwise other firmware uses it.
    judge_each_report(
        ledger,
        GPU_REPORT_SIGNATURE,
        pairs,
        lambda pair: verify_signature(pair[0], pair[1][0].public_key()),
        expected="signed by the certified key",
        detail=RELAY_LIMIT,
        in_threads=True,
    )
    if demands.firmware_id == "any" and all(report.fwid is None for report, _ in pairs):
        ledger.leave_open(GPU_REPORT_FWID, found="reports without a firmware id")
        return
    # An id that is there must be the right one, whatever the policy leaves open.
    named = (
        pairs
        if demands.firmware_id == "required"
        else [pair for pair in pairs if pair[0].fwid is not None]
    )
    judge_each_report(
        ledger,
        GPU_REPORT_FWID,
        named,
        lambda pair: _require_equal(certified_fwid(pair[1][0]), pair[0].fwid),
        expected="the certified firmware id",
        detail=NOT_COMPARED if demands.reference_values == "any" else None,
    )


def _require_equal(expected: bytes, found: bytes | None) -> None:
    if expected != found:
        raise ValueError(
            f"expected {expected.hex()}, got {'none' if found is None else found.hex()}"
        )


def _judge_count(ledger: Ledger, chains: Sequence[Chain], demands: GpuSection) -> None:
    """Records gpu-report-count. GPUs are distinguished by their keys, so one GPU cannot answer for another."""
    # NVIDIA certified each GPU by the second certificate of its chain. A GPU derives the key of the first for
    # its firmware, so one GPU that starts two firmwares in turn signs with two such keys.
    different = min(different_keys([chain[place] for chain in chains]) for place in (0, 1))
    wanted = demands.count == "any" or demands.count == different
    ledger.judge(
        GPU_REPORT_COUNT,
        wanted and len(chains) == different > 0,
        expected=f"{'1 or more' if demands.count == 'any' else demands.count} different GPUs, one report each",
        found=f"{len(chains)} reports by {different} GPUs",
    )


def _judge_contents(
    ledger: Ledger, reports: Sequence[GpuReport], demands: GpuSection, nonce: bytes
) -> None:
    """Records gpu-report-nonce and gpu-report-versions."""
    judge_each_report(
        ledger,
        GPU_REPORT_NONCE,
        reports,
        lambda report: _require_equal(nonce, report.nonce),
        expected=nonce.hex(),
    )
    driver, vbios = demands.min_driver_version, demands.min_vbios_version
    found = "; ".join(
        f"driver {report.driver_version}, VBIOS {report.vbios_version}" for report in reports
    )
    if driver == vbios == "any":
        ledger.leave_open(GPU_REPORT_VERSIONS, found=found)
        return
    holds = all(
        reaches(report.driver_version, driver, base=10)
        and reaches(report.vbios_version, vbios, base=16)
        for report in reports
    )
    ledger.judge(
        GPU_REPORT_VERSIONS,
        holds,
        expected=f"driver {driver}, VBIOS {vbios}, or later",
        found=found,
    )


def _judge_models(ledger: Ledger, chains: Sequence[Chain], demands: GpuSection) -> None:
    if demands.models == "any":
        ledger.leave_open(GPU_REPORT_MODELS)
        return
    listed = demands.models

    def require_listed(chain: Chain) -> None:
        model = certified_model(chain)
        if not model.startswith(listed):
            raise ValueError(f"the model is {model}")

    expected = f"GPUs certified as {' or '.join(listed)}"
    judge_each_report(ledger, GPU_REPORT_MODELS, chains, require_listed, expected=expected)
