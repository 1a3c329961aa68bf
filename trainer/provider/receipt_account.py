"""What a checked receipt says, as lines for a person: what was made from what, for whom, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic import JsonValue

from trainer.attestation.result.presentation import shortened
from trainer.durations import utc_and_distance
from trainer.provider.receipt_verification import VerifiedReceipt
from trainer.receipt.privacy_statement import PrivacyPredicate
from trainer.receipt.statement import ReceiptOutcome, Statement

_LABEL_COLUMNS = 14


class AccountLine(NamedTuple):
    """A line of an account.

    Args:
        text: the line.
        indent: column at which it continues where it is broken.
    """

    text: str
    indent: int = 0


def give_account(verified: VerifiedReceipt, *, now: int) -> tuple[AccountLine, ...]:
    """Returns the lines: the outcome, what it was made from, who can read it, a timeline, what is not known.

    Args:
        verified: the checked receipt.
        now: Unix seconds, from which the distance of each time is counted.
    """
    times = [
        (utc_and_distance(moment, now=now), event) for moment, event in sorted(_timeline(verified))
    ]
    columns = max(len(moment) for moment, _ in times) + 4
    return (
        AccountLine(_headline(verified)),
        *(
            AccountLine(f"  {name:{_LABEL_COLUMNS}}{value}", 2 + _LABEL_COLUMNS)
            for name, value in _facts(verified)
        ),
        AccountLine(""),
        AccountLine("When"),
        *(AccountLine(f"  {moment:{columns - 2}}{event}", columns) for moment, event in times),
        AccountLine(""),
        AccountLine("Not judged"),
        *(AccountLine(f"  ? {question}", 4) for question in verified.open_questions),
    )


def _headline(verified: VerifiedReceipt) -> str:
    statement = verified.opened.statement
    if statement.outcome is not ReceiptOutcome.SUCCEEDED:
        return f"The job failed: {statement.summary.error}"
    model = statement.predicate.buildDefinition.externalParameters.jobSpec.get("model")
    name = model.get("model_name_or_path") if isinstance(model, dict) else None
    return f"A LoRA adapter for {name}"


def _facts(verified: VerifiedReceipt) -> Iterator[tuple[str, str]]:
    statement, attested = verified.opened.statement, verified.attestation.result
    build = statement.predicate.buildDefinition
    yield from _training_facts(statement)
    files = verified.record.terms.dataset_files if verified.record.terms else {}
    if files:
        names = ", ".join(sorted(files))
        yield (
            "data",
            f"{names} (manifest {shortened(build.internalParameters.datasetManifestSha256, 20)})",
        )
    recipients = f"{len(build.internalParameters.recipients)} recipients"
    yield (
        "read by",
        f"{recipients}, and nobody else"
        if verified.record.terms
        else f"{recipients}; others not checked",
    )
    if verified.opened.privacy is not None:
        yield "privacy", describe_privacy(verified.opened.privacy)
    yield "program", f"compose {shortened(attested.compose_sha256, 20)}, as the policy accepts it"
    yield "job spec", shortened(attested.job_spec_sha256, 20)
    root = "a development root: no TEE is proven" if attested.development_root else "Intel TDX"
    yield "hardware", root
    yield "files", f"{len(statement.files)}, each with the digest that the job signed"


def _training_facts(statement: Statement) -> Iterator[tuple[str, str]]:
    """Yields what the worker reported, as far as it has the expected form."""
    metrics = statement.metrics
    if (loss := describe_loss(metrics)) is not None:
        yield "held-out loss", loss
    rows = metrics.get("rows")
    if isinstance(rows, dict):
        yield "rows", ", ".join(f"{count} {name}" for name, count in rows.items() if count)
    if isinstance(steps := metrics.get("steps"), int):
        yield "steps", str(steps)


def _timeline(verified: VerifiedReceipt) -> Iterator[tuple[int, str]]:
    """Yields Unix seconds and what happened then; the VM's clock is the operator's, which only orders events."""
    metadata = verified.opened.statement.predicate.runDetails.metadata
    started, finished = metadata.seconds()
    attested = verified.attestation.result
    yield attested.claims.issued_at, "the VM stated its keys and its job, under a quote"
    yield verified.record.load_attestation().result.appraised_at, "the provider's tool appraised it"
    yield started, f"the run began ({metadata.invocationId})"
    yield finished, "the run ended; receipt signed, under a quote"
    if verified.deletion is not None:
        predicate = verified.deletion.predicate
        yield (
            max(predicate.destroyed.values()),
            f"plaintext and keys destroyed ({len(predicate.destroyed)} kinds)",
        )
        yield predicate.signedAt, "the job signed what it had destroyed, under a quote"
    yield verified.record.opened_at, f"the result was opened ({verified.record.tool})"


def describe_loss(metrics: Mapping[str, JsonValue]) -> str | None:
    """Returns the held-out loss before and after training; None where no row was held out."""
    before, after = metrics.get("eval_loss_before"), metrics.get("eval_loss_after")
    if not isinstance(before, int | float) or not isinstance(after, int | float):
        return None
    return f"{before:.5g} → {after:.5g} on held-out rows"


def describe_privacy(privacy: PrivacyPredicate) -> str:
    """Returns ε and δ that the weights cost their rows, over all runs that the job knew of."""
    runs = f"{privacy.runs} run{'s' if privacy.runs > 1 else ''}"
    return f"ε = {privacy.epsilon:g} at δ = {privacy.delta:g} for each row, over {runs}"
