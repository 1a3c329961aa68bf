"""Checks in words and groups for people: what the terminal's table and the HTML page share."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trainer.attestation.catalogue import DATASET_CHECKS, RECEIPT_CHECKS
from trainer.attestation.checks import Check, CheckCode, CheckState
from trainer.attestation.result.ear import PLACES, Submodule
from trainer.encoding import printable

SYMBOLS: Final[Mapping[CheckState, str]] = {
    CheckState.AFFIRMED: "✔",
    CheckState.CONTRAINDICATED: "✘",
    CheckState.NOT_DEMANDED: "–",  # noqa: RUF001 - a dash, as wide as the other symbols
    CheckState.NOT_REACHED: "?",
}
"""One character for each state, so that it can be told without colours."""

WORDS: Final[Mapping[CheckState, str]] = {
    CheckState.AFFIRMED: "affirmed",
    CheckState.CONTRAINDICATED: "contraindicated",
    CheckState.NOT_DEMANDED: "not demanded",
    CheckState.NOT_REACHED: "not reached",
}

TITLES: Final[Mapping[Submodule, str]] = {
    Submodule.TDX: "Platform and VM (Intel TDX)",
    Submodule.OS: "Operating system and its event log",
    Submodule.APP: "Application and its keys",
    Submodule.JOB: "Job, claims and connection",
    Submodule.GPU: "GPUs",
}

RECEIPT_TITLE: Final = "Receipt"
"""Of checks that belong to no submodule: those that only a receipt has."""

NOT_COVERED: Final = (
    "side channels of the CPU's and GPU's protection, beyond what the platform's TCB status says of them",
    "what the weights themselves remember of the dataset: whoever has them may draw it out again",
    "whether the code is good: it is the code that the policy accepts, and only a review says more",
    "that the operator keeps the job running: anyone who holds the machine can switch it off",
)
"""What a pass does not say."""

_ATTACKS: Final = {definition.code.value: definition.attack for definition in (*RECEIPT_CHECKS, *DATASET_CHECKS)}

_HINTS: Final[Mapping[str, str]] = {
    CheckCode.COLLATERAL_FORMAT: "fetch the collateral again, or name another source in the policy",
    CheckCode.ROOT_OF_TRUST: "on a development machine, make a policy with --trust-root; never for real data",
    CheckCode.COLLATERAL_VALIDITY: "fetch newer collateral; `--at` judges a saved result as of another time",
    CheckCode.TCB_STATUS: "ask the operator to update the platform, or list the status in `tcb.accepted_statuses`",
    CheckCode.TCB_GRACE: "ask the operator to update the platform, or raise `tcb.grace_days`",
    CheckCode.TCB_EVALUATION_NUMBER: "fetch newer collateral",
    CheckCode.TD_DEBUG: "the operator started a debuggable VM; it must be started anew",
    CheckCode.OS_MEASUREMENTS: "if you trust this OS image, add its measurements or image hash under `os`",
    CheckCode.OS_DEVELOPMENT: "ask the operator for a production image",
    CheckCode.COMPOSE_ACCEPTED: "review the app-compose.json that runs there (`trainer audit`) before you list it",
    CheckCode.KEY_PROVIDER: "if you trust this key provider, name it in `app.key_provider`",
    CheckCode.NONCE: "ask the job again, and give the nonce that you asked with",
    CheckCode.NONCE_UNUSED: "ask the job again with a new nonce of 32 random bytes",
    CheckCode.CLAIMS_VALIDITY: "verify the job again; compare the clocks",
    CheckCode.FRESHNESS: "verify the job again; `--at` judges a saved result as of another time",
    CheckCode.TLS_KEY: "connect to the job itself: TLS must end inside its VM",
    CheckCode.JOB_SPEC_DIGEST: "review the job.yaml that runs there before you add it to the policy",
    CheckCode.SANDBOX: "ask the operator how the container was started, or demand less in `sandbox`",
    CheckCode.GPU_REQUIRED: "ask the operator for a VM with confidential GPUs, or set `gpu.required` to false",
    CheckCode.GPU_DEVTOOLS: "the GPU must be set to production mode",
    CheckCode.GPU_REPORT_VERSIONS: "ask the operator to update driver or VBIOS",
    CheckCode.GPU_BOOT_VERSIONS: "ask the operator to update driver or VBIOS",
}


@dataclass(frozen=True)
class CheckGroup:
    """Checks that are shown together. `submodule` is None for checks that only a receipt has."""

    submodule: Submodule | None
    title: str
    checks: tuple[Check, ...]


def grouped(checks: Sequence[Check]) -> tuple[CheckGroup, ...]:
    """The checks by submodule, in the order of the story; groups without checks are left out."""
    by_place: dict[Submodule | None, list[Check]] = {}
    for check in checks:
        place = PLACES.get(check.code)
        by_place.setdefault(place[0] if place else None, []).append(check)
    order: tuple[Submodule | None, ...] = (*TITLES, None)
    return tuple(
        CheckGroup(name, TITLES[name] if name else RECEIPT_TITLE, tuple(by_place[name]))
        for name in order
        if name in by_place
    )


def attack(check: Check) -> str | None:
    """The attack that a check stops; None for a check that is in no list."""
    return _ATTACKS.get(check.code)


def hint(check: Check) -> str | None:
    """What a provider can do where a check failed; None where there is nothing but to refuse."""
    return _HINTS.get(check.code)


def explanation(check: Check) -> tuple[tuple[str, str], ...]:
    """What a person needs to know of a check that failed: label and text, printable."""
    parts = (
        ("expected", check.expected),
        ("found", check.found),
        ("because", check.detail),
        ("guards against", attack(check)),
        ("hint", hint(check)),
    )
    return tuple((label, printable(text)) for label, text in parts if text)


def summary(checks: Sequence[Check]) -> str:
    """How many checks ended in which state, such as `60 affirmed, 9 not demanded`."""
    counts = Counter(check.state for check in checks)
    return ", ".join(f"{counts[state]} {word}" for state, word in WORDS.items() if counts[state])


def utc(seconds: int) -> str:
    """Unix seconds as a person reads them."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def shortened(text: str, length: int) -> str:
    """`text` in at most `length` characters, the middle left out: digests are told apart by both ends."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"
