"""The outcome of an appraisal in the terms of the IETF: an EAT Attestation Result (EAR) in JSON.

Every check counts towards one trustworthiness claim of one submodule; the table below says which. Whoever knows
EAR reads tiers and vectors; whoever knows this project reads `status`, `checks` and `results`. Nothing here is
signed: it is what the appraisal on this machine came to.

Sources: draft-ietf-rats-ear-02 (names and profile), draft-ietf-rats-ar4si-09 (claims and their values).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Final

from pydantic import JsonValue

from trainer import __version__
from trainer.attestation.checks import Check, CheckCode, CheckState
from trainer.attestation.result.attestation_result import AttestationResult

EAT_PROFILE: Final = "tag:ietf.org,2025-07:ear"
DEVELOPER: Final = "confidential-trainer"
BUILD: Final = f"trainer {__version__}"
VERIFIER_ID: Final = "ear.verifier-id"
EXTENSION: Final = "confidential-trainer.appraisal"
"""Our own claims beside the five that scripts find at the top."""


class Submodule(StrEnum):
    """Who attests, or what is attested: each is appraised by itself."""

    TDX = "tdx"
    OS = "os"
    APP = "app"
    GPU = "gpu"
    JOB = "job"


class TrustClaim(StrEnum):
    """The claims of AR4SI that this verifier makes; it makes none about the file system or sourced data."""

    INSTANCE_IDENTITY = "instance-identity"
    CONFIGURATION = "configuration"
    EXECUTABLES = "executables"
    HARDWARE = "hardware"
    RUNTIME_OPAQUE = "runtime-opaque"
    STORAGE_OPAQUE = "storage-opaque"


class TrustValue(IntEnum):
    """Values of a claim; each means the same for all claims above."""

    NONE = 0
    AFFIRMING = 2
    KNOWN_VULNERABILITIES = 32
    CONTRAINDICATED = 96
    SIGNATURE_FAILED = 99


class Tier(StrEnum):
    """AR4SI's four answers."""

    NONE = "none"
    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"


