"""The re-grant: how a provider lets a job that was restarted open the sealed dataset that it kept.

    provider   keeps the file key of the dataset, wrapped to its own identity
               verifies the restarted job, and wraps the file key again, to a recipient of this start
    job        opens the payload that it kept with the new header: header ‖ nonce ‖ chunks is an age file again

A re-grant is a few kilobytes whatever the size of the dataset. Its header says nothing about who made it, and a
recipient that is derived by a key service is the same in every start. So a tag, under a key that comes from the
secret of the grant, binds the header to the grant and the manifest in the bundle, to the job spec, to the start
that was verified (by its instance recipient, which each start makes anew and attests) and to a new time of expiry.
The grant is the first file of the bundle: the tag is verified before any data is written.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import Field, TypeAdapter

from trainer.attestation.result.attestation_result import AttestationResult
from trainer.durations import utc
from trainer.encoding import canonical_json, sha256_hex
from trainer.errors import ErrorCode, SealingError
from trainer.models import MAX_REGRANT_BYTES, One, Sha256Hex, Strict, UnixTime, parse_strict
from trainer.provider_keys import ProviderKey
from trainer.sealing.age import Identity, parse_recipient, rewrap_header
from trainer.sealing.bundle import Grant
from trainer.sealing.bundle_signature import BundleSignature, require_signature, sign_document
from trainer.sealing.grant_secrets import regrant_key
from trainer.sealing.wiping import wiped

_SIGNATURE_DOMAIN: Final = "confidential-trainer/regrant-signature/v1"


class Regrant(Strict):
    """What the provider sends to a restarted job.

    Attributes:
        header: age header of the dataset's file key, for a recipient of the restarted job; ASCII.
        job_spec_sha256: digest of the job spec, in hex.
        grant_sha256: digest of the grant in the bundle.
        manifest_sha256: digest of the manifest in the bundle.
        recipient_sha256: digest of the text of the recipient that `header` is for.
        instance_sha256: digest of the text of the instance recipient of the start that was verified.
        expires_at: Unix time in seconds, in place of the grant's.
        signature: the provider's over everything above; None without a provider key.
        tag: HMAC-SHA256 under `grant_secrets.regrant_key` over everything above.
    """

    version: One
    header: Annotated[str, Field(pattern=r"^[\n -~]*$", max_length=MAX_REGRANT_BYTES)]
    job_spec_sha256: Sha256Hex
    grant_sha256: Sha256Hex
    manifest_sha256: Sha256Hex
    recipient_sha256: Sha256Hex
    instance_sha256: Sha256Hex
    expires_at: UnixTime
    signature: BundleSignature | None = None
    tag: Sha256Hex = "0" * 64

    def canonical(self) -> bytes:
        """Returns what is sent: RFC 8785 JSON."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True))

    def signed_document(self) -> bytes:
        """Returns what the signature covers: RFC 8785 JSON of all fields but `signature` and `tag`."""
        return canonical_json(self.model_dump(mode="json", exclude={"signature", "tag"}))

    def signed(self, key: ProviderKey) -> Regrant:
        """Returns it with a provider's signature; the tag has to be made after it."""
        return self.model_copy(
            update={"signature": sign_document(key, _SIGNATURE_DOMAIN, self.signed_document())}
        )

    def tagged(self, secret: str) -> Regrant:
        """Returns it with the tag under the secret of a grant."""
        return self.model_copy(update={"tag": self.compute_tag(secret)})

    def compute_tag(self, secret: str) -> str:
        """Returns the tag under the secret of a grant: over the RFC 8785 JSON of all fields but `tag`, in hex."""
        document = canonical_json(self.model_dump(mode="json", exclude={"tag"}, exclude_none=True))
        with wiped(regrant_key(secret)) as key:
            return hmac.digest(key, document, "sha256").hex()

    def require_addressed(
        self, *, job_spec_sha256: str, instance: str | None, recipients: Sequence[str], now: int
    ) -> None:
        """Requires that the re-grant is for this job, this start of it, and this time. Nothing is authentic yet.

        Args:
            job_spec_sha256: digest of the job's own spec.
            instance: the instance recipient of this start; None accepts no re-grant.
            recipients: all recipients of this start.
            now: Unix time in seconds.

        Raises:
            SealingError: GRANT_MISMATCH, GRANT_EXPIRED, REGRANT_INVALID.
        """
        if self.job_spec_sha256 != job_spec_sha256:
            raise SealingError(
                ErrorCode.GRANT_MISMATCH,
                "the re-grant is for another job spec",
                expected=job_spec_sha256,
                found=self.job_spec_sha256,
            )
        if instance is None or self.instance_sha256 != sha256_hex(instance.encode()):
            raise _invalid("start of the job", "this one", "another")
        if self.recipient_sha256 not in {
            sha256_hex(recipient.encode()) for recipient in recipients
        }:
            raise _invalid("recipient of the header", "one of this job's", "another")
        if now >= self.expires_at:
            expected = f"a time before {utc(self.expires_at)}"
            raise SealingError(
                ErrorCode.GRANT_EXPIRED,
                "the re-grant has expired",
                expected=expected,
                found=utc(now),
            )

    def require_authentic(self, grant: Grant) -> None:
        """Requires that the provider who made a grant made the re-grant for it.

        Raises:
            SealingError: REGRANT_INVALID.
        """
        if not hmac.compare_digest(self.compute_tag(grant.secret), self.tag):
            raise _invalid("tag", "one under the grant's secret", "another")
        if self.grant_sha256 != grant.sha256():
            raise _invalid("grant", "the one in the dataset", "another")

    def require_manifest(self, manifest_sha256: str, providers: Sequence[str]) -> str | None:
        """Requires that the re-grant is for this dataset; returns who signed it, as `require_signature` does.

        Args:
            manifest_sha256: digest of the manifest in the bundle, in hex.
            providers: as for `require_signature`.

        Raises:
            SealingError: REGRANT_INVALID; as `require_signature`.
        """
        if self.manifest_sha256 != manifest_sha256:
            raise _invalid("manifest", "the one in the dataset", "another")
        documents = [self.signed_document()]
        return require_signature(
            self.signature, _SIGNATURE_DOMAIN, documents, providers=providers, what="the re-grant"
        )


