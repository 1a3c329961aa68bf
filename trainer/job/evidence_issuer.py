"""Issues the job's evidence: claims over the provider's nonce, and the quote that binds them to this VM."""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trainer import __version__
from trainer.attestation.claims.binding import gpu_evidence_sha256
from trainer.attestation.evidence import DatasetClaims, Evidence
from trainer.job.job_keys import JobKeys
from trainer.sandbox.properties import SandboxReport
from trainer.spec import JobSpec
from trainer.tee.gpu_reports import collect_gpu_evidence
from trainer.tee.quoted_evidence import collect

if TYPE_CHECKING:
    from trainer.tee.guest_agent import GuestAgent

_REPORTED_SOFTWARE: Final = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "unsloth",
    "opacus",
    "cryptography",
)


@dataclass(frozen=True)
class EvidenceIssuer:
    """Issues evidence for one job.

    Args:
        agent: the guest agent, which issues quotes.
        spec: the job spec.
        keys: the job's keys.
        sandbox: the sandbox properties that the processes measured.
        tls_key: the front's TLS key, DER SubjectPublicKeyInfo in hex; None with a spool.
    """

    agent: GuestAgent
    spec: JobSpec
    keys: JobKeys
    sandbox: SandboxReport
    tls_key: str | None

    def evidence(self, nonce: str) -> Evidence:
        """Returns fresh evidence with claims over `nonce` (64 hex digits).

        Raises:
            UnavailableError: the guest agent or the GPU driver gives no answer.
        """
        # The GPU's report comes first: the claims contain its digest, and the quote covers the claims. An operator
        # therefore cannot pair this VM's quote with the report of a GPU elsewhere.
        gpu = collect_gpu_evidence(self.agent, nonce)
        now = int(time.time())
        claims = DatasetClaims(
            version=1,
            purpose="dataset",
            nonce=nonce,
            job_spec_sha256=self.spec.sha256(),
            recipients=self.keys.recipients,
            derived_keys=self.keys.derived_keys,
            receipt_key=self.keys.receipt_public_key,
            tls_key=self.tls_key,
            gpu_evidence_sha256=gpu_evidence_sha256(gpu),
            sandbox={name.value: holds for name, holds in sorted(self.sandbox.items())},
            software=dict(software_versions()),
            issued_at=now,
            # A quote has no time of its own; the provider refuses evidence whose claims have expired.
            expires_at=now + self.spec.tee.evidence_lifetime_seconds,
        )
        return collect(
            self.agent,
            claims,
            possession=self.keys.prove_possession(claims),
            gpu=gpu,
            key_chain=self.keys.key_chain,
        )


def software_versions() -> dict[str, str]:
    """Returns the installed versions of this package and of the libraries that influence the result."""
    versions = {"confidential-trainer": __version__}
    for name in _REPORTED_SOFTWARE:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if version:  # None, despite its type, if Landlock denies access to the package's metadata
            versions[name] = version
    return versions
