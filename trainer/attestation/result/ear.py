"""The outcome of an appraisal in the terms of the IETF: an EAT Attestation Result (EAR) in JSON.

Every check counts towards one trustworthiness claim of one submodule, which its definition names. Tools that know
EAR read tiers and vectors under `ear`; tools made for this project read `status`, `checks`, `results` beside it.
The document is not signed: it is the outcome of an appraisal on this machine.

Sources: draft-ietf-rats-ear-03 (names and profile), draft-ietf-rats-ar4si-09 (claims and their values).
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
from trainer.attestation.catalogue import DATASET_CHECKS, DEFINITIONS
from trainer.attestation.checks import Check, CheckState, Submodule, TrustClaim
from trainer.attestation.result.attestation_result import AttestationResult
from trainer.attestation.tdx.collateral import INTEL_ROOT_KEY_ID
from trainer.attestation.tdx.quote_checks import ROOT_OF_TRUST
from trainer.attestation.tdx.tcb_checks import TCB_STATUS

EAT_PROFILE: Final = "tag:ietf.org,2026:rats/ear#03"
DEVELOPER: Final = "confidential-trainer"
BUILD: Final = f"trainer {__version__}"
EAR: Final = "ear"
VERIFIER_ID: Final = "ear_verifier_id"


class TrustValue(IntEnum):
    """Values of a trustworthiness claim, as AR4SI numbers them; each means the same for every claim."""

    NONE = 0
    AFFIRMING = 2
    KNOWN_VULNERABILITIES = 32
    CONTRAINDICATED = 96
    SIGNATURE_FAILED = 99


class Tier(StrEnum):
    """AR4SI's four trustworthiness tiers."""

    NONE = "none"
    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"


CODES_BY_CLAIM: Final[Mapping[tuple[Submodule, TrustClaim], tuple[str, ...]]] = MappingProxyType(
    {
        counted.claim: tuple(each.code for each in DATASET_CHECKS if each.claim == counted.claim)
        for counted in DATASET_CHECKS
        if counted.claim is not None
    }
)
"""Submodule and claim → the codes of the checks that count towards it, in their order."""


def result_document(result: AttestationResult) -> dict[str, JsonValue]:
    """Returns the result as JSON values: the output of `trainer verify --json`, and part of a record.

    `ear` is an EAR. All else is for scripts, and beside the EAR, whose extensions must be maps. Times in Unix
    seconds.
    """
    names = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
    registers = result.td.registers if result.td is not None else ()
    return {
        "status": result.status,
        "development_root": result.development_root,
        "cautions": list(result.cautions),
        "fresh": result.fresh,
        "checks": {check.code: check.state.value for check in result.checks},
        "recipient": result.recipient,
        "expires_at": result.expires_at,
        "results": [asdict(check) | {"state": check.state.value} for check in result.checks],
        "appraisal": {
            "policy_sha256": result.policy_sha256,
            "job_spec_sha256": result.job_spec_sha256,
            "compose_sha256": result.compose_sha256,
            "peer_spki_sha256": result.peer_spki_sha256,
            "registers": {name: value.hex() for name, value in zip(names, registers, strict=False)},
        },
        EAR: ear_claims(result),
    }


def ear_claims(result: AttestationResult) -> dict[str, JsonValue]:
    """Returns the result as the claims of an EAR, without extensions."""
    # A check that was not reached leaves its submodule's tier at `none`, but fails the appraisal.
    tiers = {name: submodule_tier(name, result.checks) for name in Submodule}
    tier = Tier.WARNING if Tier.WARNING in tiers.values() else Tier.AFFIRMING
    submodules: dict[str, JsonValue] = {
        name.value: {
            "ear_status": tiers[name].value,
            "ear_trustworthiness_vector": {
                claim.value: value.value for claim, value in vector.items()
            },
            "ear_appraisal_policy_ids": [
                f"urn:confidential-trainer:policy:sha256:{result.policy_sha256}"
            ],
        }
        for name, vector in vectors(result.checks).items()
    }
    # The nonce of the request only: the evidence's own would prove nothing. In JSON a text of 8 to 88 characters
    # (RFC 9711, section 4.1).
    nonce = base64.urlsafe_b64encode(bytes.fromhex(result.nonce or "")).decode().rstrip("=")
    return {
        "eat_profile": EAT_PROFILE,
        "iat": result.appraised_at,
        **({"eat_nonce": nonce} if nonce else {}),
        VERIFIER_ID: {"developer": DEVELOPER, "build": BUILD},
        "ear_status": (tier if result.status == "pass" else Tier.CONTRAINDICATED).value,
        "submods": submodules,
    }


def vectors(checks: Sequence[Check]) -> dict[Submodule, dict[TrustClaim, TrustValue]]:
    """Returns submodule → claim → value, from the states of the checks that count towards each claim."""
    by_code = {check.code: check for check in checks}
    collected: dict[Submodule, dict[TrustClaim, TrustValue]] = {name: {} for name in Submodule}
    for (submodule, claim), codes in CODES_BY_CLAIM.items():
        collected[submodule][claim] = _value([by_code[code] for code in codes if code in by_code])
    return collected


def _value(checks: Sequence[Check]) -> TrustValue:
    """Returns the value of one claim: that of its worst check.

    A contraindicated check decides before one that was not reached. A claim without an affirmed check is NONE, so
    a policy that leaves everything open affirms nothing.
    """
    states = {check.state for check in checks}
    if CheckState.CONTRAINDICATED in states:
        failed = [
            DEFINITIONS[check.code] for check in checks if check.state is CheckState.CONTRAINDICATED
        ]
        is_signature = any(definition.is_signature for definition in failed)
        return TrustValue.SIGNATURE_FAILED if is_signature else TrustValue.CONTRAINDICATED
    if CheckState.AFFIRMED not in states or CheckState.NOT_REACHED in states:
        return TrustValue.NONE
    # Two affirmed checks can mean less than the others: a policy may accept more than UpToDate, and another root
    # than Intel's, under which nobody vouches for the hardware.
    full = {TCB_STATUS.code: "UpToDate", ROOT_OF_TRUST.code: INTEL_ROOT_KEY_ID.hex()}
    tolerated = any(check.found != full.get(check.code, check.found) for check in checks)
    return TrustValue.KNOWN_VULNERABILITIES if tolerated else TrustValue.AFFIRMING


def submodule_of(check: Check) -> Submodule | None:
    """Returns the submodule that a check counts towards; None for a check that only a receipt has."""
    definition = DEFINITIONS.get(check.code)
    return definition.claim[0] if definition and definition.claim else None


def submodule_tier(name: Submodule, checks: Sequence[Check]) -> Tier:
    """Returns the tier of one submodule; `none` where nothing was affirmed, or a check was not reached."""
    # AR4SI numbers the values so that a larger one is worse; from 96 on they contradict.
    worst = max(vectors(checks)[name].values())
    if worst >= TrustValue.CONTRAINDICATED:
        return Tier.CONTRAINDICATED
    unreached = (check for check in checks if check.state is CheckState.NOT_REACHED)
    if any(submodule_of(check) is name for check in unreached):
        return Tier.NONE
    return _TIERS[worst]


_TIERS: Final = {
    TrustValue.NONE: Tier.NONE,
    TrustValue.AFFIRMING: Tier.AFFIRMING,
    TrustValue.KNOWN_VULNERABILITIES: Tier.WARNING,
}
