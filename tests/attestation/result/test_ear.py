"""The result as EAR: every check counts once, and no tier says more than the checks do."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from trainer.attestation.catalogue import DATASET_CHECKS
from trainer.attestation.checks import Check, CheckState, Submodule, TrustClaim
from trainer.attestation.result import ear
from trainer.attestation.result.ear import (
    CODES_BY_CLAIM,
    TrustValue,
    result_document,
    submodule_tier,
    vectors,
)
from trainer.attestation.tdx.collateral import INTEL_ROOT_KEY_ID

World = Any  # conftest.World
CODES = [definition.code for definition in DATASET_CHECKS]
PLACES = {code: claim for claim, codes in CODES_BY_CLAIM.items() for code in codes}


def checks(**states: CheckState) -> list[Check]:
    """All checks affirmed, but for some (underscores for dashes)."""
    changed = {code.replace("_", "-"): state for code, state in states.items()}
    found = {"tcb-status": "UpToDate", "root-of-trust": INTEL_ROOT_KEY_ID.hex()}
    return [
        Check(number, code, code, changed.get(code, CheckState.AFFIRMED), found=found.get(code))
        for number, code in enumerate(CODES, 1)
    ]


def test_every_check_counts_towards_exactly_one_claim() -> None:
    listed = [code for codes in CODES_BY_CLAIM.values() for code in codes]
    assert Counter(listed) == Counter(CODES)


def test_all_affirmed_is_affirming_everywhere() -> None:
    for name, vector in vectors(checks()).items():
        assert set(vector.values()) == {TrustValue.AFFIRMING}
        assert submodule_tier(name, checks()) == "affirming"


@pytest.mark.parametrize("code", CODES)
def test_each_check_alone_contraindicates_its_claim_and_no_other(code: str) -> None:
    submodule, claim = PLACES[code]
    failed = checks(**{code.replace("-", "_"): CheckState.CONTRAINDICATED})
    for name, vector in vectors(failed).items():
        for other, value in vector.items():
            here = (name, other) == (submodule, claim)
            assert (value >= TrustValue.CONTRAINDICATED) == here
        assert submodule_tier(name, failed) == (
            "contraindicated" if name is submodule else "affirming"
        )


def test_a_signature_that_does_not_hold_has_a_value_of_its_own() -> None:
    failed = vectors(
        checks(quote_signature=CheckState.CONTRAINDICATED, report_data=CheckState.CONTRAINDICATED)
    )
    assert failed[Submodule.TDX][TrustClaim.HARDWARE] == 99
    assert failed[Submodule.JOB][TrustClaim.INSTANCE_IDENTITY] == 99
    stale = vectors(checks(collateral_validity=CheckState.CONTRAINDICATED))
    assert stale[Submodule.TDX][TrustClaim.HARDWARE] == 96


@pytest.mark.parametrize("code", CODES)
def test_what_was_not_reached_is_never_affirmed(code: str) -> None:
    submodule, claim = PLACES[code]
    unseen = checks(**{code.replace("-", "_"): CheckState.NOT_REACHED})
    assert vectors(unseen)[submodule][claim] == TrustValue.NONE
    assert submodule_tier(submodule, unseen) == "none"


def test_what_was_not_demanded_affirms_nothing_by_itself() -> None:
    gpu = {
        code.replace("-", "_"): CheckState.NOT_DEMANDED
        for code in CODES
        if PLACES[code][0] is Submodule.GPU
    }
    assert set(vectors(checks(**gpu))[Submodule.GPU].values()) == {TrustValue.NONE}
    assert submodule_tier(Submodule.GPU, checks(**gpu)) == "none"
    some = vectors(checks(mr_seam=CheckState.NOT_DEMANDED))
    assert some[Submodule.TDX][TrustClaim.HARDWARE] == TrustValue.AFFIRMING


def test_an_accepted_platform_that_is_not_up_to_date_is_a_warning() -> None:
    tolerated = [
        replace(check, found="OutOfDate") if check.code == "tcb-status" else check
        for check in checks()
    ]
    assert vectors(tolerated)[Submodule.TDX][TrustClaim.HARDWARE] == 32
    assert submodule_tier(Submodule.TDX, tolerated) == "warning"


def test_an_accepted_root_that_is_not_intels_is_a_warning(world: World) -> None:
    other = [
        replace(check, found="00" * 48) if check.code == "root-of-trust" else check
        for check in checks()
    ]
    assert vectors(other)[Submodule.TDX][TrustClaim.HARDWARE] == 32
    assert submodule_tier(Submodule.TDX, other) == "warning"
    assert submodule_tier(Submodule.TDX, world.appraise().checks) == "warning"


def test_the_document_of_an_honest_world(world: World) -> None:
    world = world.without_reports()
    result = world.appraise()
    document: Any = result_document(result)
    assert json.loads(json.dumps(document)) == document
    claims = document["ear"]
    assert set(claims) == {
        "eat_profile",
        "iat",
        "eat_nonce",
        "ear_verifier_id",
        "ear_status",
        "submods",
    }
    assert claims["eat_profile"] == "tag:ietf.org,2026:rats/ear#03"
    assert claims["iat"] == world.now
    assert claims["ear_verifier_id"] == {"developer": "confidential-trainer", "build": ear.BUILD}
    assert set(claims["submods"]) == {"tdx", "os", "app", "job", "gpu"}
    for submodule in claims["submods"].values():
        assert set(submodule) == {
            "ear_status",
            "ear_trustworthiness_vector",
            "ear_appraisal_policy_ids",
        }
        assert submodule["ear_appraisal_policy_ids"] == [
            f"urn:confidential-trainer:policy:sha256:{world.policy.sha256()}"
        ]
    assert document["checks"] == {check.code: check.state.value for check in result.checks}
    assert document["status"] == result.status
    assert document["recipient"] == result.recipient
    assert document["expires_at"] == result.expires_at
    first = document["results"][0]
    assert set(first) == {"number", "code", "title", "state", "expected", "found", "detail"}
    registers = document["appraisal"]["registers"]
    assert list(registers) == ["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"]


def test_a_failed_appraisal_is_contraindicated_as_a_whole(world: World) -> None:
    document: Any = result_document(world.change(nonce="02" * 32).appraise())
    assert (document["status"], document["ear"]["ear_status"]) == ("fail", "contraindicated")
    assert document["ear"]["submods"]["job"]["ear_status"] == "contraindicated"


def test_a_quote_that_cannot_be_read_leaves_no_registers(world: World) -> None:
    document: Any = result_document(world.change(quote=b"\4\0").appraise())
    assert document["appraisal"]["registers"] == {}
    assert document["ear"]["submods"]["tdx"]["ear_status"] == "contraindicated"
