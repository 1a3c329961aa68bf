"""Appraisal of a result: the statement is about these files, this job, this dataset and these recipients."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from trainer.attestation.checks import Check, CheckState
from trainer.attestation.result.attestation_result import CLOCK_SKEW_SECONDS
from trainer.encoding import canonical_json, sha256_hex
from trainer.receipt.expected_result import ExpectedResult, GrantTerms, PoolPlace
from trainer.receipt.result_files import ADAPTER_FILES, FAILURE_REPORT
from trainer.receipt.statement import (
    ReceiptOutcome,
    Statement,
    dataset_dependencies,
    model_dependencies,
    recipient_fingerprint,
    reported_privacy,
)
from trainer.spec.pool_names import pool_folder, pool_sha256


def appraise_statement(
    statement: Statement, expected: ExpectedResult, *, first: int = 1
) -> tuple[Check, ...]:
    """Appraises a statement whose signature was verified. All checks are reported; numbers start at `first`.

    1. `receipt-files`: the statement's subjects and the files are equal in names and digests.
    2. `receipt-outcome`: a success has an adapter and no failure report; a failure has one with the stated code.
    3. `receipt-job-spec`: the job spec in the statement has the digest that the statement gives, and that is the
       attested one.
    4. `receipt-app`: the builder is the app whose compose hash was attested.
    5. `receipt-base-model`: every file that the job spec pins is listed once, with its digest.
    6. `receipt-dataset`: the dataset is the one that was sealed; its files are listed, and nothing else is.
    7. `receipt-recipients`: the result was sealed to the recipients of the grant and to no others.
    8. `receipt-times`: the run began after the claims were issued, ended when the receipt was quoted, and not in
       the future.
    9. `receipt-rows`, if their number is known: every row that was sealed was trained on, held out, dropped, or
       not drawn by `data.mix`.
    10. `receipt-privacy`, if grant or job spec ask for it: ε and δ are stated, and within the budget.
    """
    checks = (
        _check_files(statement, expected),
        _check_outcome(statement, expected),
        *_check_origin(statement, expected),
        *_check_inputs(statement, expected),
        _check_recipients(statement, expected),
        _check_times(statement, expected),
        *_check_rows(statement, expected.terms),
        *_check_privacy(statement, expected.terms),
    )
    return tuple(replace(check, number=first + index) for index, check in enumerate(checks))


def _judge(code: str, title: str, expected: str, found: str, *, holds: bool) -> Check:
    state = CheckState.AFFIRMED if holds else CheckState.CONTRAINDICATED
    return Check(0, code, title, state, expected, found, None)


def _check_files(statement: Statement, expected: ExpectedResult) -> Check:
    listed, present = statement.files, dict(expected.files)
    if listed == present:
        found = f"{len(present)} files"
    else:
        names = sorted(
            name for name in listed.keys() | present.keys() if listed.get(name) != present.get(name)
        )
        found = f"differs at {names[0]!r}" + (
            f" and {len(names) - 1} more" if len(names) > 1 else ""
        )
    return _judge(
        "receipt-files",
        "the files are those signed for",
        f"{len(listed)} files",
        found,
        holds=listed == present,
    )


def _check_outcome(statement: Statement, expected: ExpectedResult) -> Check:
    summary = statement.summary
    error = None if summary.error is None else summary.error.value
    if summary.outcome is ReceiptOutcome.SUCCEEDED:
        wanted, is_complete = (
            "an adapter and no failure report",
            statement.files.keys() >= ADAPTER_FILES,
        )
        holds = is_complete and error is None and FAILURE_REPORT not in statement.files
    else:
        wanted, holds = (
            f"a failure report with the code {error}",
            error is not None and expected.failure == error,
        )
    found = (
        "another set of files"
        if expected.failure is None
        else f"a failure report with {expected.failure}"
    )
    return _judge(
        "receipt-outcome",
        "the files are those of such an outcome",
        wanted,
        wanted if holds else found,
        holds=holds,
    )


def _check_origin(statement: Statement, expected: ExpectedResult) -> Iterator[Check]:
    """Yields the checks of what the result was made by: job spec and app."""
    wanted, parameters = (
        expected.job_spec_sha256,
        statement.predicate.buildDefinition.externalParameters,
    )
    # The statement has the text and its digest. The digest is computed again from the text, so that whoever reads
    # the text reads what was attested.
    recomputed = sha256_hex(canonical_json(parameters.jobSpec))
    holds = parameters.jobSpecSha256 == recomputed == wanted
    yield _judge(
        "receipt-job-spec", "made by the attested job spec", wanted, recomputed, holds=holds
    )

    wanted = f"urn:confidential-trainer:compose:sha256:{expected.compose_sha256}"
    found = statement.predicate.runDetails.builder.id
    yield _judge("receipt-app", "made by the attested app", wanted, found, holds=found == wanted)


def _check_inputs(statement: Statement, expected: ExpectedResult) -> Iterator[Check]:
    """Yields the checks of what the result was made from: base model and dataset."""
    build = statement.predicate.buildDefinition
    listed = Counter(
        (resource.name, resource.digest.sha256) for resource in build.resolvedDependencies
    )
    pinned = Counter(model_dependencies(build.externalParameters.jobSpec))
    missing = pinned - listed
    found = f"{len(pinned)} files" if pinned and not missing else f"all but {len(missing)} of them"
    yield _judge(
        "receipt-base-model",
        "trained on the base model that the job spec pins",
        f"{len(pinned)} files",
        found,
        holds=bool(pinned) and not missing,
    )

    code, title = "receipt-dataset", "trained on the dataset that was sealed, and on nothing else"
    manifest = build.internalParameters.datasetManifestSha256
    if expected.terms is None:
        yield Check(
            0,
            code,
            title,
            CheckState.NOT_DEMANDED,
            None,
            manifest,
            "no grant at hand to compare with",
        )
        return
    if (place := expected.terms.pool) is not None:
        yield _check_pool(listed - pinned, manifest, expected.terms.manifest_sha256, place)
        return
    wanted, sealed = (
        expected.terms.manifest_sha256,
        Counter(dataset_dependencies(expected.terms.dataset_files)),
    )
    same_files = listed - pinned == sealed
    found = manifest if same_files else f"{manifest}, with other files"
    yield _judge(code, title, wanted, found, holds=same_files and manifest == wanted)


def _check_pool(
    listed: Counter[tuple[str, str]], manifest: str, own: str, place: PoolPlace
) -> Check:
    """Checks that a joint job was trained on the dataset that was sealed, and one of each other provider."""
    by_name = dict(listed.keys())
    names = [
        name
        for name, _ in dataset_dependencies(
            {pool_folder(n): "" for n in range(1, place.providers + 1)}
        )
    ]
    is_complete = sorted(name for name, _ in listed.elements()) == names
    found = by_name.get(names[place.number - 1], "none")
    holds = (
        is_complete and found == own and manifest == pool_sha256([by_name[name] for name in names])
    )
    title = "trained on the dataset that was sealed, and on one of each other provider"
    others = "" if is_complete or found != own else ", beside other files"
    return _judge("receipt-dataset", title, own, f"{found}{others}", holds=holds)


def _check_rows(statement: Statement, terms: GrantTerms | None) -> tuple[Check, ...]:
    """Returns the check of the number of rows; none if it is not known, or a failed job counted none."""
    counts = statement.metrics.get("rows")
    parts = [
        counts.get(name) if isinstance(counts, dict) else None
        for name in ("train", "eval", "dropped")
    ]
    numbers = [part for part in parts if isinstance(part, int)]
    is_counted = len(numbers) == len(parts)
    is_mixed = bool(_spec_section(statement, "data").get("mix"))
    undrawn = counts.get("undrawn") if isinstance(counts, dict) and is_mixed else None
    numbers += [undrawn] if isinstance(undrawn, int) else []
    if terms is None or terms.rows is None or terms.pool is not None:
        return ()
    if not (is_counted or statement.outcome is ReceiptOutcome.SUCCEEDED):
        return ()
    found = str(sum(numbers)) if is_counted else "no counts"
    title = "every row that was sealed was used, or is counted as dropped or not drawn"
    return (_judge("receipt-rows", title, str(terms.rows), found, holds=found == str(terms.rows)),)


def _check_privacy(statement: Statement, terms: GrantTerms | None) -> tuple[Check, ...]:
    """Returns the check of ε and δ; none if neither grant nor job spec asks for them, or there are no weights.

    What the job spec asks for, the job must state. What the grant demands is a limit on it as well.
    """
    demanded = terms.max_epsilon if terms else None, terms.max_delta if terms else None
    is_demanded = None not in demanded
    section = _spec_section(statement, "privacy")
    is_asked_for = any(
        section.get(key) is not None for key in ("target_epsilon", "noise_multiplier")
    )
    if not (is_demanded or is_asked_for) or statement.outcome is not ReceiptOutcome.SUCCEEDED:
        return ()
    numbers = reported_privacy(statement.privacy)
    holds = all(  # a missing value fails
        number is not None and math.isfinite(number) and (limit is None or number <= limit)
        for number, limit in zip(numbers, demanded, strict=True)
    )
    title = (
        "differentially private within the budget demanded"
        if is_demanded
        else "differentially private"
    )
    wanted = (
        "ε {} at δ {}".format(*demanded) if is_demanded else "ε and δ, as the job spec asks for"
    )
    return (_judge("receipt-privacy", title, wanted, "ε {} at δ {}".format(*numbers), holds=holds),)


def _spec_section(statement: Statement, name: str) -> Mapping[str, Any]:
    """Returns a section of the job spec in the statement, as it is there; empty if it is none."""
    section = statement.predicate.buildDefinition.externalParameters.jobSpec.get(name)
    return section if isinstance(section, dict) else {}


def _check_recipients(statement: Statement, expected: ExpectedResult) -> Check:
    code, found = (
        "receipt-recipients",
        sorted(statement.predicate.buildDefinition.internalParameters.recipients),
    )
    if expected.terms is None and expected.own_recipients is None:
        title = "sealed to the recipients that the provider named"
        return Check(
            0,
            code,
            title,
            CheckState.NOT_DEMANDED,
            None,
            ", ".join(found),
            "no grant to compare with",
        )
    if expected.terms is None:
        # The provider can check that it is a recipient, but not that it is the only one.
        own = sorted(
            recipient_fingerprint(recipient) for recipient in expected.own_recipients or ()
        )
        return _judge(
            code,
            "sealed to us",
            ", ".join(own),
            ", ".join(found),
            holds=not set(own).isdisjoint(found),
        )
    recipients = expected.terms.recipients
    if expected.terms.pool is not None and statement.outcome is ReceiptOutcome.FAILED:
        own_report = sorted(map(recipient_fingerprint, expected.terms.pool.own_recipients))
        recipients = expected.terms.pool.own_recipients if found == own_report else recipients
    wanted = sorted(recipient_fingerprint(recipient) for recipient in recipients)
    title, is_exact = "sealed to those granted, and nobody else", expected.stanzas == len(wanted)
    if found == wanted and not is_exact:
        # A stanza does not show whose it is, but each opens the file for one recipient: one more is a stranger's.
        return _judge(
            code, title, f"{len(wanted)} stanzas", f"{expected.stanzas} stanzas", holds=False
        )
    return _judge(code, title, ", ".join(wanted), ", ".join(found), holds=found == wanted)


def _check_times(statement: Statement, expected: ExpectedResult) -> Check:
    started, finished = statement.predicate.runDetails.metadata.seconds()
    earliest, latest = (
        expected.attested_at - CLOCK_SKEW_SECONDS,
        expected.opened_at + CLOCK_SKEW_SECONDS,
    )
    return _judge(
        "receipt-times",
        "the run lies between the attested claims and now",
        f"from {earliest} to {latest}, quoted at its end",
        f"from {started} to {finished}, quoted at {expected.quoted_at}",
        holds=earliest <= started <= finished <= latest and finished == expected.quoted_at,
    )
