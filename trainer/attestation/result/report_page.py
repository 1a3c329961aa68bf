"""The result of an appraisal as one HTML page, to read, print and archive.

The page is self-contained: its style is inside, it has no script, and its content security policy forbids every
request. Texts from evidence are attacker-controlled: each is made printable and escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

from trainer.attestation.checks import Check, CheckDefinition, CheckState
from trainer.attestation.nvidia.boot_event_checks import GPU_REQUIRED
from trainer.attestation.nvidia.gpu_report_checks import RELAY_LIMIT
from trainer.attestation.result.attestation_result import AttestationResult
from trainer.attestation.result.ear import BUILD, EAT_PROFILE, submodule_tier, vectors
from trainer.attestation.result.presentation import (
    DEVELOPMENT_BANNER,
    NOT_COVERED,
    NOT_FRESH,
    SYMBOLS,
    WORDS,
    CheckGroup,
    explanation,
    grouped,
    shortened,
)
from trainer.attestation.result.record import Record
from trainer.attestation.result.report_style import STYLE
from trainer.attestation.tdx.tcb_checks import TCB_ADVISORIES, TCB_STATUS
from trainer.durations import utc
from trainer.encoding import page_security_policy, printable

LONG_VALUE: Final = 260
"""Values of more characters are folded: the page shows their two ends, and the rest on demand."""

Facts = Iterable[tuple[str, str]]


def render_page(record: Record) -> str:
    """Returns the page as one HTML document."""
    result, gpu = record.result, record.evidence.gpu
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{page_security_policy(STYLE)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>Attestation result: {result.status}</title><style>{STYLE}</style>"
    )
    relay = (f"where the GPU is: {RELAY_LIMIT}",) if gpu.boot or gpu.fresh else ()
    not_covered = "".join(f"<li>{escape(text)}</li>" for text in (*relay, *NOT_COVERED))
    cautions = "".join(f"<li>{escape(printable(text))}</li>" for text in result.cautions)
    parts = (
        f'<p class="banner">{escape(DEVELOPMENT_BANNER)}</p>' if result.development_root else "",
        _verdict(result),
        f'<section><h2>Caution</h2><ul class="plain">{cautions}</ul></section>' if cautions else "",
        '<div class="columns">',
        _facts("Appraisal", _appraisal_facts(result)),
        _facts("Virtual machine", _machine_facts(record)),
        "</div>",
        _failures(result),
        *(_group(group, result) for group in grouped(result.checks)),
        f'<section><h2>What this result does not show</h2><ul class="plain">{not_covered}</ul></section>',
        (
            f"<footer>Appraised by {escape(BUILD)} at {utc(result.appraised_at)}. Tiers and claims as in AR4SI "
            f"and <code>{escape(EAT_PROFILE)}</code>. This page is for reading, and nothing in it is signed: "
            "to check it, judge the saved result again with <code>trainer verify</code>.</footer>"
        ),
    )
    body = '<body class="development">' if result.development_root else "<body>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n'
        f"{body}<main>{''.join(parts)}</main></body></html>\n"
    )


def _verdict(result: AttestationResult) -> str:
    if result.status == "pass" and result.development_root:
        mark, word = "!", "Pass under a development root"
        meaning = "Every check was affirmed or not demanded, and none of it shows a TEE: for development only."
    elif result.status == "pass":
        mark, word = SYMBOLS[CheckState.AFFIRMED], "Pass"
        sealable = f"A dataset may be sealed to this job until {utc(result.expires_at)}."
        freshness = sealable if result.fresh else f"Not fresh: {NOT_FRESH}."
        meaning = f"Every check was affirmed or not demanded. {freshness}"
    else:
        mark, word = SYMBOLS[CheckState.CONTRAINDICATED], "Fail"
        meaning = "Do not upload: the evidence does not satisfy the policy."
    numbers = {state: sum(check.state is state for check in result.checks) for state in CheckState}
    counts = "".join(
        f'<li class="badge {state.value}">{SYMBOLS[state]} {number} {WORDS[state]}</li>'
        for state, number in numbers.items()
        if number
    )
    return (
        f'<header class="verdict {result.status}"><span class="mark" aria-hidden="true">{mark}</span>'
        f"<div><h1>{word}</h1><p>{meaning}</p></div>"
        f'<ul class="counts">{counts}</ul></header>'
    )


def _facts(title: str, facts: Facts) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{_value(value)}</dd>" for name, value in facts)
    return f"<section><h2>{escape(title)}</h2><dl>{rows}</dl></section>"


def _appraisal_facts(result: AttestationResult) -> Facts:
    peer = result.peer_spki_sha256
    return (
        ("policy", result.policy_sha256),
        ("compose hash", result.compose_sha256),
        ("job spec", result.job_spec_sha256),
        ("recipient", result.recipient),
        ("appraised", utc(result.appraised_at)),
        ("valid until", utc(result.expires_at)),
        ("nonce", result.nonce or "none of yours was given"),
        ("fresh", "yes" if result.fresh else NOT_FRESH),
        ("evidence", f"came over TLS, key {peer}" if peer else "came as a file"),
    )


def _machine_facts(record: Record) -> Facts:
    result = record.result
    names = ("MRTD", "RTMR0", "RTMR1", "RTMR2", "RTMR3")
    registers = result.td.registers if result.td is not None else ()
    return (
        ("TCB status", _found(result, TCB_STATUS)),
        ("advisories", _found(result, TCB_ADVISORIES)),
        ("GPUs at boot", _found(result, GPU_REQUIRED)),
        ("GPU reports", str(len(record.evidence.gpu.fresh) or "none")),
        *((name, value.hex()) for name, value in zip(names, registers, strict=False)),
    )


def _found(result: AttestationResult, definition: CheckDefinition) -> str:
    check = result.check(definition.code)
    return check.found or check.detail or WORDS[check.state]


def _value(text: str) -> str:
    """Returns a value as HTML; one longer than `LONG_VALUE` is folded."""
    # Control and direction characters become visible before HTML is escaped: a value must not read as another.
    full = escape(printable(text))
    if len(text) <= LONG_VALUE:
        return f'<span class="value">{full}</span>'
    ends = escape(printable(shortened(text, 32)))
    return f'<details><summary class="value">{ends}</summary><span class="value">{full}</span></details>'


def _failures(result: AttestationResult) -> str:
    failed = [check for check in result.checks if check.state is CheckState.CONTRAINDICATED]
    if not failed:
        return ""
    items = []
    for check in failed:
        # Values of the evidence are folded if they are long; the other parts are prose.
        rows = "".join(
            f"<dt>{label}</dt><dd>{_value(text) if label in ('expected', 'found') else escape(text)}</dd>"
            for label, text in explanation(check)
        )
        title = f"{SYMBOLS[check.state]} {escape(check.code)}: {escape(check.title)}"
        items.append(f'<div class="failure"><h3>{title}</h3><dl>{rows}</dl></div>')
    return f"<section><h2>What failed</h2>{''.join(items)}</section>"


def _group(group: CheckGroup, result: AttestationResult) -> str:
    rows = "".join(_row(check) for check in group.checks)
    badge = ""
    if group.submodule is not None:
        tier = submodule_tier(group.submodule, result.checks).value
        vector = vectors(result.checks)[group.submodule]
        claims = ", ".join(f"{claim.value} {value.value}" for claim, value in vector.items())
        badge = f'<span class="badge {tier}">{tier}</span><p class="vector">{claims}</p>'
    return (
        f'<section><div class="head"><h2>{escape(group.title)}</h2>{badge}</div>'
        f"<table><thead><tr><th>state</th><th>#</th><th>check</th><th>found</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></section>"
    )


def _label(text: str) -> str:
    return f'<span class="label">{text}</span>'


def _row(check: Check) -> str:
    state = check.state
    expected = ""
    if state is CheckState.CONTRAINDICATED and check.expected:
        expected = f"{_label('expected')} {_value(check.expected)}<br>{_label('found')} "
    detail = f"<small>{escape(printable(check.detail))}</small>" if check.detail else ""
    found = _value(check.found) if check.found else ""
    return (
        f'<tr><td><span class="badge {state.value}">{SYMBOLS[state]} <b>{WORDS[state]}</b></span></td>'
        f"<td>{check.number}</td><td><code>{escape(check.code)}</code><small>{escape(check.title)}</small></td>"
        f"<td>{expected}{found}{detail}</td></tr>"
    )
