"""The commands that end with an opened result: `open` for one step, `submit` for all of them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.cli.console import print_line, print_summary
from trainer.cli.notify_option import notify_at_end
from trainer.cli.options import (
    DEFAULT_MAX_RESULT_BYTES,
    AcceptedProviders,
    AdapterDir,
    GrantFile,
    IdentityFile,
    ImportedRecord,
    JobFile,
    JobUrl,
    Json,
    MaxBytes,
    MaxDelta,
    MaxEpsilon,
    Notify,
    PolicyFile,
    Quiet,
    RecordFile,
    SharedWith,
    cache_directory,
    load_attestation,
    load_identity,
    local_secret,
    nonces_file,
    require_absent,
)
from trainer.errors import ErrorCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from trainer.attestation.checks import Check
    from trainer.provider import Submission
    from trainer.provider.result_check import OpenedResult

_SHOWN_FIELDS = ("loss", "adapter_dir", "report", "record", "next", "privacy", "task")
"""What is printed of a result without `--json`."""


def open_result(
    sealed: Annotated[Path, typer.Argument(metavar="FILE", help="The sealed result.")],
    identity: IdentityFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for the result; must not exist.")
    ],
    policy: PolicyFile,
    attestation: RecordFile = None,
    imported: ImportedRecord = None,
    grant: GrantFile = None,
    unchecked: Annotated[
        bool,
        typer.Option(
            "--dataset-and-recipients-unchecked",
            help="In place of --grant: do NOT check which dataset the result was trained on, who else can read "
            "it, or what the grant demanded.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Decrypt a result and check its receipt. Writes nothing unless every check passes."""
    from trainer import provider

    if (grant is None) is not unchecked:
        raise UsageError(
            ErrorCode.USAGE,
            "the grant that the dataset was sealed with",
            expected="--grant with the .grant.json that `trainer seal` wrote",
            found="no grant" if grant is None else "--dataset-and-recipients-unchecked as well",
            hint="without it a result of another dataset, or one that others can read, looks like yours; "
            "--dataset-and-recipients-unchecked opens it all the same",
        )
    require_absent(provider.record_directory(output))
    record = load_attestation(attestation, imported, policy)
    opened = provider.open_sealed_result(
        sealed,
        load_identity(identity).identities,
        output,
        record=record,
        grant=provider.read_grant_record(grant) if grant else None,
    )
    opened.write_record()
    development_root = record.result.development_root
    if not as_json:
        print_all_checks({"the result's receipt": opened.checks}, development_root=development_root)
    if unchecked:
        print_line(f"NOT CHECKED, as there was no grant: {', '.join(opened.unchecked)}", err=True)
    if (failure := opened.failure) is not None:
        raise failure
    print_summary(
        {
            **_last_lines(opened),
            "development_root": development_root,
            "checks": check_states(opened.checks),
            "not_checked": list(opened.unchecked),
            "summary": opened.statement.metrics,
        },
        as_json=as_json,
        show=_SHOWN_FIELDS,
    )


