"""Evidence beside a receipt: the same VM, the same job, this statement; one change, one code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.attestation.tampering import ed25519_key, p384_key
from trainer.attestation.catalogue import STATEMENT_CHECKS
from trainer.attestation.checks import CheckState
from trainer.attestation.tdx.quote_checks import QUOTE_CHECKS

World = Any  # conftest.World


def receipt(world: World, **changes: object) -> World:
    return world.change(receipt=world.receipt.model_copy(update=changes))


def afterwards(world: World, name: str) -> World:
    """One claim changed after the quote, but for those that another check reads as well."""
    values = {
        "version": 2,
        "issued_at": world.receipt.issued_at + 1,
        "receipt_key": world.claims.tls_key,
    }
    return world.showing(claims=world.receipt.model_copy(update={name: values[name]}))


def flipped(world: World, at: int) -> World:
    quote = bytearray(bytes.fromhex(world.receipt_evidence().quote))
    quote[at] ^= 1
    return world.change(quote=bytes(quote))


TAMPERINGS: dict[str, tuple[str, Callable[[World], World]]] = {
    "another statement": ("statement-digest", lambda w: w.change(statement=w.statement + b" ")),
    "another job": ("same-job", lambda w: receipt(w, job_spec_sha256="cd" * 32)),
    "a statement of another kind": ("statement-purpose", lambda w: receipt(w, purpose="deletion")),
    "a key on another curve": ("receipt-key", lambda w: receipt(w, receipt_key=p384_key())),
    "a key of another kind": ("receipt-key", lambda w: receipt(w, receipt_key=ed25519_key())),
    "a key that is no key": ("receipt-key", lambda w: receipt(w, receipt_key="00" * 91)),
    "another MRTD": ("same-vm", lambda w: w.change(td={"mrtd": bytes(48)})),
    "another RTMR0": ("same-vm", lambda w: w.change(td={"rtmr0": bytes(48)})),
    "another RTMR1": ("same-vm", lambda w: w.change(td={"rtmr1": bytes(48)})),
    "another RTMR2": ("same-vm", lambda w: w.change(td={"rtmr2": bytes(48)})),
    "another RTMR3": ("same-vm", lambda w: w.change(td={"rtmr3": bytes(48)})),
    "another key that signed, after the quote": (
        "report-data",
        lambda w: afterwards(w, "receipt_key"),
    ),
    "another version, after the quote": ("report-data", lambda w: afterwards(w, "version")),
    "another time, after the quote": ("report-data", lambda w: afterwards(w, "issued_at")),
    "a bit of the quote's signature": ("quote-signature", lambda w: flipped(w, 636)),
    "an earlier receipt": (
        "claims-validity",
        lambda w: receipt(w, issued_at=w.claims.issued_at - 1),
    ),
    "a debuggable TD": (
        "td-debug",
        lambda w: w.change(td={"td_attributes": b"\1\0\0\x10\0\0\0\0"}),
    ),
    "a foreign root": ("root-of-trust", lambda w: w.opened("trust_root", "intel")),
    "another machine": ("platform-ppid", lambda w: w.demanding("platform", ppid=("00" * 16,))),
    "an out-of-date platform": ("tcb-status", lambda w: w.with_collateral(status="OutOfDate")),
}


def contraindicated(world: World, earlier: Any) -> list[str]:
    checks = world.appraise_receipt(earlier)
    assert [check.number for check in checks] == list(range(1, len(STATEMENT_CHECKS) + 1))
    return [check.code for check in checks if check.state is CheckState.CONTRAINDICATED]


def test_an_honest_receipt_is_affirmed_in_everything(world: World) -> None:
    checks = world.appraise_receipt(world.appraise())
    assert {check.state for check in checks} == {CheckState.AFFIRMED}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_one_change_is_answered_by_its_own_code(world: World, name: str) -> None:
    code, change = TAMPERINGS[name]
    assert contraindicated(change(world), world.appraise()) == [code]


def test_every_check_of_its_own_has_a_tampering() -> None:
    own = {definition.code for definition in set(STATEMENT_CHECKS) - set(QUOTE_CHECKS)} - {
        "earlier-result"
    }
    assert own <= {code for code, _ in TAMPERINGS.values()}


def test_a_failed_result_carries_no_receipt(world: World) -> None:
    earlier = world.change(nonce="02" * 32).appraise()
    assert contraindicated(world, earlier) == ["earlier-result"]


def test_without_quotes_nothing_can_be_compared(world: World) -> None:
    earlier = world.appraise()
    states = {
        check.code: check.state for check in world.change(quote=b"?").appraise_receipt(earlier)
    }
    assert states["quote-format"] is CheckState.CONTRAINDICATED
    assert {states[code] for code in ("same-vm", "report-data")} == {CheckState.NOT_REACHED}
    unread = world.change(quote=b"?").appraise()
    assert contraindicated(world, unread) == ["earlier-result"]
    states = {check.code: check.state for check in world.appraise_receipt(unread)}
    assert states["same-vm"] is CheckState.NOT_REACHED


def test_a_later_start_of_the_same_vm_signs_with_another_key(world: World) -> None:
    later = receipt(world, receipt_key=world.claims.tls_key)
    assert contraindicated(later, world.appraise()) == []


@pytest.mark.parametrize("purpose", ["receipt", "privacy"])
def test_receipts_and_privacy_statements_are_of_this_run_and_not_of_each_other(
    world: World, purpose: Any
) -> None:
    earlier, statement = world.appraise(), receipt(world, purpose=purpose)
    other: Any = {"receipt": "privacy", "privacy": "receipt"}[purpose]

    def wrong(world: World, wanted: Any) -> list[str]:
        checks = world.appraise_receipt(earlier, wanted)
        return [check.code for check in checks if check.state is not CheckState.AFFIRMED]

    assert wrong(statement, purpose) == []
    assert wrong(receipt(statement, issued_at=world.claims.issued_at - 1), purpose) == [
        "claims-validity"
    ]
    assert wrong(statement, other) == ["statement-purpose"]


def test_a_deletion_statement_is_judged_by_the_same_checks(world: World) -> None:
    earlier, deletion = world.appraise(), receipt(world, purpose="deletion")
    earliest = receipt(deletion, issued_at=world.claims.issued_at - 1)
    for each in (deletion, earliest):
        states = {check.code: check.state for check in each.appraise_receipt(earlier, "deletion")}
        assert states.pop("claims-validity") is CheckState.NOT_DEMANDED
        assert set(states.values()) == {CheckState.AFFIRMED}
    states = {check.code: check.state for check in world.appraise_receipt(earlier, "deletion")}
    assert states.pop("statement-purpose") is CheckState.CONTRAINDICATED
    assert states.pop("claims-validity") is CheckState.NOT_DEMANDED
    assert set(states.values()) == {CheckState.AFFIRMED}
