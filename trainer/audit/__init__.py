"""Review of compose files before anyone relies on them: what is not as shipped, and what changed in meaning.

`shape` compares with the shipped files, `variations` is the list of what a deployment may choose, `reasons` says
why a deviation matters. An aid to reading, not a proof: image and job spec are what a file of this shape runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.audit.difference import difference
from trainer.audit.document import EMBEDDED, MAX_COMPOSE_BYTES, read_document
from trainer.audit.findings import Change, Finding, Severity
from trainer.audit.judgement import findings
from trainer.audit.variations import VARIATIONS, Variation

__all__ = [
    "EMBEDDED",
    "MAX_COMPOSE_BYTES",
    "VARIATIONS",
    "Change",
    "ComposeReview",
    "Finding",
    "Severity",
    "Variation",
    "audit_compose",
]


@dataclass(frozen=True)
class ComposeReview:
    """What was found in one compose file.

    Args:
        compose_sha256: what the guest measures; None for a bare docker-compose.yaml, which nothing measures.
        job_spec_sha256: digest of the one job spec in the text, or None.
        who_may_submit: who may submit a dataset to that job, in words, or None.
        findings: worst first.
        changes: against the other file, if there was one.
    """

    compose_sha256: str | None
    job_spec_sha256: str | None
    who_may_submit: str | None
    findings: tuple[Finding, ...]
    changes: tuple[Change, ...]

    def reaches(self, threshold: Severity) -> bool:
        """Returns whether some finding is as bad as `threshold`, or worse."""
        return any(finding.severity.rank <= threshold.rank for finding in self.findings)


def audit_compose(data: bytes, *, against: bytes | None = None) -> ComposeReview:
    """Reviews a docker-compose.yaml or an app-compose.json.

    Args:
        data: the exact bytes of the file.
        against: those of another one to compare with, such as the last that was reviewed.

    Raises:
        UsageError: one of them cannot be parsed; with its line.
    """
    document = read_document(data)
    specs = [spec for _, spec in document.job_specs]
    spec = specs[0] if len(specs) == 1 else None
    return ComposeReview(
        compose_sha256=document.compose_sha256,
        job_spec_sha256=spec.sha256() if spec else None,
        who_may_submit=spec.exchange.who_may_submit if spec else None,
        findings=findings(document),
        changes=difference(read_document(against), document) if against is not None else (),
    )
