"""The order of the checks: of an appraisal before sealing, and of the evidence over a statement.

The place in its list is a check's number. Numbers appear in reports and in docs/checks.md, so a new check goes to
the end of `DATASET_CHECKS`, and of `STATEMENT_CHECKS` if a statement has it as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from trainer.attestation.checks import CheckDefinition
from trainer.attestation.claims import claims_checks, statement_checks
from trainer.attestation.dstack import app_checks, os_checks
from trainer.attestation.nvidia import (
    boot_checks,
    boot_event_checks,
    gpu_endorsement_checks,
    gpu_report_checks,
)
from trainer.attestation.tdx import platform_checks
from trainer.attestation.tdx.quote_checks import QUOTE_CHECKS

DATASET_CHECKS: Final = (
    *QUOTE_CHECKS,
    os_checks.OS_MEASUREMENTS,
    os_checks.OS_DEVELOPMENT,
    app_checks.EVENT_LOG_FORMAT,
    app_checks.EVENT_DIGESTS,
    app_checks.EVENT_ORDER,
    app_checks.RTMR3_REPLAY,
    app_checks.COMPOSE_HASH,
    app_checks.COMPOSE_ACCEPTED,
    app_checks.APP_ID,
    app_checks.MR_CONFIG_ID,
    app_checks.KEY_PROVIDER,
    app_checks.KEY_CHAIN,
    app_checks.KEY_POSSESSION,
    claims_checks.REPORT_DATA,
    claims_checks.NONCE,
    claims_checks.NONCE_UNUSED,
    claims_checks.CLAIMS_VALIDITY,
    claims_checks.FRESHNESS,
    claims_checks.TLS_KEY,
    claims_checks.JOB_SPEC_DIGEST,
    claims_checks.RECIPIENT,
    claims_checks.RECEIPT_KEY,
    boot_event_checks.GPU_EVIDENCE,
    boot_event_checks.GPU_BOOT,
    boot_event_checks.GPU_REQUIRED,
    boot_event_checks.GPU_CC_MODE,
    boot_event_checks.GPU_DEVTOOLS,
    boot_checks.GPU_BOOT_CLAIMS,
    boot_checks.GPU_BOOT_RESULT,
    boot_checks.GPU_BOOT_SECURE_BOOT,
    boot_checks.GPU_BOOT_DEBUG,
    boot_checks.GPU_BOOT_NONCE,
    boot_checks.GPU_BOOT_REVOCATION,
    boot_checks.GPU_BOOT_COUNT,
    boot_checks.GPU_BOOT_MODELS,
    boot_checks.GPU_BOOT_VERSIONS,
    gpu_report_checks.GPU_REPORT_FORMAT,
    gpu_report_checks.GPU_REPORT_CHAIN,
    gpu_report_checks.GPU_REPORT_SIGNATURE,
    gpu_report_checks.GPU_REPORT_NONCE,
    gpu_report_checks.GPU_REPORT_FWID,
    gpu_report_checks.GPU_REPORT_COUNT,
    gpu_report_checks.GPU_REPORT_VERSIONS,
    gpu_report_checks.GPU_REPORT_MODELS,
    gpu_endorsement_checks.GPU_REPORT_MEASUREMENTS,
    gpu_endorsement_checks.GPU_REPORT_REVOCATION,
    claims_checks.SANDBOX,
    claims_checks.KEY_SEPARATION,
    app_checks.INIT_SCRIPTS,
    platform_checks.PLATFORM_PPID,
)
"""Checks of `appraise`."""

STATEMENT_CHECKS: Final = (
    *QUOTE_CHECKS,
    statement_checks.EARLIER_RESULT,
    statement_checks.SAME_VM,
    statement_checks.STATEMENT_PURPOSE,
    statement_checks.SAME_JOB,
    statement_checks.STATEMENT_DIGEST,
    statement_checks.STATEMENT_RECEIPT_KEY,
    statement_checks.STATEMENT_REPORT_DATA,
    statement_checks.STATEMENT_CLAIMS_VALIDITY,
    platform_checks.PLATFORM_PPID,
)
"""Checks of `appraise_statement_evidence`."""

DEFINITIONS: Final[Mapping[str, CheckDefinition]] = MappingProxyType(
    {definition.code: definition for definition in (*STATEMENT_CHECKS, *DATASET_CHECKS)}
)
"""Code → definition. A code that both lists have, such as `report-data`, leads to that of `DATASET_CHECKS`."""
