"""The page docs/checks.md: every check, every attack on it that the tests make, and the test that makes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from tests.attestation import test_receipt_evidence
from tests.attestation.attacks import RUNNER, Attack, attacks
from trainer.attestation.catalogue import DATASET_CHECKS, STATEMENT_CHECKS
from trainer.attestation.result.ear import CODES_BY_CLAIM
from trainer.attestation.tdx.quote_checks import QUOTE_CHECKS

INTRODUCTION = """\
# Checks of an appraisal

Made from the definitions that `trainer/attestation/catalogue.py` lists, the attacks in `tests/attestation` and the
simulator's faults; `UPDATE_DOCS=1 pytest tests/attestation` writes it anew.

Every check ends `affirmed`, `contraindicated`, `not-demanded` (the policy leaves it open) or
`not-reached` (nothing to look at). Evidence passes only if each is `affirmed` or `not-demanded`.

The compose text that these checks compare is accepted by its digest. What `trainer audit` accepts in one, and what
may vary there, is in [audit.md](audit.md).

Whose keys the VM has is judged by four checks, which demand something else in each of the two profiles:

| | `sealed` | `kms` |
|---|---|---|
| `key-provider` | the event says `none` | the event names the policy's service by its identity |
| `key-chain` | no key service signed anything | every derived key chains to the policy's root key |
| `app-id` | the start of the compose hash; dstack's guest boots with no other | the one that the policy names |
| `init-scripts` | those of the reviewed text; as shipped none | the clean start, and nothing else |
| earlier versions of the app | are other apps with other disks | had the disk: the clean start empties it |
| later versions of the app | are other apps | get the *derived* key |
| any other version | gets no key of this VM | can tell the key of the disk, so that it can be changed |

| | code | demands | stops | attacks |
|---|---|---|---|---|"""

ATTACKS = """
## Attacks

The tests make {attacks} attacks on dataset evidence, each on one field of an otherwise honest world. None passes:
{codes} checks answer them, each its own. A few fields are looked at by several checks: the others are in brackets.
What is marked `--fault` can be made by hand: `trainer simulate --fault NAME` tells that lie over the guest agent's
socket. Tests are named from `tests/attestation/` on.

| check | attack | test |
|---|---|---|"""

RECEIPTS = """
## Evidence over a statement

Beside a receipt and in a deletion statement. Checks 1 to {first} as above, then:

| | code | demands | stops |
|---|---|---|---|"""

RECEIPT_ATTACKS = """
| check | attack | test |
|---|---|---|"""

RECEIPT_RUNNER = "test_receipt_evidence.py::test_one_change_is_answered_by_its_own_code"
NUMBERED = re.compile(r"(.*-bit-)(\d+)")


def checks_page() -> str:
    """The whole page."""
    made = attacks()
    counts = {"attacks": len(made), "codes": len({attack.code for attack in made})}
    lines = [INTRODUCTION, *_checks(made), ATTACKS.format(**counts), *_attacks(made)]
    lines += [
        RECEIPTS.format(first=len(QUOTE_CHECKS)),
        *_receipt_checks(),
        RECEIPT_ATTACKS,
        *_receipt_attacks(),
    ]
    return "\n".join(lines) + "\n"


def claims_table() -> str:
    """The table of EAR claims in trainer/SPEC.md: which checks count towards which claim of which submodule."""
    rows = [
        _row(f"`{submodule}`", f"`{claim}`", ", ".join(codes))
        for (submodule, claim), codes in CODES_BY_CLAIM.items()
    ]
    return "\n".join(["| submodule | claim | checks |", "|---|---|---|", *rows]) + "\n"


def _checks(made: Iterable[Attack]) -> Iterator[str]:
    codes = [attack.code for attack in made]
    for number, definition in enumerate(DATASET_CHECKS, 1):
        cells = (
            number,
            f"`{definition.code}`",
            definition.title,
            definition.attack,
            codes.count(definition.code),
        )
        yield _row(*cells)


def _attacks(made: tuple[Attack, ...]) -> Iterator[str]:
    for definition in DATASET_CHECKS:
        own = (attack for attack in made if attack.code == definition.code)
        for _, group in groupby(own, key=_family):
            yield _attack_row(list(group))


def _family(attack: Attack) -> str:
    """What consecutive attacks on single bits have in common; the key of any other."""
    numbered = NUMBERED.fullmatch(attack.name)
    return attack.key if numbered is None else numbered[1]


def _attack_row(group: list[Attack]) -> str:
    first, last = group[0], group[-1]
    also = "".join(f" (and `{code}`)" for code in first.codes[1:])
    if len(group) == 1:
        return _row(f"`{first.code}`{also}", first.description, f"`{first.test}`")
    text = f"{first.description} to {last.description}: {len(group)} attacks"
    return _row(f"`{first.code}`{also}", text, f"`{RUNNER}[{first.key}]` to `[{last.key}]`")


def _receipt_checks() -> Iterator[str]:
    for number, definition in enumerate(STATEMENT_CHECKS, 1):
        if definition not in QUOTE_CHECKS:
            yield _row(number, f"`{definition.code}`", definition.title, definition.attack)


def _receipt_attacks() -> Iterator[str]:
    for name, (code, _) in test_receipt_evidence.TAMPERINGS.items():
        yield _row(f"`{code}`", name, f"`{RECEIPT_RUNNER}[{name}]`")


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"
