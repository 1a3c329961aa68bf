"""Checks of fresh GPU reports against NVIDIA's endorsements: reference values and revocation answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trainer.attestation.checks import CheckDefinition, Ledger, Submodule, TrustClaim
from trainer.attestation.nvidia.certificate_chain import Chain, certified_model
from trainer.attestation.nvidia.ocsp import OcspResponse, parse_answers, verify_not_revoked
from trainer.attestation.nvidia.report_judgement import GpuReportContext, judge_each_report
from trainer.attestation.nvidia.rim import (
    ReferenceIntegrityManifest,
    compare_measurements,
    verify_manifest,
)
from trainer.attestation.nvidia.spdm_report import GpuReport
from trainer.attestation.policy import GpuSection

GPU_REPORT_MEASUREMENTS: Final = CheckDefinition(
    "gpu-report-measurements",
    title="each report's measurements are NVIDIA's reference values",
    attack="a GPU with firmware or a driver that NVIDIA never published",
    claim=(Submodule.GPU, TrustClaim.EXECUTABLES),
)
GPU_REPORT_REVOCATION: Final = CheckDefinition(
    "gpu-report-revocation",
    title="NVIDIA's responder says that no certificate of a GPU was revoked",
    attack="a GPU whose key was extracted and revoked",
    claim=(Submodule.GPU, TrustClaim.INSTANCE_IDENTITY),
)


def judge_measurements(
    ledger: Ledger,
    pairs: Sequence[tuple[GpuReport, Chain]],
    demands: GpuSection,
    context: GpuReportContext,
) -> None:
    """Records gpu-report-measurements.

    Args:
        ledger: receives the outcome.
        pairs: each report with the verified chain of its signer.
        demands: the policy's section `gpu`.
        context: holds the reference integrity manifests.

    Raises:
        UsageError: the policy demands reference values, and the libraries that read them are not installed.
    """
    if demands.reference_values == "any":
        ledger.leave_open(GPU_REPORT_MEASUREMENTS)
        return
    manifests: list[ReferenceIntegrityManifest] = []
    refused = []
    # A refused manifest fails the check only if a report needs it: one for another driver may have expired.
    for place, text in enumerate(context.endorsements.reference_values):
        try:
            manifests.append(
                verify_manifest(text, root_sha256=context.rim_root_sha256, now=context.now)
            )
        except ValueError as error:
            refused.append(f"manifest {place}: {error}")
    judge_each_report(
        ledger,
        GPU_REPORT_MEASUREMENTS,
        pairs,
        lambda pair: compare_measurements(pair[0], certified_model(pair[1]), manifests),
        expected="what NVIDIA published for this driver and this VBIOS",
        detail="; ".join(refused) or None,
    )


def judge_revocation(
    ledger: Ledger, chains: Sequence[Chain], demands: GpuSection, context: GpuReportContext
) -> None:
    """Records gpu-report-revocation.

    Args:
        ledger: receives the outcome.
        chains: the verified chain of each report's signer.
        demands: the policy's section `gpu`.
        context: holds the OCSP responses.
    """
    if demands.revocation == "any":
        ledger.leave_open(GPU_REPORT_REVOCATION)
        return
    # A refused response fails the check only if a certificate has no other answer.
    answers: list[OcspResponse] = []
    refused = []
    for place, der in enumerate(context.endorsements.revocation):
        try:
            answers += parse_answers(der)
        except ValueError as error:
            refused.append(f"response {place}: {error}")
    judge_each_report(
        ledger,
        GPU_REPORT_REVOCATION,
        chains,
        lambda chain: verify_not_revoked(chain, answers, now=context.now),
        expected="signed answers of NVIDIA's responder that no certificate is revoked",
        detail="; ".join(refused) or None,
    )