_REGRANT: Final = TypeAdapter(Regrant)


def make_regrant(
    header: bytes,
    identities: Sequence[Identity],
    grant: Grant,
    manifest_sha256: str,
    to: AttestationResult,
    *,
    now: int,
    expires_at: int,
    key: ProviderKey | None = None,
) -> Regrant:
    """Wraps the file key of a sealed dataset to the recipient that an attestation result names.

    Like `seal`, it takes an `AttestationResult` and not a recipient: a file key cannot be wrapped to a key whose
    job was not appraised.

    Args:
        header: header of the dataset for the provider's own recipients.
        identities: the provider's.
        grant: the grant in the bundle.
        manifest_sha256: digest of the manifest in the bundle, in hex.
        to: the result of an appraisal of the restarted job; must be a fresh pass that has not expired.
        now: Unix time in seconds.
        expires_at: Unix time until which the job may open the dataset.
        key: the provider's, which signs the re-grant; None leaves it unsigned.

    Raises:
        VerificationError: VERIFICATION_FAILED, ATTESTATION_EXPIRED.
        SealingError: GRANT_MISMATCH; NO_IDENTITY_MATCH, HEADER_INVALID or HEADER_MAC: `header` does not open.
    """
    to.require_sealable(now)
    if grant.job_spec_sha256 != to.claims.job_spec_sha256:
        raise SealingError(
            ErrorCode.GRANT_MISMATCH,
            "the grant is for another job spec than the attestation result",
            expected=to.claims.job_spec_sha256,
            found=grant.job_spec_sha256,
        )
    regrant = Regrant(
        version=1,
        header=rewrap_header(header, identities, [parse_recipient(to.recipient)]).decode("ascii"),
        job_spec_sha256=grant.job_spec_sha256,
        grant_sha256=grant.sha256(),
        manifest_sha256=manifest_sha256,
        recipient_sha256=sha256_hex(to.recipient.encode()),
        instance_sha256=sha256_hex(to.claims.recipients.instance.encode()),
        expires_at=expires_at,
    )
    return (regrant.signed(key) if key is not None else regrant).tagged(grant.secret)


def parse_regrant(data: bytes) -> Regrant:
    """Parses a re-grant that anyone may have sent.

    Raises:
        SealingError: REGRANT_INVALID: it is larger than `MAX_REGRANT_BYTES`, or not a re-grant.
    """
    if len(data) > MAX_REGRANT_BYTES:
        raise _invalid("bytes", f"at most {MAX_REGRANT_BYTES}", len(data))
    try:
        return parse_strict(_REGRANT, data)
    except ValueError:
        raise _invalid("document", "a re-grant", "another") from None


def _invalid(what: str, expected: object, found: object) -> SealingError:
    return SealingError(
        ErrorCode.REGRANT_INVALID, f"re-grant: {what}", expected=expected, found=found
    )
