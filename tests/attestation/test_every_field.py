"""By rule, one thing is changed in every field of every document that a provider judges; none of them is accepted.

`test_attacks.py` says which check answers an attack; here it counts that one does, for fields that nobody has
thought of as well. What is left out is named in `UNJUDGED` with its reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.attestation import attacks_image
from tests.attestation.field_changes import changes, inside_text
from trainer.attestation.evidence import parse_evidence, parse_statement_evidence
from trainer.attestation.result.attestation_result import AttestationResult
from trainer.attestation.result.record import Record, load_record, save_record
from trainer.attestation.verifier import appraise_statement_evidence
from trainer.errors import TrainerError
from trainer.receipt.dsse import public_key_der, sign_envelope, verify_envelope
from trainer.simulator.agent import VmOptions
from trainer.simulator.appraisal_world import World, honest_world
from trainer.simulator.gpu_evidence import GPU_BOOT
from trainer.simulator.quote import field_ranges

LEAST_CHANGES = 700

UNJUDGED: dict[str, str] = {
    r"event_log > [0-5](\.(imr|event_type|digest|event))?: .*": (
        "events of the firmware: only ACPI tables enter the registers that are recomputed (`attacks_image.py`)"
    ),
    r"event_log > [0-9]+\.digest: missing": "agents leave digests of runtime events out: they are computed",
    r"endorsements\.(reference_values|revocation): (one more|missing)": "nothing where the policy asks for none",
    r"policy\.os\.(development|image_sha256): missing": "the default is the same",
    r"result\.ear\.ear_verifier_id(\..*)?: .*": "another version of this tool may have written the record",
    r"vm_config > document: one more key": "dstack's releases have different ones",
    r"vm_config > image: .*": "a name that the host chooses; it must not be that of a development image",
}
"""Pattern of a change that an appraisal may accept → why."""

Changed = tuple[str, Any]


@dataclass(frozen=True)
class Suite:
    """The changes of one document.

    Attributes:
        honest: the document as it is accepted.
        changes: makes its changes.
        accepts: whether a document is accepted.
    """

    honest: Callable[[], Any]
    changes: Callable[[], Iterator[Changed]]
    accepts: Callable[[Any], bool]


def accepted(call: Callable[[], bool]) -> bool:
    """The verdict, where a document that is refused altogether is refused as well."""
    try:
        return call()
    except TrainerError:
        return False


# evidence, and the quote in it


@cache
def usual() -> World:
    return honest_world()


@cache
def by_image() -> World:
    """The usual world with an OS that is recomputed from its image, so that vm_config counts."""
    return attacks_image.prepared(honest_world())


@cache
def of_version_5() -> World:
    return honest_world(VmOptions(gpu_attestation=GPU_BOOT, quote_version=5, td_report="1.5"))


def evidence_of(world: World) -> Any:
    return json.loads(world.evidence().canonical())


def accepts_evidence(world: World, document: object) -> bool:
    def passes() -> bool:
        shown = parse_evidence(json.dumps(document).encode())
        return world.change(evidence_changes=dict(shown)).appraise().status == "pass"

    return accepted(passes)


def evidence_changes() -> Iterator[Changed]:
    document = evidence_of(by_image())
    yield from changes(document)
    for key in ("event_log", "vm_config"):
        yield from inside_text(document, key)


def quote_changes(world: World) -> Iterator[Changed]:
    """The first and the last byte of every field of a quote."""
    document = evidence_of(world)
    quote = bytes.fromhex(document["quote"])
    for name, place in field_ranges(quote).items():
        for at in sorted({place[0], place[-1]}):
            changed = quote[:at] + bytes([quote[at] ^ 1]) + quote[at + 1 :]
            yield f"{name} at {at}", document | {"quote": changed.hex()}


# collateral


def collateral_changes() -> Iterator[Changed]:
    document = json.loads(usual().collateral)
    yield from changes(document)
    for key in ("tcb_info", "qe_identity"):
        yield from inside_text(document, key)
    for key, text in document.items():
        for part in range(1, 4):
            at = part * len(text) // 4
            other = "1" if text[at] == "0" else "0"
            yield f"{key} at {at}", document | {key: text[:at] + other + text[at + 1 :]}


def accepts_collateral(document: object) -> bool:
    return usual().change(collateral=json.dumps(document).encode()).appraise().status == "pass"


# receipt


@cache
def sealed_on() -> AttestationResult:
    return usual().appraise()


def accepts_receipt(document: object) -> bool:
    world = usual()

    def passes() -> bool:
        checks = appraise_statement_evidence(
            parse_statement_evidence(json.dumps(document).encode()),
            purpose="receipt",
            statement=world.statement,
            earlier=sealed_on(),
            collateral=world.collateral,
            policy=world.policy,
            now=world.now,
        )
        return all(check.acceptable for check in checks)

    return accepted(passes)


RECEIPT_KEY = ec.derive_private_key(12345, ec.SECP256R1())


def envelope() -> Any:
    return json.loads(sign_envelope(b'{"_type": "x"}', RECEIPT_KEY))


def accepts_envelope(document: object) -> bool:
    key = public_key_der(RECEIPT_KEY.public_key())
    return accepted(lambda: bool(verify_envelope(json.dumps(document).encode(), key)))


# record


@cache
def record_document() -> Any:
    world = usual().without_reports()  # records are judged under NVIDIA's own root
    return json.loads(
        save_record(Record(world.appraise(), world.evidence(), world.collateral, world.policy))
    )


def record_changes() -> Iterator[Changed]:
    """Changes of a record's own fields and of its policy; evidence and collateral have suites of their own."""
    document = record_document()
    inner = {key: document[key] for key in ("evidence", "collateral")}
    for name, changed in changes({key: document[key] for key in document.keys() - inner.keys()}):
        # One entry of `results` and `submods` stands for all.
        if isinstance(changed, dict) and not re.match(
            r"result\.(results\.[1-9]|ear\.submods\.[^t]|checks\.[^a])", name
        ):
            yield name, inner | changed


