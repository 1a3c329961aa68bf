"""The commands around the receipt of an opened result: check it again years later, and read what it says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.cli.console import print_json, print_line, print_wrapped
from trainer.cli.options import Json, Quiet, require_absent
from trainer.cli.result_commands import check_states, print_all_checks
from trainer.cli.verify_command import parse_time
from trainer.errors import ErrorCode, UsageError

if TYPE_CHECKING:
    from trainer.provider import VerifiedReceipt
    from trainer.provider.receipt_account import AccountLine

receipt_app = typer.Typer(
    name="receipt",
    help="Check an opened result again, offline and without your key, and read what its receipt says.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Result = Annotated[
    Path, typer.Argument(metavar="DIR", help="The opened result, as `submit` or `open` left it.")
]
RecordOption = Annotated[
    Path | None,
    typer.Option(
        "--record", metavar="FILE", help="Its record; DIR.record beside the result if not given."
    ),
]
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy", help="Judge the job by your policy.yaml, not by the one in the record."
    ),
]
AtOption = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="TIME",
        help="Judge the job as of this time (RFC 3339 or Unix seconds), not as of the time in the record.",
    ),
]


@receipt_app.command("verify")
def verify_receipt(
    result: Result,
    record: RecordOption = None,
    policy: PolicyOption = None,
    at: AtOption = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Appraise everything again: evidence, policy, receipt, each file. Fetches nothing and writes nothing."""
    verified = _verify(result, record, policy, at)
    if as_json:
        print_json(_document(verified))
        return
    if not quiet:
        checks = {
            "the job's evidence": verified.attestation.result.checks,
            "the result's receipt": verified.opened.checks,
        }
        print_all_checks(checks, development_root=verified.attestation.result.development_root)
        print_line("\nnot judged:")
        for question in verified.open_questions:
            print_wrapped(f"  ? {question}", indent=4)
    print_line(f"{result}: every check passed again")


@receipt_app.command("show")
def show_receipt(
    result: Result,
    record: RecordOption = None,
    policy: PolicyOption = None,
    at: AtOption = None,
) -> None:
    """Tell what was done, by whom and when, in plain words. Everything is checked first, as `verify` does."""
    from trainer import provider

    verified = _verify(result, record, policy, at)
    if verified.attestation.result.development_root:
        print_all_checks({}, development_root=True)
    print_account(provider.give_account(verified, now=int(time.time())))


def print_account(lines: Sequence[AccountLine]) -> None:
    """Prints the lines of an account."""
    for line in lines:
        print_wrapped(line.text, indent=line.indent)


@receipt_app.command("export")
def export_receipt(
    result: Result,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for the files; must not exist.")
    ],
    public: Annotated[
        bool,
        typer.Option(
            "--public", help="What may be shown to everyone: no data, no losses, no recipients."
        ),
    ] = False,
    record: RecordOption = None,
) -> None:
    """Write what stock tools read: DSSE envelope, public key, model signature. Everything is checked first."""
    from trainer import provider

    if not public:
        raise UsageError(
            ErrorCode.USAGE,
            "what to export",
            expected="--public",
            found="nothing",
            hint="the receipt itself names your files, recipients and losses: it is receipt.json in the result",
        )
    require_absent(output)
    for path in provider.export_public(_verify(result, record, None, None), output):
        print_line(str(path))


def _verify(
    result: Path, record: Path | None, policy: Path | None, at: str | None
) -> VerifiedReceipt:
    from trainer import provider

    return provider.verify_result(
        result,
        provider.read_receipt_record(result, record),
        policy=None if policy is None else provider.read_policy(policy),
        at=None if at is None else parse_time(at),
    )


def _document(verified: VerifiedReceipt) -> dict[str, object]:
    attested, statement = verified.attestation.result, verified.opened.statement
    return {
        "outcome": statement.outcome.value,
        "development_root": attested.development_root,
        "judged_as_of": attested.appraised_at,
        "policy_sha256": attested.policy_sha256,
        "checks": check_states((*attested.checks, *verified.opened.checks)),
        "sealed_sha256": verified.record.sealed.sha256,
        "summary": dict(statement.metrics),
        "deletion": verified.deletion.predicate.model_dump(mode="json")
        if verified.deletion
        else None,
        "not_judged": list(verified.open_questions),
    }
