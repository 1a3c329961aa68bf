"""The `verify` command: appraise a job, evidence from a file, or a saved result; print and save the result."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from trainer.cli.console import error_document, print_error, print_json, print_line
from trainer.cli.options import (
    Json,
    Quiet,
    cache_directory,
    local_secret,
    nonces_file,
    require_absent,
)
from trainer.errors import ErrorCode, TrainerError, UsageError, VerificationError

if TYPE_CHECKING:
    from trainer.attestation.policy import Policy
    from trainer.attestation.result.record import Record

_RECORDED: Final = "recorded"
_MAX_UNIX_TIME: Final = 253402300799
"""The end of the year 9999, as in `trainer.models.UnixTime`."""


def verify_job(
    source: Annotated[
        str,
        typer.Argument(
            metavar="URL|FILE",
            help="The job's https:// address, its spool directory, evidence in a file, or a saved result.",
        ),
    ],
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            help="What you demand of the job (policy.yaml). Replaces the policy of a saved result.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            "--save",
            help="Save the result with all its inputs: for `trainer seal`, and to appraise it again offline. "
            "Never overwritten.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            help="Write a report to read: one HTML file without scripts; never overwritten.",
        ),
    ] = None,
    nonce: Annotated[
        str | None,
        typer.Option(
            "--nonce",
            help="For a FILE: the nonce you chose, 64 hex digits. A saved result is not fresh without it.",
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="TIME",
            help="For a FILE: appraise as of this time (RFC 3339 or Unix seconds; `recorded`: when it was saved).",
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Appraise a job and list every check. Exit code 4 means: do not upload."""
    from trainer import provider

    for path in (output, html):
        if path is not None:
            require_absent(path)
    demanded = provider.read_policy(policy) if policy is not None else None
    if nonce is not None and not re.fullmatch(r"[0-9a-f]{64}", nonce):
        raise UsageError(
            ErrorCode.USAGE, "--nonce", expected="64 lower-case hex digits", found="something else"
        )
    if Path(source).is_file():
        record = _appraise_file(Path(source), demanded, nonce, at)
    else:
        record = _appraise_job(source, demanded, nonce, at)
    if output is not None:
        provider.save_own_record(record, output, secret=local_secret())
    if html is not None:
        from trainer.attestation.result.report_page import render_page

        provider.write_private_file(html, render_page(record).encode())
    # A failed appraisal is saved and printed too, so that the checks that failed can be read.
    _report(record, quiet=quiet, as_json=as_json)


def _report(record: Record, *, quiet: bool, as_json: bool) -> None:
    """Prints a result; ends the command with the exit code of its failure, if it failed."""
    problem: TrainerError | None = None
    try:
        record.result.require_pass(record.result.appraised_at)
    except VerificationError as error:
        problem = error
    if as_json:
        from trainer.attestation.result.ear import result_document

        # One object, whatever the verdict: the error is a part of it.
        print_json(
            {
                **result_document(record.result),
                **({} if problem is None else error_document(problem)),
            }
        )
    elif not quiet:
        from trainer.cli.check_output import print_attestation_result

        print_attestation_result(record.result)
    if problem is not None:
        print_error(problem, as_json=False)
        raise typer.Exit(int(problem.exit_code))


def _appraise_job(
    source: str, demanded: Policy | None, nonce: str | None, at: str | None
) -> Record:
    from trainer import provider

    if provider.is_result(Path(source)):
        raise UsageError(
            ErrorCode.USAGE,
            f"{source} is an opened result, not a job",
            expected="an https:// URL, a spool directory, or a file",
            found="a directory with a receipt",
            hint=f"`trainer receipt verify {source}` checks a result again",
        )
    if not source.startswith("https://") and not Path(source).exists():
        raise UsageError(
            ErrorCode.FILE_NOT_FOUND,
            "what to appraise",
            expected="an https:// URL, a spool directory, or a file",
            found=f"{source}, which does not exist",
            hint="check the path; an address begins with https://",
        )
    if demanded is None:
        raise _missing_policy()
    for option, value in (("--at", at), ("--nonce", nonce)):
        if value is not None:
            raise UsageError(
                ErrorCode.USAGE,
                option,
                expected="a file to appraise",
                found="a job that answers now",
                hint="a job is always asked with a new nonce, and judged as of now: leave the option out",
            )
    client = provider.connect_to_job(source)
    return provider.appraise_job(client, demanded, cache=cache_directory(), nonces=nonces_file())


def _appraise_file(
    path: Path, demanded: Policy | None, nonce: str | None, at: str | None
) -> Record:
    """Appraises a saved result or evidence; the content of the file decides which it is."""
    from trainer.attestation.result.record import (
        MAX_RECORD_BYTES,
        is_record,
        load_record,
        reappraise,
    )
    from trainer.provider import read_small_file

    data = read_small_file(path, "evidence", MAX_RECORD_BYTES)
    if not is_record(data):
        return _appraise_evidence(data, demanded, nonce, at)
    recorded = load_record(data)
    if demanded is not None and nonce is not None and at is None:
        # Everything that makes a result fresh is of this command: then it is evidence in a file, and no more.
        return _appraise_evidence(recorded.evidence.canonical(), demanded, nonce, at)
    if demanded is not None and demanded.sha256() != recorded.policy.sha256():
        print_line(
            f"note: appraised under the policy {demanded.sha256()}; the saved result was appraised under "
            f"another one, {recorded.policy.sha256()}",
            err=True,
        )
    # As of now by default: what was valid when it was saved may have expired or been revoked since.
    now = recorded.result.appraised_at if at == _RECORDED else parse_time(at)
    return reappraise(recorded, now=now, policy=demanded, nonce=nonce)


def _appraise_evidence(
    data: bytes, demanded: Policy | None, nonce: str | None, at: str | None
) -> Record:
    from trainer import provider
    from trainer.attestation.evidence import parse_evidence

    if demanded is None:
        raise _missing_policy()
    if nonce is None:
        raise UsageError(
            ErrorCode.USAGE,
            "evidence from a file",
            expected="--nonce with the nonce that you chose",
            found="none",
            hint="without your own nonce, old evidence looks like new evidence",
        )
    return provider.appraise_evidence(
        parse_evidence(data),
        demanded,
        nonce=nonce,
        cache=cache_directory(),
        nonces=nonces_file(),
        now=None if at is None else parse_time(at),
        peer_spki_sha256=None,
    )


def _missing_policy() -> UsageError:
    return UsageError(
        ErrorCode.USAGE,
        "no policy to appraise under",
        expected="--policy with your policy.yaml",
        found="none",
        hint="only a saved result contains a policy; write one with `trainer policy init`",
    )


def parse_time(text: str | None) -> int:
    """Returns `--at` in Unix seconds; the current time if it is absent."""
    if text is None:
        return int(time.time())
    seconds = -1
    if re.fullmatch("[0-9]{1,12}", text):
        seconds = int(text)
    else:
        with contextlib.suppress(ValueError):
            moment = dt.datetime.fromisoformat(text)
            # RFC 3339 requires an offset: without one the time would depend on the time zone of this machine.
            seconds = -1 if moment.tzinfo is None else int(moment.timestamp())
    if not 0 <= seconds <= _MAX_UNIX_TIME:
        raise UsageError(
            ErrorCode.USAGE,
            "--at",
            expected="a time such as 2026-11-23T20:00:00Z, or Unix seconds",
            found=text,
            hint="`recorded` means the time of a saved result",
        )
    return seconds
