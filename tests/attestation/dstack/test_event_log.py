"""Event logs: both digest forms, forms that are refused, and the order of system events."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.attestation.dstack.event_log import (
    MAX_EVENTS,
    RUNTIME_EVENT_TYPE,
    Event,
    digest_problem,
    key_provider,
    order_problem,
    parse_event_log,
    payload,
    replay,
)
from trainer.errors import ErrorCode, VerificationError
from trainer.simulator.event_log_writer import RuntimeEvent
from trainer.simulator.event_log_writer import replay as simulated_replay

GOOD_ORDER = (
    "system-preparing",
    "app-id",
    "compose-hash",
    "instance-id",
    "boot-mr-done",
    "key-provider",
    "system-ready",
)

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
payloads = st.binary(max_size=80)
versions = st.sampled_from([1, 2])


def runtime(name: str, data: bytes = b"", version: int = 1) -> Event:
    return Event(3, RUNTIME_EVENT_TYPE, name, data, version)


def entry(**changes: object) -> dict[str, object]:
    return {
        "imr": 3,
        "event_type": RUNTIME_EVENT_TYPE,
        "digest": "",
        "event": "app-id",
        "event_payload": "00",
    } | changes


def test_version_1_digests_by_the_book() -> None:
    digest = hashlib.sha384(b"\x01\x00\x00\x08:app-id:\xde\xad").digest()
    assert runtime("app-id", b"\xde\xad").digest == digest


def test_version_2_digests_by_the_book() -> None:
    text = b'{"name":"compose-hash","payload":"abcd","type":134217729}'
    assert runtime("compose-hash", b"\xab\xcd", 2).digest == hashlib.sha384(text).digest()


@pytest.mark.parametrize(
    ("version", "register"),
    [
        (
            1,
            "16a708da1a103090cae223559f0fecdba82e123b33524a4853a05dcc9a5cf524b0f5e5f14ee48e99049329c31b791201",
        ),
        (
            2,
            "8a5faa26c2284e19989633ec527c8233a311492f9c93ba2e4102820dc5f66ceef4c30dbe3980a91843607a947683d0ca",
        ),
    ],
)
def test_registers_of_the_examples_in_the_specification(version: int, register: str) -> None:
    assert replay([runtime("app-id", b"\xde\xad", version)]).hex() == register


@given(st.lists(st.tuples(names, payloads, versions), max_size=6), st.booleans())
def test_any_log_replays_as_it_was_measured(
    entries: list[tuple[str, bytes, int]], shown: bool
) -> None:
    measured = [
        RuntimeEvent(name, data, 1 if version == 1 else 2) for name, data, version in entries
    ]
    text = json.dumps([event.entry(with_digest=shown) for event in measured])
    events = parse_event_log(text)
    assert replay(events) == simulated_replay(event.digest for event in measured)
    assert digest_problem(events) is None


@given(st.lists(st.tuples(names, payloads), min_size=1, max_size=5), st.data())
def test_any_change_to_a_payload_changes_the_register(
    entries: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    events = [runtime(name, content) for name, content in entries]
    index = data.draw(st.integers(0, len(events) - 1))
    changed = [*events]
    changed[index] = runtime(events[index].name, events[index].payload + b"\0")
    assert replay(changed) != replay(events)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("{}", "document"),
        ('[{"imr": 3, "imr": 2}]', "twice"),
        (json.dumps([entry(imr=4)]), "0.imr"),
        (json.dumps([entry(imr="3")]), "0.imr"),
        (json.dumps([entry(imr=2)]), "register 2"),
        (json.dumps([entry(event_type=1)]), "register 3"),
        (json.dumps([entry(digest="00")]), "0.digest"),
        (json.dumps([entry(event_payload="0")]), "0.event_payload"),
        (json.dumps([entry(event_payload="GG")]), "0.event_payload"),
        (json.dumps([entry(version=3)]), "0.version"),
        (json.dumps([entry(more=1)]), "0.more"),
        (json.dumps([entry()] * (MAX_EVENTS + 1)), "document"),
    ],
)
def test_what_is_no_event_log_is_refused(text: str, words: str) -> None:
    with pytest.raises(VerificationError, match=words) as refused:
        parse_event_log(text)
    assert refused.value.code is ErrorCode.EVIDENCE_INVALID


def test_firmware_events_keep_the_digest_that_they_state() -> None:
    (event,) = parse_event_log(
        json.dumps([entry(imr=0, event_type=10, digest="11" * 48, event="acpi-rsdp")])
    )
    assert event.digest == b"\x11" * 48
    assert digest_problem([event]) is None
    assert payload([event], "acpi-rsdp") is None


def test_the_usual_order_is_right() -> None:
    assert order_problem([runtime(name) for name in (*GOOD_ORDER, "mine", "mine")]) is None


def test_unknown_events_of_the_os_do_not_disturb() -> None:
    assert (
        order_problem(
            [runtime(name) for name in ("early", *GOOD_ORDER[:3], "later-release", *GOOD_ORDER[3:])]
        )
        is None
    )


def test_there_may_be_several_init_scripts() -> None:
    scripts = ("init-script-hash", "init-script-hash")
    assert (
        order_problem([runtime(name) for name in (*GOOD_ORDER[:3], *scripts, *GOOD_ORDER[3:])])
        is None
    )


@pytest.mark.parametrize(
    "name", ["app-id", "compose-hash", "instance-id", "key-provider", "system-ready"]
)
def test_system_events_stand_once(name: str) -> None:
    assert f"{name} occurs 2 times" == order_problem(
        [runtime(each) for each in (*GOOD_ORDER, name)]
    )


@pytest.mark.parametrize(
    "name", ["gpu-attestation", "os-image-hash", "storage-fs", "init-script-hash"]
)
def test_no_system_event_follows_system_ready(name: str) -> None:
    assert (
        order_problem([runtime(each) for each in (*GOOD_ORDER, name)])
        == f"{name} after system-ready"
    )


def test_an_empty_log_lacks_everything() -> None:
    assert order_problem([]) == "no system-preparing event"


def test_order_is_demanded_before_system_ready() -> None:
    swapped = ("system-preparing", "compose-hash", "app-id", *GOOD_ORDER[3:])
    assert order_problem([runtime(name) for name in swapped]) == "app-id after compose-hash"


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"name": "kms"}', b'{"name": "a", "name": "b", "id": ""}', b"\xff"]
)
def test_a_key_provider_of_another_form_is_none(data: bytes) -> None:
    assert key_provider([runtime("key-provider", data)]) is None
    assert key_provider([]) is None
