"""The result file: loading appraises again, and nothing written into the file changes the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from trainer.attestation.nvidia.gpu_endorsements import GpuEndorsements
from trainer.attestation.policy import CollateralDocument
from trainer.attestation.result.ear import result_document
from trainer.attestation.result.record import (
    MAX_RECORD_BYTES,
    Record,
    is_record,
    load_record,
    reappraise,
    save_record,
)
from trainer.errors import ErrorCode, VerificationError

World = Any  # conftest.World


@pytest.fixture
def world(world: World) -> World:
    """Records are judged under NVIDIA's own root, so the test's GPU stays out of them."""
    return world.without_reports()


def record(world: World) -> Record:
    return Record(
        world.appraise(),
        evidence=world.evidence(),
        collateral=world.collateral,
        policy=world.policy,
    )


def edited(data: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(data)
    edit(document)
    return json.dumps(document).encode()


def test_a_record_comes_back_as_it_was(world: World) -> None:
    before = record(world)
    after = load_record(save_record(before))
    assert after == before
    after.result.require_pass(world.now)
    assert save_record(after) == save_record(before)


def test_a_failed_appraisal_stays_failed(world: World) -> None:
    after = load_record(save_record(record(world.change(nonce="02" * 32))))
    assert [check.code for check in after.result.failed] == ["nonce"]
    assert result_document(after.result)["status"] == "fail"


def promoted(document: dict[str, Any]) -> None:
    result = document["result"]
    result["status"], result["ear"]["ear_status"] = "pass", "affirming"
    result["checks"] = dict.fromkeys(result["checks"], "affirmed")
    for check in result["results"]:
        check["state"] = "affirmed"


def test_a_hand_written_pass_is_not_loaded(world: World) -> None:
    data = save_record(record(world.change(nonce="02" * 32)))
    with pytest.raises(VerificationError) as refused:
        load_record(edited(data, promoted))
    assert refused.value.code is ErrorCode.VERIFICATION_FAILED
    assert "fail" in str(refused.value.expected)


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: document.update(nonce="02" * 32),
        lambda document: document.update(appraised_at=document["appraised_at"] + 1),
        lambda document: document.update(peer_spki_sha256=None),
        lambda document: document["policy"]["gpu"].update(required=False),
        lambda document: document["evidence"]["claims"].update(nonce="02" * 32),
        lambda document: document["result"].update(expires_at=document["result"]["expires_at"] + 1),
        lambda document: document["result"]["checks"].pop("nonce"),
        lambda document: document["result"]["results"].pop(),
        lambda document: document["result"]["ear"]["submods"]["gpu"].update(ear_status="warning"),
        lambda document: document["result"]["ear"].update(ear_status="affirming"),
        lambda document: document["result"].update(development_root=False),
        lambda document: document["result"].update(cautions=[]),
        lambda document: document["result"].update(more="x"),
        lambda document: document.update(nonce_unused=False),
        lambda document: document.update(nonce_unused=None),
        lambda document: document.update(fresh=True),
        lambda document: document["result"].update(fresh=True),
        lambda document: document.update(result={}),
        lambda document: document["result"].update(recipient="age1" + "z" * 58),
    ],
)
def test_an_edited_record_is_not_loaded(
    world: World, edit: Callable[[dict[str, Any]], object]
) -> None:
    with pytest.raises(VerificationError) as refused:
        load_record(edited(save_record(record(world)), edit))
    assert refused.value.code is ErrorCode.VERIFICATION_FAILED


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"{}", "version"),
        (b'{"version": 2}', "version"),
        (b'{"version": 1, "version": 1}', "twice"),
        (b" " * (MAX_RECORD_BYTES + 1), "too large"),
    ],
)
def test_what_is_no_record_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(VerificationError, match=words) as refused:
        load_record(data)
    assert refused.value.code is ErrorCode.EVIDENCE_INVALID


def test_a_field_of_the_wrong_form_is_named_but_not_quoted(world: World) -> None:
    data = edited(save_record(record(world)), lambda document: document.update(nonce="secret"))
    with pytest.raises(VerificationError) as refused:
        load_record(data)
    assert "nonce" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_binary_collateral_cannot_be_saved(world: World) -> None:
    with pytest.raises(VerificationError, match="collateral"):
        save_record(record(world.change(collateral=b"\xff\xfe")))


def of_an_earlier_build(document: dict[str, Any]) -> None:
    """Changes a record into one that an earlier build wrote: a check fewer and one since dropped, other words."""
    result = document["result"]
    result["ear"]["ear_verifier_id"]["build"] = "trainer 0.0.1"
    del result["checks"]["nonce"]
    result["checks"]["of-old"] = "affirmed"
    result["results"] = [each | {"title": "in other words"} for each in result["results"]]


def test_an_earlier_build_may_have_known_other_checks_and_words(world: World) -> None:
    data = edited(save_record(record(world)), of_an_earlier_build)
    assert load_record(data).result.status == "pass"


@pytest.mark.parametrize(
    "edit",
    [
        lambda result: result.update(status="fail"),
        lambda result: result["checks"].update({"quote-signature": "not-demanded"}),
        lambda result: result.update(checks=[]),
    ],
)
def test_an_earlier_build_cannot_have_come_to_another_verdict(
    world: World, edit: Callable[[dict[str, Any]], object]
) -> None:
    def both(document: dict[str, Any]) -> None:
        of_an_earlier_build(document)
        edit(document["result"])

    with pytest.raises(VerificationError, match="not what its evidence gives"):
        load_record(edited(save_record(record(world)), both))


def test_another_build_of_this_tool_that_comes_to_the_same_is_believed(world: World) -> None:
    data = edited(
        save_record(record(world)),
        lambda document: document["result"]["ear"]["ear_verifier_id"].update(
            build="trainer 99.0.0"
        ),
    )
    assert load_record(data) == record(world)


@pytest.mark.parametrize(
    ("unused", "state"), [(True, "affirmed"), (False, "contraindicated"), (None, "not-demanded")]
)
def test_what_was_known_of_the_nonce_stays_known(
    world: World, unused: bool | None, state: str
) -> None:
    after = load_record(save_record(record(world.change(nonce_unused=unused))))
    assert after.result.check("nonce-unused").state == state


def test_endorsements_come_back(world: World) -> None:
    before = Record(
        world.appraise(),
        evidence=world.evidence(),
        collateral=world.collateral,
        policy=world.policy,
        endorsements=GpuEndorsements(("<SoftwareIdentity/>",), (b"0",)),
    )
    assert load_record(save_record(before)).endorsements == before.endorsements


def test_records_and_evidence_are_told_apart(world: World) -> None:
    assert is_record(save_record(record(world)))
    assert not is_record(world.evidence().canonical())
    assert not any(map(is_record, (b"[]", b"{}", b'"evidence"')))
    for data in (
        b"",
        b"\xff",
        save_record(record(world)).replace(b'{"app', b'{"evidence":0,"app', 1),
    ):
        with pytest.raises(VerificationError):
            is_record(data)


def test_judged_again_with_its_nonce_at_the_recorded_time_it_passes_and_is_not_fresh(
    world: World,
) -> None:
    before = load_record(save_record(record(world)))
    again = reappraise(before, now=world.now, nonce=world.nonce).result
    assert (again.status, again.fresh) == ("pass", False)
    assert again.check("nonce").state == "affirmed"


def test_the_nonce_of_a_record_is_not_believed(world: World) -> None:
    after = reappraise(record(world), now=world.now).result
    assert (after.status, after.nonce, after.check("nonce").state) == ("pass", None, "not-demanded")
    with pytest.raises(VerificationError, match="not fresh"):
        after.require_sealable(world.now)


def test_only_an_authentic_record_is_fresh(world: World) -> None:
    data = save_record(
        Record(world.appraise(fresh=True), world.evidence(), world.collateral, world.policy)
    )
    assert not load_record(data).result.fresh
    authentic = load_record(data, policy=world.policy, is_authentic=True)
    authentic.result.require_sealable(world.now)
    assert load_record(save_record(record(world)), is_authentic=True).result.fresh is False


def test_a_record_under_another_policy_than_the_one_named_is_not_loaded(world: World) -> None:
    other = world.demanding("app", compose_sha256=("00" * 32,)).policy
    with pytest.raises(VerificationError, match="another policy"):
        load_record(save_record(record(world)), policy=other, is_authentic=True)


def test_judged_later_it_is_stale(world: World) -> None:
    after = reappraise(record(world), now=world.now + 601)
    assert "freshness" in {check.code for check in after.result.failed}
    assert after.result.appraised_at == world.now + 601
    assert load_record(save_record(after)) == after


def test_judged_by_another_policy(world: World) -> None:
    other = world.demanding("app", compose_sha256=("00" * 32,)).policy
    after = reappraise(record(world), now=world.now, policy=other)
    assert [check.code for check in after.result.failed] == ["compose-accepted"]
    assert (after.policy, after.collateral) == (other, world.collateral)


def test_a_policy_that_brings_collateral_is_judged_with_it(world: World) -> None:
    other = world.with_collateral(status="OutOfDate")
    policy = world.policy.model_copy(
        update={"collateral": CollateralDocument(document=other.collateral.decode())}
    )
    after = reappraise(record(world), now=world.now, policy=policy)
    assert after.collateral == other.collateral
    assert [check.code for check in after.result.failed] == ["tcb-status"]


def test_judged_with_another_nonce(world: World) -> None:
    after = reappraise(record(world), now=world.now, nonce="02" * 32)
    assert [check.code for check in after.result.failed] == ["nonce"]