_TABLE: Final[Mapping[tuple[Submodule, TrustClaim], tuple[CheckCode, ...]]] = {
    (Submodule.TDX, TrustClaim.HARDWARE): (
        CheckCode.QUOTE_FORMAT,
        CheckCode.QUOTE_TRAILING_BYTES,
        CheckCode.COLLATERAL_FORMAT,
        CheckCode.ROOT_OF_TRUST,
        CheckCode.COLLATERAL_SIGNATURE,
        CheckCode.COLLATERAL_VALIDITY,
        CheckCode.QUOTE_SIGNATURE,
        CheckCode.QUOTING_ENCLAVE,
        CheckCode.TCB_LEVEL,
        CheckCode.TCB_STATUS,
        CheckCode.TCB_GRACE,
        CheckCode.TCB_ADVISORIES,
        CheckCode.TCB_EVALUATION_NUMBER,
        CheckCode.TDX_MODULE,
        CheckCode.MR_SEAM,
    ),
    (Submodule.TDX, TrustClaim.INSTANCE_IDENTITY): (CheckCode.PLATFORM_CERTIFICATE,),
    (Submodule.TDX, TrustClaim.RUNTIME_OPAQUE): (
        CheckCode.TD_DEBUG,
        CheckCode.TD_ATTRIBUTES,
        CheckCode.SERVICE_TD,
    ),
    (Submodule.TDX, TrustClaim.CONFIGURATION): (
        CheckCode.TD_XFAM,
        CheckCode.MR_OWNER,
        CheckCode.MR_OWNER_CONFIG,
    ),
    (Submodule.OS, TrustClaim.EXECUTABLES): (
        CheckCode.OS_MEASUREMENTS,
        CheckCode.EVENT_LOG_FORMAT,
        CheckCode.EVENT_DIGESTS,
        CheckCode.EVENT_ORDER,
        CheckCode.RTMR3_REPLAY,
    ),
    (Submodule.OS, TrustClaim.CONFIGURATION): (CheckCode.OS_DEVELOPMENT,),
    (Submodule.APP, TrustClaim.EXECUTABLES): (CheckCode.COMPOSE_HASH, CheckCode.COMPOSE_ACCEPTED),
    (Submodule.APP, TrustClaim.CONFIGURATION): (CheckCode.MR_CONFIG_ID,),
    (Submodule.APP, TrustClaim.INSTANCE_IDENTITY): (
        CheckCode.APP_ID,
        CheckCode.KEY_CHAIN,
        CheckCode.KEY_POSSESSION,
    ),
    (Submodule.APP, TrustClaim.STORAGE_OPAQUE): (CheckCode.KEY_PROVIDER,),
    (Submodule.JOB, TrustClaim.INSTANCE_IDENTITY): (
        CheckCode.REPORT_DATA,
        CheckCode.NONCE,
        CheckCode.NONCE_UNUSED,
        CheckCode.CLAIMS_VALIDITY,
        CheckCode.FRESHNESS,
        CheckCode.TLS_KEY,
        CheckCode.RECIPIENT,
        CheckCode.RECEIPT_KEY,
    ),
    (Submodule.JOB, TrustClaim.CONFIGURATION): (CheckCode.JOB_SPEC_DIGEST, CheckCode.SANDBOX),
    (Submodule.GPU, TrustClaim.HARDWARE): (
        CheckCode.GPU_EVIDENCE,
        CheckCode.GPU_BOOT,
        CheckCode.GPU_REQUIRED,
        CheckCode.GPU_BOOT_CLAIMS,
        CheckCode.GPU_BOOT_RESULT,
        CheckCode.GPU_BOOT_COUNT,
        CheckCode.GPU_BOOT_MODELS,
        CheckCode.GPU_REPORT_FORMAT,
        CheckCode.GPU_REPORT_COUNT,
        CheckCode.GPU_REPORT_MODELS,
    ),
    (Submodule.GPU, TrustClaim.RUNTIME_OPAQUE): (
        CheckCode.GPU_CC_MODE,
        CheckCode.GPU_DEVTOOLS,
        CheckCode.GPU_BOOT_DEBUG,
    ),
    (Submodule.GPU, TrustClaim.EXECUTABLES): (
        CheckCode.GPU_BOOT_SECURE_BOOT,
        CheckCode.GPU_BOOT_VERSIONS,
        CheckCode.GPU_REPORT_FWID,
        CheckCode.GPU_REPORT_VERSIONS,
        CheckCode.GPU_REPORT_MEASUREMENTS,
    ),
    (Submodule.GPU, TrustClaim.INSTANCE_IDENTITY): (
        CheckCode.GPU_BOOT_NONCE,
        CheckCode.GPU_BOOT_REVOCATION,
        CheckCode.GPU_REPORT_CHAIN,
        CheckCode.GPU_REPORT_SIGNATURE,
        CheckCode.GPU_REPORT_NONCE,
        CheckCode.GPU_REPORT_REVOCATION,
    ),
}

PLACES: Final[Mapping[str, tuple[Submodule, TrustClaim]]] = MappingProxyType(
    {code.value: place for place, codes in _TABLE.items() for code in codes}
)
"""Check code → the submodule and the claim that it counts towards."""

_SIGNATURES: Final = frozenset(
    {
        CheckCode.COLLATERAL_SIGNATURE,
        CheckCode.PLATFORM_CERTIFICATE,
        CheckCode.QUOTE_SIGNATURE,
        CheckCode.EVENT_DIGESTS,
        CheckCode.RTMR3_REPLAY,
        CheckCode.KEY_CHAIN,
        CheckCode.KEY_POSSESSION,
        CheckCode.REPORT_DATA,
        CheckCode.GPU_REPORT_CHAIN,
        CheckCode.GPU_REPORT_SIGNATURE,
    }
)
"""Checks whose failure is a digest or signature that does not hold: AR4SI has a value of its own for that."""


