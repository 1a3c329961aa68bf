"""Checks 23 to 35: which OS booted, and what it says it started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trainer.attestation.checks import CheckCode, Ledger
from trainer.attestation.dstack.compose import compose_hash
from trainer.attestation.dstack.event_log import (
    Event,
    digest_problem,
    key_provider,
    order_problem,
    parse_event_log,
    payload,
    replay,
)
from trainer.attestation.dstack.key_chain import proves_possession, recover_key_chain
from trainer.attestation.dstack.os_image import image_name, is_development, recompute
from trainer.attestation.evidence import DatasetClaims, DerivedKey, Evidence
from trainer.attestation.policy import OsMeasurements, Policy
from trainer.attestation.tdx.config_id import FORMS, acceptable_config_ids
from trainer.attestation.tdx.td_report import TdReport
from trainer.errors import VerificationError

_EVENT_CODES: Final = (
    CheckCode.EVENT_DIGESTS,
    CheckCode.EVENT_ORDER,
    CheckCode.RTMR3_REPLAY,
    CheckCode.COMPOSE_HASH,
    CheckCode.APP_ID,
    CheckCode.KEY_PROVIDER,
    CheckCode.KEY_CHAIN,
    CheckCode.KEY_POSSESSION,
)


def judge_app(
    ledger: Ledger, evidence: Evidence, claims: DatasetClaims, td: TdReport | None, policy: Policy
) -> tuple[Event, ...] | None:
    """Record checks 23 to 35 and hand on the event log; None where it could not be read.

    Args:
        ledger: where to.
        evidence: event log, compose text and key chain.
        claims: what the job says of itself.
        td: the TD report; None where the quote could not be read.
        policy: the reference values.
    """
    events = _judge_log(ledger, evidence.event_log)
    _judge_os(ledger, evidence.vm_config, events or (), td, policy)
    _judge_development(ledger, evidence.vm_config, policy)
    found = compose_hash(evidence.app_compose)
    # check 30 compose-accepted
    ledger.judge(
        CheckCode.COMPOSE_ACCEPTED,
        found in policy.app.compose_sha256,
        expected=" or ".join(policy.app.compose_sha256),
        found=found,
    )
    _judge_config_id(ledger, td, events, found)
    if events is None:
        ledger.unreached(_EVENT_CODES, "there is no event log to look at")
        return None
    _judge_events(ledger, events, td)
    _judge_compose(ledger, evidence, events, found)
    _judge_app_id(ledger, events, policy)
    _judge_key_provider(ledger, events, policy)
    if _judge_key_chain(ledger, evidence.key_chain, events, policy):
        _judge_possession(ledger, evidence.key_chain, claims, policy)
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


def _judge_development(ledger: Ledger, vm_config: str, policy: Policy) -> None:
    # check 24 os-development
    name = image_name(vm_config)
    word = "the name is the host's word; the accepted measurements are what binds"
    if policy.os == "any" or policy.os.development == "any":
        ledger.leave_open(CheckCode.OS_DEVELOPMENT, found=name or "no image name", detail=word)
        return
    wanted = "a production image"
    ledger.judge(
        CheckCode.OS_DEVELOPMENT,
        name is not None and not is_development(name),
        expected=wanted,
        found=name or "no image name",
        detail=word,
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


def _judge_config_id(
    ledger: Ledger, td: TdReport | None, events: Sequence[Event] | None, compose_sha256: str
) -> None:
    # check 32 mr-config-id
    if td is None:
        return
    found, form = td.mr_config_id, td.mr_config_id[0]
    acceptable = acceptable_config_ids(form, bytes.fromhex(compose_sha256), events or ())
    ledger.judge(
        CheckCode.MR_CONFIG_ID,
        found in acceptable,
        expected=min(acceptable).hex() if len(acceptable) == 1 else f"a value of form {form:02} for this app",
        found=found,
        detail=f"form {form:02}: {FORMS.get(form, 'unknown')}",
    )


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
) -> bool:
    """Record key-chain; whether the chain may be built upon."""
    # check 34 key-chain
    root = policy.app.kms_root_key
    if root == "any":
        ledger.leave_open(CheckCode.KEY_CHAIN)
        return True
    app_id = payload(events, "app-id") or b""
    try:
        signers = [recover_key_chain(chain, app_id) for chain in chains]
    except ValueError as error:
        return ledger.judge(CheckCode.KEY_CHAIN, False, expected=root, found=str(error))
    roots = sorted({signer.root_key for signer in signers})
    one_app = len({signer.app_key for signer in signers}) == 1
    found = ", ".join(roots) or "no key chain"
    return ledger.judge(CheckCode.KEY_CHAIN, one_app and roots == [root], expected=root, found=found)


def _judge_possession(ledger: Ledger, chains: Sequence[DerivedKey], claims: DatasetClaims, policy: Policy) -> None:
    # check 35 key-possession
    proofs = [derived for derived in chains if derived.possession is not None]
    if policy.app.kms_root_key == "any":
        ledger.leave_open(CheckCode.KEY_POSSESSION, found=f"{len(proofs)} signatures")
        return
    good = [derived for derived in proofs if proves_possession(derived, claims)]
    wanted = "recipients that a key of the chain signed"
    found = f"{len(good)} of {len(proofs)} signatures hold"
    ledger.judge(CheckCode.KEY_POSSESSION, len(good) == len(proofs) > 0, expected=wanted, found=found)
