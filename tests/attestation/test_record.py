"""The result file: loading appraises again, and nothing written into the file changes the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from trainer.attestation.record import (
    MAX_RECORD_BYTES,
    Record,
    load_record,
    make_record,
    result_document,
    save_record,
)
from trainer.errors import ErrorCode, VerificationError

World = Any  # conftest.World


@pytest.fixture
def world(world: World) -> World:
    """Records are judged under NVIDIA's own root, so the test's GPU stays out of them."""
    return world.without_reports()


def record(world: World) -> Record:
    return make_record(
        world.appraise(), evidence=world.evidence(), collateral=world.collateral, policy=world.policy
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
    document["result"]["status"] = "pass"
    for check in document["result"]["checks"]:
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
        lambda document: document["result"]["checks"].pop(),
        lambda document: document["result"].update(recipient="age1" + "z" * 58),
    ],
)
def test_an_edited_record_is_not_loaded(world: World, edit: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(VerificationError) as refused:
        load_record(edited(save_record(record(world)), edit))
    assert refused.value.code is ErrorCode.VERIFICATION_FAILED


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"{}", "version"),
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
