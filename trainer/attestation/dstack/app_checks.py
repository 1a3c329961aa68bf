"""Checks of the application: the event log, the compose text, and the keys that the VM obtained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trainer.attestation.checks import CheckDefinition, Ledger, Submodule, TrustClaim
from trainer.attestation.dstack.compose import compose_hash, parse_app_compose
from trainer.attestation.dstack.event_log import (
    Event,
    digest_problem,
    key_provider,
    order_problem,
    parse_event_log,
    payload,
    payloads,
    replay,
)
from trainer.attestation.dstack.key_chain import proves_possession, recover_signers
from trainer.attestation.dstack.key_source import NO_KEY_SERVICE, read_key_source
from trainer.attestation.dstack.os_checks import judge_os
from trainer.attestation.evidence import DatasetClaims, Evidence
from trainer.attestation.policy import Policy
from trainer.attestation.tdx.config_id import FORMS, acceptable_config_ids
from trainer.attestation.tdx.td_report import TdReport
from trainer.errors import VerificationError

EVENT_LOG_FORMAT: Final = CheckDefinition(
    "event-log-format",
    title="the event log is well-formed and runtime events extend RTMR3 only",
    attack="events that one reader counts and another does not",
    claim=(Submodule.OS, TrustClaim.EXECUTABLES),
)
EVENT_DIGESTS: Final = CheckDefinition(
    "event-digests",
    title="stated event digests are those of name and payload",
    attack="a shown payload that is not the measured one",
    claim=(Submodule.OS, TrustClaim.EXECUTABLES),
    is_signature=True,
)
EVENT_ORDER: Final = CheckDefinition(
    "event-order",
    title="system events occur once, in order, and none follows system-ready",
    attack="an application that emits a second compose-hash or app-id event",
    claim=(Submodule.OS, TrustClaim.EXECUTABLES),
)
RTMR3_REPLAY: Final = CheckDefinition(
    "rtmr3-replay",
    title="the event log replays to the quote's RTMR3",
    attack="an event log of another VM, or one with an event left out",
    claim=(Submodule.OS, TrustClaim.EXECUTABLES),
    is_signature=True,
)
COMPOSE_HASH: Final = CheckDefinition(
    "compose-hash",
    title="the compose text shown is the measured one, byte for byte",
    attack="a harmless compose file shown in place of the one that runs",
    claim=(Submodule.APP, TrustClaim.EXECUTABLES),
)
COMPOSE_ACCEPTED: Final = CheckDefinition(
    "compose-accepted",
    title="the compose hash is one that the policy lists",
    attack="other code than the reviewed one",
    claim=(Submodule.APP, TrustClaim.EXECUTABLES),
    hint="review the app-compose.json that runs there (`trainer audit`) before you list it",
)
APP_ID: Final = CheckDefinition(
    "app-id",
    title="the app id is the one that the policy names",
    attack="another application of the same key service",
    claim=(Submodule.APP, TrustClaim.INSTANCE_IDENTITY),
)
MR_CONFIG_ID: Final = CheckDefinition(
    "mr-config-id",
    title="MRCONFIGID is zero or binds this compose hash",
    attack="a VM that was started for another configuration",
    claim=(Submodule.APP, TrustClaim.CONFIGURATION),
)
KEY_PROVIDER: Final = CheckDefinition(
    "key-provider",
    title="the key provider is the one that the policy names",
    attack="a key service of the operator's that keeps copies of the keys",
    claim=(Submodule.APP, TrustClaim.STORAGE_OPAQUE),
    hint="if you trust this key provider, name it in `app.key_provider`",
)
INIT_SCRIPTS: Final = CheckDefinition(
    "init-scripts",
    title="the scripts that run before a container engine starts are those that the policy names",
    attack="containers and image layers that an earlier version of the app left on the disk, and nothing removes",
    claim=(Submodule.APP, TrustClaim.CONFIGURATION),
    hint="with a key service, app-compose.json comes from `trainer job render --profile kms`",
)
KEY_CHAIN: Final = CheckDefinition(
    "key-chain",
    title="the derived keys that the claims name chain to the policy's key service root, or to none",
    attack="keys that only claim to come from the key service",
    claim=(Submodule.APP, TrustClaim.INSTANCE_IDENTITY),
    is_signature=True,
)
KEY_POSSESSION: Final = CheckDefinition(
    "key-possession",
    title="the possession key that the claims name signed these claims",
    attack="another VM's chain of keys shown beside this VM's claims",
    claim=(Submodule.APP, TrustClaim.INSTANCE_IDENTITY),
    is_signature=True,
)

_CHECKS_OF_EVENTS: Final = (
    EVENT_DIGESTS,
    EVENT_ORDER,
    RTMR3_REPLAY,
    COMPOSE_HASH,
    APP_ID,
    KEY_PROVIDER,
    INIT_SCRIPTS,
    KEY_CHAIN,
)


def judge_app(
    ledger: Ledger, evidence: Evidence, claims: DatasetClaims, td: TdReport | None, policy: Policy
) -> tuple[Event, ...] | None:
    """Records the checks of this module and of `os_checks`.

    Args:
        ledger: receives the outcomes.
        evidence: event log, VM configuration, compose text and key chain.
        claims: the job's claims.
        td: the TD report; None where the quote could not be read.
        policy: the reference values.

    Returns:
        The event log; None where it could not be read.
    """
    events: tuple[Event, ...] | None = None
    try:
        events = parse_event_log(evidence.event_log)
        found = f"{len(events)} events"
    except VerificationError as error:
        found = error.message
    ledger.judge(EVENT_LOG_FORMAT, events is not None, expected="an event log", found=found)
    judge_os(ledger, evidence.vm_config, events or (), td, policy)
    compose_sha256 = compose_hash(evidence.app_compose)
    accepted = policy.app.compose_sha256
    ledger.judge(
        COMPOSE_ACCEPTED,
        compose_sha256 in accepted,
        expected=" or ".join(accepted),
        found=compose_sha256,
    )
    if td is not None:
        _judge_config_id(ledger, td, events or (), compose_sha256)
    held = proves_possession(evidence.possession, claims)
    found = "so" if held else "no signature by this key over these claims"
    ledger.judge(
        KEY_POSSESSION,
        held,
        expected=f"claims signed by {claims.derived_keys.possession}",
        found=found,
    )
    if events is None:
        ledger.unreached(_CHECKS_OF_EVENTS, "there is no event log to look at")
        return None
    _judge_events(ledger, evidence, events, td, policy)
    _judge_key_chain(ledger, evidence, claims, events, policy)
    return events


def _judge_config_id(
    ledger: Ledger, td: TdReport, events: Sequence[Event], compose_sha256: str
) -> None:
    # The host writes MRCONFIGID before the VM runs. Zero binds nothing; RTMR3 binds the compose hash in any
    # case.
    register, form = td.mr_config_id, td.mr_config_id[0]
    acceptable = acceptable_config_ids(form, bytes.fromhex(compose_sha256), events)
    ledger.judge(
        MR_CONFIG_ID,
        register in acceptable,
        expected=min(acceptable).hex()
        if len(acceptable) == 1
        else f"a value of form {form:02} for this app",
        found=register,
        detail=f"form {form:02}: {FORMS.get(form, 'unknown')}",
    )


def _judge_events(
    ledger: Ledger, evidence: Evidence, events: Sequence[Event], td: TdReport | None, policy: Policy
) -> None:
    """Records event-digests, event-order, rtmr3-replay, compose-hash, app-id, key-provider and init-scripts."""
    # The first three belong together: the replay binds names and payloads to the quote, and the order keeps an
    # application from extending RTMR3 with a second event of the OS's name. Only then is a payload the OS's.
    problem = digest_problem(events)
    ledger.judge(
        EVENT_DIGESTS, problem is None, expected="digests as recomputed", found=problem or "so"
    )
    problem = order_problem(events)
    ledger.judge(
        EVENT_ORDER, problem is None, expected="system events in order", found=problem or "so"
    )
    if td is not None:
        ledger.compare(RTMR3_REPLAY, expected=td.rtmr3, found=replay(events))
    # Three statements of one digest: what the OS measured, what the shown text hashes to, and what the evidence
    # says.
    measured = (payload(events, "compose-hash") or b"").hex()
    compose_sha256, stated = (
        compose_hash(evidence.app_compose),
        evidence.compose_hash.removeprefix("sha256:"),
    )
    ledger.judge(
        COMPOSE_HASH,
        measured == compose_sha256 == stated,
        expected=f"{measured or 'no compose-hash event'}, as measured",
        found=f"{compose_sha256} of the text, stated as {stated}",
    )
    app_id = (payload(events, "app-id") or b"").hex()
    if policy.app.app_id == "any":
        ledger.leave_open(APP_ID, found=app_id)
    else:
        ledger.compare(APP_ID, expected=policy.app.app_id, found=app_id)
    provider, demand = key_provider(events), policy.app.key_provider
    found = (
        "nothing readable" if provider is None else f"{provider.name} {provider.identity}".rstrip()
    )
    if demand == "any":
        ledger.leave_open(KEY_PROVIDER, found=found)
    else:
        ledger.compare(KEY_PROVIDER, expected=f"{demand.name} {demand.id}".rstrip(), found=found)
    _judge_scripts(ledger, evidence.app_compose, events, policy)


def _judge_scripts(
    ledger: Ledger, app_compose: str, events: Sequence[Event], policy: Policy
) -> None:
    """Records init-scripts, from the measured text, and from the guest's own events where its release has them."""
    try:
        stated = read_key_source(parse_app_compose(app_compose)).init_scripts
    except ValueError:
        stated = None
    measured = tuple(script.hex() for script in payloads(events, "init-script-hash"))
    found = "not readable" if stated is None else ", ".join(stated) or "none"
    demanded = policy.app.init_script_sha256
    if demanded == "any":
        ledger.leave_open(INIT_SCRIPTS, found=found)
        return
    # dstack 0.5 runs the script of the measured text without an event of its own for it; 0.6 has one for each.
    ledger.judge(
        INIT_SCRIPTS,
        stated == demanded and measured in ((), demanded),
        expected=", ".join(demanded) or "none",
        found=found,
        detail=f"the guest measured {', '.join(measured)}"
        if measured
        else "the guest measures no script by itself",
    )


