"""The page for people: it stands alone, says pass or fail, and nothing in evidence becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from trainer.attestation.catalogue import DATASET_CHECKS
from trainer.attestation.nvidia.gpu_report_checks import RELAY_LIMIT
from trainer.attestation.result.record import Record
from trainer.attestation.result.report_page import render_page

World = Any  # conftest.World
HOSTILE = "<script>alert(1)</script>\"'&\u202egnp\x1b[2J"
VOID = {"meta", "br"}


def page(world: World) -> str:
    return render_page(record(world))


def record(world: World) -> Record:
    return Record(
        world.appraise(),
        evidence=world.evidence(),
        collateral=world.collateral,
        policy=world.policy,
    )


class Reader(HTMLParser):
    """Collects elements, attributes and text, and demands that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.style = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            self.style += data
        else:
            self.text += data


def test_the_page_loads_nothing_from_anywhere(world: World) -> None:
    text = page(world)
    read = Reader(text)
    assert not {"script", "link", "img", "iframe", "object", "base", "form", "a"} & set(read.tags)
    assert not {"src", "href", "style", "onload", "onclick"} & {name for name, _ in read.attributes}
    assert not re.search(r"https?:|url\(|@import", text)
    policy = next(
        value
        for name, value in read.attributes
        if name == "content" and "default-src" in str(value)
    )
    digest = base64.b64encode(hashlib.sha256(read.style.encode()).digest()).decode()
    assert (
        policy
        == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def test_a_pass_at_one_glance(world: World) -> None:
    world = world.without_reports()
    result = world.appraise()
    read = Reader(page(world))
    assert ("Pass" in read.text) == (result.status == "pass")
    assert "What failed" not in read.text
    assert result.td is not None
    values = (
        world.policy.sha256(),
        result.recipient,
        result.compose_sha256,
        *(r.hex() for r in result.td.registers),
    )
    assert all(value in read.text for value in (*values, "UpToDate", world.nonce))
    for definition in DATASET_CHECKS:
        assert definition.code in read.text
        assert definition.title in read.text


def test_a_pass_under_a_development_root_is_never_green(world: World) -> None:
    text = page(world)
    read = Reader(text)
    assert ("class", "development") in read.attributes
    assert (
        ".development { --affirmed: var(--not-reached); --affirmed-back: var(--not-reached-back); }"
        in text
    )
    assert "DEVELOPMENT ROOT" in read.text
    assert "Pass under a development root" in read.text
    assert "imitate a TEE" in read.text
    genuine = Reader(page(world.opened("trust_root", "intel")))
    assert ("class", "development") not in genuine.attributes
    assert "DEVELOPMENT ROOT" not in genuine.text


def test_a_failure_is_told_with_what_was_expected_and_found(world: World) -> None:
    read = Reader(page(world.change(nonce="02" * 32)))
    assert "Fail" in read.text
    failed = read.text[read.text.index("What failed") :]
    for words in (
        "✘ nonce: the claims carry",
        "02" * 32,
        world.nonce,
        "guards against",
        "replay",
        "hint",
    ):
        assert words in failed
    assert "contraindicated" in failed


def test_states_are_told_by_symbol_and_word(world: World) -> None:
    text = Reader(page(world.change(quote=b"\4\0"))).text
    assert re.search(r"✔\s*affirmed", text)
    assert re.search(r"✘\s*contraindicated", text)
    assert re.search(r"\?\s*not reached", text)
    assert re.search("\N{EN DASH}" + r"\s*not demanded", text)


def test_nothing_in_evidence_becomes_markup(world: World) -> None:
    """The key provider's name is free text of the operator's; it is shown whether it is genuine or not."""
    events = json.loads(world.evidence().event_log)
    for event in events:
        if event["event"] == "key-provider":
            event["event_payload"] = json.dumps({"name": HOSTILE, "id": ""}).encode().hex()
    text = page(world.showing(event_log=json.dumps(events)))
    assert "script" not in Reader(text).tags
    assert "<script" not in text
    assert "<script>alert(1)</script>\"'&\\u202egnp\\u001b[2J" in Reader(text).text


@pytest.mark.parametrize("field", ["expected", "found", "detail"])
def test_a_hostile_text_in_a_check_is_shown_as_text(world: World, field: str) -> None:
    before = record(world.change(nonce="02" * 32))
    checks = list(before.result.checks)
    for index in (3, 36):  # one that is affirmed, and the one that failed
        object.__setattr__(checks[index], field, HOSTILE)
    text = render_page(before)
    read = Reader(text)
    assert "script" not in read.tags
    assert "<script" not in text
    assert "alert(1)</script>\"'&\\u202egnp\\u001b[2J" in read.text
    assert "\u202e" not in text
    assert "\x1b" not in text


def test_the_limits_are_told(world: World) -> None:
    assert RELAY_LIMIT in Reader(page(world)).text
    assert "memor" not in RELAY_LIMIT
    for words in ("side channels", "the weights themselves remember", "whether the code is good"):
        assert words in Reader(page(world)).text


def test_relay_is_no_matter_where_there_is_no_gpu(make_world: Any) -> None:
    from trainer.simulator.agent import VmOptions

    world = make_world(VmOptions()).demanding("gpu", required=False)
    assert RELAY_LIMIT not in Reader(page(world)).text


def test_a_long_value_is_folded_but_whole(world: World) -> None:
    long = "age1pq1" + "q" * 1900
    recipients = world.claims.recipients.model_copy(update={"instance": long})
    read = Reader(page(world.claiming(recipients=recipients)))
    assert "details" in read.tags
    assert long in read.text
