"""Checks in words: grouped by who attests, explained, and harmless to a terminal."""

from __future__ import annotations

from typing import Any

from trainer.attestation.checks import Check, CheckState, Submodule
from trainer.attestation.result import presentation
from trainer.attestation.result.presentation import explanation, grouped, shortened, summary

World = Any  # conftest.World


def test_groups_hold_every_check_once_in_its_order(world: World) -> None:
    checks = world.appraise().checks
    groups = grouped(checks)
    assert [group.submodule for group in groups] == ["tdx", "os", "app", "job", "gpu"]
    assert sorted(check.number for group in groups for check in group.checks) == list(
        range(1, len(checks) + 1)
    )
    assert all(
        list(group.checks) == sorted(group.checks, key=lambda check: check.number)
        for group in groups
    )
    assert set(presentation.TITLES) == set(Submodule)


def test_what_only_a_receipt_has_stands_by_itself(world: World) -> None:
    checks = world.appraise_receipt(world.appraise())
    last = grouped(checks)[-1]
    assert (last.submodule, last.title) == (None, "Statement")
    assert {check.code for check in last.checks} == {
        "earlier-result",
        "same-vm",
        "same-job",
        "statement-digest",
        "statement-purpose",
    }


def test_a_failure_is_explained_in_full() -> None:
    check = Check(37, "nonce", "title", CheckState.CONTRAINDICATED, "01", "02\x1b[31m", "why")
    parts = dict(explanation(check))
    assert list(parts) == ["expected", "found", "because", "guards against", "hint"]
    assert parts["found"] == "02\\u001b[31m"
    assert dict(
        explanation(Check(1, "receipt-files", "t", CheckState.CONTRAINDICATED, "a", "b"))
    ) == {
        "expected": "a",
        "found": "b",
    }


def test_shortened_keeps_both_ends() -> None:
    assert shortened("abc", 3) == "abc"
    text = "0123456789" * 10
    short = shortened(text, 20)
    assert len(short) == 20
    assert short.startswith("0123456789")
    assert short.endswith("456789")


def test_summary() -> None:
    checks = [Check(1, "a", "", CheckState.AFFIRMED), Check(2, "b", "", CheckState.NOT_REACHED)]
    assert summary(checks) == "1 affirmed, 1 not reached"
