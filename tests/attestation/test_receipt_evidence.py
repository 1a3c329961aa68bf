"""Evidence beside a receipt: the same VM, the same job, this statement; one change, one code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trainer.attestation.catalogue import RECEIPT_CHECKS
from trainer.attestation.checks import CheckState
from trainer.attestation.tdx.quote_checks import QUOTE_CHECKS
from trainer.errors import ErrorCode, VerificationError

World = Any  # conftest.World


def receipt(world: World, **changes: object) -> World:
    return world.change(receipt=world.receipt.model_copy(update=changes))


TAMPERINGS: dict[str, tuple[str, Callable[[World], World]]] = {
    "another statement": ("statement-digest", lambda w: w.change(statement=w.statement + b" ")),
    "another job": ("same-job", lambda w: receipt(w, job_spec_sha256="cd" * 32)),
    "another MRTD": ("same-vm", lambda w: w.change(td={"mrtd": bytes(48)})),
    "another RTMR3": ("same-vm", lambda w: w.change(td={"rtmr3": bytes(48)})),
    "another compose text": ("compose-hash", lambda w: w.showing(app_compose="{}")),
    "claims changed after the quote": (
        "report-data",
        lambda w: w.showing(claims=w.receipt.model_copy(update={"issued_at": w.receipt.issued_at + 1})),
    ),
    "an earlier receipt": ("claims-validity", lambda w: receipt(w, issued_at=w.claims.issued_at - 1)),
    "a debuggable TD": ("td-debug", lambda w: w.change(td={"td_attributes": b"\1\0\0\x10\0\0\0\0"})),
    "a foreign root": ("root-of-trust", lambda w: w.opened("trust_root", "intel")),
    "an out-of-date platform": ("tcb-status", lambda w: w.with_collateral(status="OutOfDate")),
}


def contraindicated(world: World, earlier: Any) -> list[str]:
    checks = world.appraise_receipt(earlier)
    assert [check.number for check in checks] == list(range(1, len(RECEIPT_CHECKS) + 1))
    return [check.code for check in checks if check.state is CheckState.CONTRAINDICATED]


def test_an_honest_receipt_is_affirmed_in_everything(world: World) -> None:
    checks = world.appraise_receipt(world.appraise())
    assert {check.state for check in checks} == {CheckState.AFFIRMED}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_one_change_is_answered_by_its_own_code(world: World, name: str) -> None:
    code, change = TAMPERINGS[name]
    assert contraindicated(change(world), world.appraise()) == [code]


def test_every_check_of_its_own_has_a_tampering() -> None:
    own = {definition.code for definition in set(RECEIPT_CHECKS) - set(QUOTE_CHECKS)} - {"earlier-result"}
    assert own <= {code for code, _ in TAMPERINGS.values()}


def test_a_failed_result_carries_no_receipt(world: World) -> None:
    earlier = world.change(nonce="02" * 32).appraise()
    assert contraindicated(world, earlier) == ["earlier-result"]


def test_without_quotes_nothing_can_be_compared(world: World) -> None:
    earlier = world.appraise()
    states = {check.code: check.state for check in world.change(quote=b"?").appraise_receipt(earlier)}
    assert states["quote-format"] is CheckState.CONTRAINDICATED
    assert {states[code] for code in ("same-vm", "compose-hash", "report-data")} == {CheckState.NOT_REACHED}
    unread = world.change(quote=b"?").appraise()
    assert contraindicated(world, unread) == ["earlier-result"]
    states = {check.code: check.state for check in world.appraise_receipt(unread)}
    assert states["same-vm"] is CheckState.NOT_REACHED


def test_dataset_evidence_is_no_receipt(world: World) -> None:
    earlier = world.appraise()
    with pytest.raises(VerificationError) as refused:
        world.showing(claims=world.claims).appraise_receipt(earlier)
    assert (refused.value.code, refused.value.found) == (ErrorCode.EVIDENCE_INVALID, "dataset")
