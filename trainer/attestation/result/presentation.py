"""Checks in words and groups for people, for the table on the terminal and for the HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trainer.attestation.catalogue import DEFINITIONS
from trainer.attestation.checks import Check, CheckState, Submodule
from trainer.attestation.result.ear import submodule_of
from trainer.encoding import printable

SYMBOLS: Final[Mapping[CheckState, str]] = {
    CheckState.AFFIRMED: "✔",
    CheckState.CONTRAINDICATED: "✘",
    CheckState.NOT_DEMANDED: "–",  # noqa: RUF001 - a dash, as wide as the other symbols
    CheckState.NOT_REACHED: "?",
}
"""One character for each state, so that the states can be distinguished without colours."""

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

STATEMENT_TITLE: Final = "Statement"
"""Title of the group of checks that only the evidence over a statement has, which belong to no submodule."""

DEVELOPMENT_BANNER: Final = (
    "DEVELOPMENT ROOT: not Intel's. Whoever holds its key can imitate a TEE, so this protects nothing: "
    "never send real data."
)
"""What comes before every result under a development root, in words, since no colour may say that it is good."""

NOT_FRESH: Final = "a repeated appraisal; nothing can be sealed to it"
"""What a result that is not fresh is worth."""

NOT_COVERED: Final = (
    "what whoever opens the machine can do: interposers on its memory bus, an attestation key extracted with them",
    "side channels of the CPU's and GPU's protection, beyond what the platform's TCB status says of them",
    "what the weights themselves remember of the dataset: whoever has them may draw it out again",
    "whether the code is good: it is the code that the policy accepts, and only a review says more",
    "that the operator keeps the job running: anyone who holds the machine can switch it off",
)
"""What a pass does not show."""


@dataclass(frozen=True)
class CheckGroup:
    """Checks that are shown together; `submodule` is None for checks that only a receipt has."""

    submodule: Submodule | None
    title: str
    checks: tuple[Check, ...]


def grouped(checks: Sequence[Check]) -> tuple[CheckGroup, ...]:
    """Returns the checks by submodule, in the order of `TITLES`, without empty groups."""
    by_submodule: dict[Submodule | None, list[Check]] = {}
    for check in checks:
        by_submodule.setdefault(submodule_of(check), []).append(check)
    order: tuple[Submodule | None, ...] = (*TITLES, None)
    return tuple(
        CheckGroup(name, TITLES[name] if name else STATEMENT_TITLE, tuple(by_submodule[name]))
        for name in order
        if name in by_submodule
    )


def explanation(check: Check) -> tuple[tuple[str, str], ...]:
    """Returns the explanation of a failed check as pairs of label and printable text, without empty ones."""
    definition = DEFINITIONS.get(check.code)  # None for the checks of a receipt's own files
    parts = (
        ("expected", check.expected),
        ("found", check.found),
        ("because", check.detail),
        ("guards against", definition.attack if definition else None),
        ("hint", definition.hint if definition else None),
    )
    return tuple((label, printable(text)) for label, text in parts if text)


def summary(checks: Sequence[Check]) -> str:
    """Returns how many checks ended in each state, such as `60 affirmed, 9 not demanded`."""
    counts = Counter(check.state for check in checks)
    return ", ".join(f"{counts[state]} {word}" for state, word in WORDS.items() if counts[state])


def shortened(text: str, length: int) -> str:
    """Returns `text` in at most `length` characters, the middle left out: people compare both ends of a digest."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"