def _judge_key_chain(
    ledger: Ledger,
    evidence: Evidence,
    claims: DatasetClaims,
    events: Sequence[Event],
    policy: Policy,
) -> None:
    """Records key-chain. A chain that is shown must hold in itself, whoever its root is."""
    demanded, chain = policy.app.kms_root_key, evidence.key_chain
    root = None if demanded == "any" else demanded
    provider = key_provider(events)
    if chain is not None and provider is not None and provider.name == NO_KEY_SERVICE:
        # No root signed anything there: what is shown as its signature says nothing.
        ledger.judge(
            KEY_CHAIN, False, expected="no key chain, without a key service", found="a key chain"
        )
        return
    if chain is None:
        if root is None:
            ledger.leave_open(KEY_CHAIN, found="no key chain")
        else:
            ledger.judge(KEY_CHAIN, root == NO_KEY_SERVICE, expected=root, found="no key chain")
        return
    # The app id comes from the measured event, not from the chain: a chain of another app recovers another root.
    app_id = payload(events, "app-id") or b""
    try:
        signers = recover_signers(chain, claims.derived_keys, app_id)
    except ValueError as error:
        ledger.judge(KEY_CHAIN, False, expected=root or "a chain of signatures", found=str(error))
        return
    one_app = len(set(signers.app_keys)) == 1
    if one_app and root is None:
        ledger.leave_open(KEY_CHAIN, found=signers.root_key)
        return
    found = signers.root_key if one_app else "keys of two apps"
    ledger.judge(
        KEY_CHAIN,
        one_app and signers.root_key == root,
        expected=root or "keys of one app",
        found=found,
    )
