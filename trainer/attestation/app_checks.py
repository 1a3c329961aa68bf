"""Checks 23 to 35: which OS booted, and what it says it started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trainer.attestation.checks import CheckCode, Ledger
from trainer.attestation.compose import compose_hash
from trainer.attestation.event_log import (
    REGISTER_BYTES,
    Event,
    digest_problem,
    key_provider,
    order_problem,
    parse_event_log,
    payload,
    replay,
)
from trainer.attestation.evidence import DerivedKey, Evidence
from trainer.attestation.key_chain import recover_key_chain
from trainer.attestation.os_image import recompute
from trainer.attestation.policy import OsMeasurements, Policy
from trainer.attestation.td_report import TdReport
from trainer.errors import VerificationError

_EVENT_CODES: Final = (
    CheckCode.EVENT_DIGESTS,
    CheckCode.EVENT_ORDER,
    CheckCode.RTMR3_REPLAY,
    CheckCode.COMPOSE_HASH,
    CheckCode.APP_ID,
    CheckCode.KEY_PROVIDER,
    CheckCode.KEY_CHAIN,
)

_CONFIG_FORMS: Final = {2: "02: compose hash, app id and key provider", 3: "03: a configuration document"}
"""Forms of MRCONFIGID that bind more than the compose hash; the measured OS checks them when it boots."""


def judge_app(ledger: Ledger, evidence: Evidence, td: TdReport | None, policy: Policy) -> tuple[Event, ...] | None:
    """Record checks 23 to 35 and hand on the event log; None where it could not be read.

    Args:
        ledger: where to.
        evidence: event log, compose text and key chain.
        td: the TD report; None where the quote could not be read.
        policy: the reference values.
    """
    events = _judge_log(ledger, evidence.event_log)
    _judge_os(ledger, evidence.vm_config, events or (), td, policy)
    found = compose_hash(evidence.app_compose)
    # check 30 compose-accepted
    ledger.judge(
        CheckCode.COMPOSE_ACCEPTED,
        found in policy.app.compose_sha256,
        expected=" or ".join(policy.app.compose_sha256),
        found=found,
    )
    if td is not None:
        _judge_config_id(ledger, td.mr_config_id, found)
    if events is None:
        ledger.unreached(_EVENT_CODES, "there is no event log to look at")
        return None
    _judge_events(ledger, events, td)
    _judge_compose(ledger, evidence, events, found)
    _judge_app_id(ledger, events, policy)
    _judge_key_provider(ledger, events, policy)
    _judge_key_chain(ledger, evidence.key_chain, events, policy)
    return events


def _judge_log(ledger: Ledger, text: str) -> tuple[Event, ...] | None:
    try:
        events = parse_event_log(text)
    except VerificationError as error:
        # check 25 event-log-format
        ledger.judge(CheckCode.EVENT_LOG_FORMAT, False, expected="an event log", found=error.message)
        return None
    ledger.judge(CheckCode.EVENT_LOG_FORMAT, True, expected="an event log", found=f"{len(events)} events")
    return events


def _judge_os(
    ledger: Ledger, vm_config: str, events: Sequence[Event], td: TdReport | None, policy: Policy
) -> None:
    ledger.leave_open(CheckCode.OS_DEVELOPMENT)
    # check 23 os-measurements
    if td is None:
        return
    found = OsMeasurements(mrtd=td.mrtd.hex(), rtmr0=td.rtmr0.hex(), rtmr1=td.rtmr1.hex(), rtmr2=td.rtmr2.hex())
    if policy.os == "any":
        ledger.leave_open(CheckCode.OS_MEASUREMENTS, found=_os_text(found))
        return
    listed = found in policy.os.measurements
    images = policy.os.image_sha256
    problem = _image_problem(vm_config, events, found, images) if images and not listed else None
    ledger.judge(
        CheckCode.OS_MEASUREMENTS,
        listed or (bool(images) and problem is None),
        expected=f"one of {len(policy.os.measurements)} listed measurements or {len(images)} listed images",
        found=_os_text(found),
        detail=problem,
    )


def _os_text(found: OsMeasurements) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.model_dump().items())


def _image_problem(
    vm_config: str, events: Sequence[Event], found: OsMeasurements, accepted: Sequence[str]
) -> str | None:
    """Why the registers are not those of an accepted image, or None if they are."""
    try:
        recomputed = recompute(vm_config, events, accepted)
    except ValueError as error:
        return str(error)
    wrong = [name for name, value in recomputed if value != getattr(found, name)]
    return f"the image would measure to another {', '.join(wrong)}" if wrong else None


def _judge_config_id(ledger: Ledger, config_id: bytes, compose_sha256: str) -> None:
    # check 32 mr-config-id
    form = config_id[0]
    if form in _CONFIG_FORMS:
        ledger.leave_open(CheckCode.MR_CONFIG_ID, found=config_id, detail=f"form {_CONFIG_FORMS[form]}")
        return
    expected = bytes(REGISTER_BYTES)
    if form != 0:
        expected = (b"\x01" + bytes.fromhex(compose_sha256)).ljust(REGISTER_BYTES, b"\0")
    ledger.compare(CheckCode.MR_CONFIG_ID, expected=expected, found=config_id)


def _judge_events(ledger: Ledger, events: Sequence[Event], td: TdReport | None) -> None:
    # check 26 event-digests
    problem = digest_problem(events)
    ledger.judge(CheckCode.EVENT_DIGESTS, problem is None, expected="digests as recomputed", found=problem or "so")
    # check 27 event-order
    problem = order_problem(events)
    ledger.judge(CheckCode.EVENT_ORDER, problem is None, expected="system events in order", found=problem or "so")
    # check 28 rtmr3-replay
    if td is not None:
        ledger.compare(CheckCode.RTMR3_REPLAY, expected=td.rtmr3, found=replay(events))


def _judge_compose(ledger: Ledger, evidence: Evidence, events: Sequence[Event], found: str) -> None:
    # check 29 compose-hash
    measured = payload(events, "compose-hash") or b""
    stated = evidence.compose_hash.removeprefix("sha256:")
    ledger.judge(
        CheckCode.COMPOSE_HASH,
        measured.hex() == found == stated,
        expected=f"{measured.hex() or 'no compose-hash event'}, as measured",
        found=f"{found} of the text, stated as {stated}",
    )


def _judge_app_id(ledger: Ledger, events: Sequence[Event], policy: Policy) -> None:
    # check 31 app-id
    found = (payload(events, "app-id") or b"").hex()
    if policy.app.app_id == "any":
        ledger.leave_open(CheckCode.APP_ID, found=found)
    else:
        ledger.compare(CheckCode.APP_ID, expected=policy.app.app_id, found=found)


def _judge_key_provider(ledger: Ledger, events: Sequence[Event], policy: Policy) -> None:
    # check 33 key-provider
    provider = key_provider(events)
    found = "none readable" if provider is None else f"{provider.name} {provider.identity}"
    demand = policy.app.key_provider
    if demand == "any":
        ledger.leave_open(CheckCode.KEY_PROVIDER, found=found)
    else:
        ledger.compare(CheckCode.KEY_PROVIDER, expected=f"{demand.name} {demand.id}", found=found)


def _judge_key_chain(
    ledger: Ledger, chains: Sequence[DerivedKey], events: Sequence[Event], policy: Policy
) -> None:
    ledger.leave_open(CheckCode.KEY_POSSESSION)
    # check 34 key-chain
    root = policy.app.kms_root_key
    if root == "any":
        ledger.leave_open(CheckCode.KEY_CHAIN)
        return
    app_id = payload(events, "app-id") or b""
    try:
        signers = [recover_key_chain(chain, app_id) for chain in chains]
    except ValueError as error:
        ledger.judge(CheckCode.KEY_CHAIN, False, expected=root, found=str(error))
        return
    roots = sorted({signer.root_key for signer in signers})
    one_app = len({signer.app_key for signer in signers}) == 1
    found = ", ".join(roots) or "no key chain"
    ledger.judge(CheckCode.KEY_CHAIN, one_app and roots == [root], expected=root, found=found)