def submit_dataset(
    data: Annotated[list[Path], typer.Argument(help="Data files, or folders of them.")],
    job_url: JobUrl,
    policy: PolicyFile,
    identity: IdentityFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for the result; must not exist.")
    ],
    job: JobFile = None,
    adapter: AdapterDir = None,
    max_bytes: MaxBytes = DEFAULT_MAX_RESULT_BYTES,
    max_epsilon: MaxEpsilon = None,
    max_delta: MaxDelta = None,
    accept: AcceptedProviders = None,
    share_with: SharedWith = None,
    wait: Annotated[
        float,
        typer.Option(
            "--wait",
            min=0,
            metavar="SECONDS",
            help="How long to wait for a job that does not answer or was interrupted, until it goes on.",
        ),
    ] = 900.0,
    notify: Notify = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Do all of it: verify → seal → upload → watch → pull → open. Repeat the command to continue after a break."""
    from trainer import provider

    own = load_identity(identity)
    submission = provider.Submission(
        data,
        job_url,
        policy,
        own.identities,
        output,
        cache=cache_directory(),
        secret=local_secret(),
        max_result_bytes=max_bytes,
        nonces=nonces_file(),
        key=own.provider_key,
        adapter=adapter,
        job=job,
        require=provider.make_privacy_demand(max_epsilon, max_delta),
        wait_seconds=wait,
        accepts=accept or (),
        shared_with=share_with or (),
    )
    with notify_at_end(notify, "submit"):
        _run_submission(submission, quiet=quiet, as_json=as_json)


def _run_submission(submission: Submission, *, quiet: bool, as_json: bool) -> None:
    from trainer.cli.terminal_progress import TerminalProgress
    from trainer.provider import run_submission

    try:
        with TerminalProgress(quiet=quiet) as progress:
            submitted = run_submission(submission, progress)
    except KeyboardInterrupt:
        if submission.joint is not None:
            folder = shlex.quote(f"{submission.output}.submission")
            print_line(
                "the job may still train on your dataset; before it does, this takes it back: "
                f"trainer withdraw {folder} --job-url … --policy … -i …",
                err=True,
            )
        raise
    result = submitted.result
    if not as_json and not quiet:
        checks = {
            "the job's evidence": submitted.evidence.checks,
            "the result's receipt": result.checks,
        }
        print_all_checks(checks, development_root=submitted.evidence.development_root)
    if (failure := result.failure) is not None:
        raise failure
    job_spec_sha256 = result.statement.predicate.buildDefinition.externalParameters.jobSpecSha256
    print_summary(
        {
            **_last_lines(result),
            "development_root": submitted.evidence.development_root,
            "checks": check_states((*submitted.evidence.checks, *result.checks)),
            "receipt": {"job_spec_sha256": job_spec_sha256},
            "summary": dict(result.statement.metrics),
            "seconds": dict(submitted.seconds),
            "deletion": submitted.deletion.predicate.model_dump(mode="json")
            if submitted.deletion
            else None,
        },
        as_json=as_json,
        show=_SHOWN_FIELDS,
    )


def print_all_checks(checks: Mapping[str, Sequence[Check]], *, development_root: bool) -> None:
    """Prints lists of checks by title; first of all that they rest on a development root, if they do."""
    from trainer.cli.check_output import print_checks, print_development_banner

    if development_root:
        print_development_banner()
    for title, listed in checks.items():
        print_checks(listed, title=title, development_root=development_root)


def check_states(checks: Sequence[Check]) -> dict[str, str]:
    """Returns code → state, in the order of the checks."""
    return {check.code: check.state.value for check in checks}


def _last_lines(result: OpenedResult) -> dict[str, object]:
    """Returns what a person wants to know at the end: what was learned, where it lies, and what to do next."""
    from trainer.provider import describe_loss, describe_privacy, record_directory

    loss = describe_loss(result.statement.metrics)
    return {
        **({"loss": loss} if loss is not None else {}),
        **_task_line(result.statement.metrics),
        **({"privacy": describe_privacy(result.privacy)} if result.privacy is not None else {}),
        "adapter_dir": str(result.adapter),
        "report": str(result.folder / "report" / "report.html"),
        "record": str(record_directory(result.folder)),
        "next": _next_commands(result),
    }


def _next_commands(result: OpenedResult) -> str:
    model = result.statement.predicate.buildDefinition.externalParameters.jobSpec.get("model")
    name = model.get("model_name_or_path") if isinstance(model, dict) else None
    # The hub has no model that the job took from a directory of the operator's.
    is_local = isinstance(name, str) and name.startswith(("./", "../", "/"))
    folder = shlex.quote(str(result.folder))
    return (
        f"trainer try {folder} PROMPT{' --model DIR' * is_local}, or: trainer receipt show {folder}"
    )


def _task_line(metrics: Mapping[str, JsonValue]) -> dict[str, object]:
    """Returns the task metrics before and after training, as the receipt has them; empty without any."""
    from pydantic import ValidationError

    from trainer.training.task_summary import TaskSummary

    try:
        task = TaskSummary.model_validate(metrics.get("task"))
    except ValidationError:
        # Also what a worker has made up: nothing is shown but names and numbers.
        return {}
    changes = ", ".join(
        f"{name} {before:.1%} → {after:.1%}" for name, before, after in task.changes()
    )
    return {"task": f"{changes}, over {task.judged} held-out row{'s' if task.judged != 1 else ''}"}