def ear_document(result: AttestationResult) -> dict[str, JsonValue]:
    """The outcome as JSON values: what `trainer verify --json` prints, and what a record keeps.

    `status`, `checks`, `recipient`, `expires_at` and `results` stand at the top, for scripts; more of our own is
    in `EXTENSION`. All else is EAR. Times in Unix seconds.
    """
    return {
        "eat_profile": EAT_PROFILE,
        "iat": result.appraised_at,
        "eat_nonce": base64.urlsafe_b64encode(bytes.fromhex(result.nonce)).decode().rstrip("="),
        VERIFIER_ID: {"developer": DEVELOPER, "build": BUILD},
        "ear.status": overall_tier(result).value,
        "submods": {
            name.value: _appraisal(name, vector, result) for name, vector in vectors(result.checks).items()
        },
        "status": result.status,
        "checks": {check.code: check.state.value for check in result.checks},
        "recipient": result.recipient,
        "expires_at": result.expires_at,
        "results": [asdict(check) | {"state": check.state.value} for check in result.checks],
        EXTENSION: _extension(result),
    }


def policy_urn(sha256: str) -> str:
    """The name of a policy in an EAR."""
    return f"urn:confidential-trainer:policy:sha256:{sha256}"


def _appraisal(
    name: Submodule, vector: Mapping[TrustClaim, TrustValue], result: AttestationResult
) -> dict[str, JsonValue]:
    return {
        "ear.status": submodule_tier(name, result.checks).value,
        "ear.trustworthiness-vector": {claim.value: value.value for claim, value in vector.items()},
        "ear.appraisal-policy-id": policy_urn(result.policy_sha256),
    }


def _extension(result: AttestationResult) -> dict[str, JsonValue]:
    names = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
    registers = result.td.registers if result.td is not None else ()
    return {
        "policy_sha256": result.policy_sha256,
        "job_spec_sha256": result.job_spec_sha256,
        "compose_sha256": result.compose_sha256,
        "peer_spki_sha256": result.peer_spki_sha256,
        "registers": {name: value.hex() for name, value in zip(names, registers, strict=False)},
    }


def vectors(checks: Sequence[Check]) -> dict[Submodule, dict[TrustClaim, TrustValue]]:
    """Submodule → claim → value, from the states of the checks that count towards it."""
    found = {check.code: check for check in checks}
    collected: dict[Submodule, dict[TrustClaim, TrustValue]] = {name: {} for name in Submodule}
    for (submodule, claim), codes in _TABLE.items():
        collected[submodule][claim] = _value([found[code] for code in codes if code in found])
    return collected


def _value(checks: Sequence[Check]) -> TrustValue:
    """One claim's value: the worst that its checks say; what nobody looked at affirms nothing."""
    states = {check.state for check in checks}
    if CheckState.CONTRAINDICATED in states:
        failed = {check.code for check in checks if check.state is CheckState.CONTRAINDICATED}
        return TrustValue.SIGNATURE_FAILED if failed & _SIGNATURES else TrustValue.CONTRAINDICATED
    if CheckState.AFFIRMED not in states or CheckState.NOT_REACHED in states:
        return TrustValue.NONE
    return TrustValue.KNOWN_VULNERABILITIES if any(map(_tolerated, checks)) else TrustValue.AFFIRMING


def _tolerated(check: Check) -> bool:
    """Whether the policy accepts a platform that Intel does not call up to date."""
    return check.code == CheckCode.TCB_STATUS and check.found != "UpToDate"


def submodule_tier(name: Submodule, checks: Sequence[Check]) -> Tier:
    """The tier of one submodule; `none` where nothing was affirmed, or a check was not reached."""
    worst = max(vectors(checks)[name].values())
    if worst >= TrustValue.CONTRAINDICATED:
        return Tier.CONTRAINDICATED
    own = [check for check in checks if PLACES[check.code][0] is name]
    if any(check.state is CheckState.NOT_REACHED for check in own):
        return Tier.NONE
    return _TIERS[worst]


_TIERS: Final = {
    TrustValue.NONE: Tier.NONE,
    TrustValue.AFFIRMING: Tier.AFFIRMING,
    TrustValue.KNOWN_VULNERABILITIES: Tier.WARNING,
}


def overall_tier(result: AttestationResult) -> Tier:
    """The tier of the whole: never better than our own verdict, as a check that nobody reached fails it, too."""
    if result.status != "pass":
        return Tier.CONTRAINDICATED
    tiers = {submodule_tier(name, result.checks) for name in Submodule}
    return Tier.WARNING if Tier.WARNING in tiers else Tier.AFFIRMING