def accepts_record(document: object) -> bool:
    return accepted(lambda: load_record(json.dumps(document).encode()).result.status == "pass")


SUITES: dict[str, Suite] = {
    "evidence": Suite(
        lambda: evidence_of(by_image()),
        evidence_changes,
        lambda changed: accepts_evidence(by_image(), changed),
    ),
    "quote of version 4": Suite(
        lambda: evidence_of(usual()),
        lambda: quote_changes(usual()),
        lambda changed: accepts_evidence(usual(), changed),
    ),
    "quote of version 5": Suite(
        lambda: evidence_of(of_version_5()),
        lambda: quote_changes(of_version_5()),
        lambda changed: accepts_evidence(of_version_5(), changed),
    ),
    "collateral": Suite(
        lambda: json.loads(usual().collateral), collateral_changes, accepts_collateral
    ),
    "evidence of a receipt": Suite(
        lambda: json.loads(usual().receipt_evidence().canonical()),
        lambda: changes(json.loads(usual().receipt_evidence().canonical())),
        accepts_receipt,
    ),
    "envelope of a receipt": Suite(envelope, lambda: changes(envelope()), accepts_envelope),
    "record": Suite(record_document, record_changes, accepts_record),
}


@cache
def judged_changes(suite: str) -> tuple[Changed, ...]:
    made = SUITES[suite].changes()
    return tuple(
        change for change in made if not any(re.fullmatch(each, change[0]) for each in UNJUDGED)
    )


@pytest.mark.parametrize("suite", SUITES)
def test_no_field_can_be_changed(suite: str) -> None:
    accepts = SUITES[suite].accepts
    assert accepts(SUITES[suite].honest())
    assert [name for name, changed in judged_changes(suite) if accepts(changed)] == []


def test_there_are_as_many_as_there_should_be() -> None:
    assert sum(len(judged_changes(suite)) for suite in SUITES) >= LEAST_CHANGES
