"""The last file of a bundle: a provider's signature over what the bundle holds, and for whom it was sealed.

Anyone can encrypt to a job's recipients, and age names no sender. The signature binds grant, data and recipient to
each other: a grant with other data, or a bundle that its reader sealed again to another VM, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Final

from pydantic import Field

from trainer.encoding import canonical_json, sha256_hex
from trainer.errors import ErrorCode, SealingError
from trainer.models import One, ProviderPublicKey, Strict
from trainer.provider_keys import ProviderKey, is_signed_by

SIGNATURE_NAME: Final = "signature.json"
MAX_SIGNATURE_BYTES: Final = 1024

_DOMAIN: Final = "confidential-trainer/bundle-signature/v1"


class BundleSignature(Strict):
    """`signature.json`: who signed, and the signature (Ed25519, 64 bytes in hex)."""

    version: One
    provider: ProviderPublicKey
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    def canonical(self) -> bytes:
        """Returns the content of `signature.json`: RFC 8785 JSON."""
        return canonical_json(self.model_dump(mode="json"))


Sign = Callable[[str, str], BundleSignature]
"""Digests of grant and manifest → their signature."""

CheckSignature = Callable[[BundleSignature | None, str, str], str | None]
"""Signature of a bundle, digests of its grant and manifest → who signed, or None; raises to refuse the bundle."""


def sign_bundle(
    key: ProviderKey, recipient: str, grant_sha256: str, manifest_sha256: str
) -> BundleSignature:
    """Returns the signature of a bundle.

    Args:
        key: the provider's.
        recipient: the age recipient that the bundle is sealed to.
        grant_sha256: digest of the grant, which names the job spec, in hex.
        manifest_sha256: digest of the manifest, which names the data, in hex.
    """
    return sign_document(key, _DOMAIN, _signed_document(recipient, grant_sha256, manifest_sha256))


def sign_document(key: ProviderKey, domain: str, document: bytes) -> BundleSignature:
    """Returns a provider's signature over a document of one domain."""
    return BundleSignature(
        version=1, provider=key.public, signature=key.sign(domain, document).hex()
    )


def require_signed(
    signature: BundleSignature | None,
    grant_sha256: str,
    manifest_sha256: str,
    *,
    recipients: Sequence[str],
    providers: Sequence[str],
) -> str | None:
    """Returns the provider key of who signed a bundle: a listed one, as `require_signature` demands.

    Args:
        signature: of the bundle; None if it has none.
        grant_sha256: digest of the grant in the bundle, in hex.
        manifest_sha256: digest of the manifest in the bundle, in hex.
        recipients: the reader's own.
        providers: public keys of those whose bundles are accepted; empty: anyone's, signed or not.

    Raises:
        SealingError: GRANT_UNSIGNED, GRANT_SIGNER_UNKNOWN, GRANT_SIGNATURE_INVALID.
    """
    documents = [
        _signed_document(recipient, grant_sha256, manifest_sha256) for recipient in recipients
    ]
    return require_signature(signature, _DOMAIN, documents, providers=providers, what="the bundle")


def require_signature(
    signature: BundleSignature | None,
    domain: str,
    documents: Sequence[bytes],
    *,
    providers: Sequence[str],
    what: str,
) -> str | None:
    """Returns the provider key of who signed one of the documents; None without a signature.

    A signature that does not hold is refused in any case.

    Args:
        signature: None if there is none.
        domain: of the documents.
        documents: what may have been signed.
        providers: public keys of those whose signatures are accepted; empty: anyone's, or none at all.
        what: what is signed, for the error.

    Raises:
        SealingError: GRANT_UNSIGNED, GRANT_SIGNER_UNKNOWN, GRANT_SIGNATURE_INVALID.
    """
    if signature is None:
        if providers:
            raise SealingError(
                ErrorCode.GRANT_UNSIGNED,
                what,
                expected="the signature of a listed provider",
                found="none",
            )
        return None
    if providers and signature.provider not in providers:
        raise SealingError(
            ErrorCode.GRANT_SIGNER_UNKNOWN,
            f"who signed {what}",
            expected="a provider that the job spec lists",
            found=signature.provider,
        )
    signed = bytes.fromhex(signature.signature)
    if not any(
        is_signed_by(signature.provider, signed, domain, document) for document in documents
    ):
        raise SealingError(
            ErrorCode.GRANT_SIGNATURE_INVALID,
            f"the signature of {what}",
            expected="one over this grant, this data and a recipient of this job",
            found="another",
        )
    return signature.provider


def _signed_document(recipient: str, grant_sha256: str, manifest_sha256: str) -> bytes:
    return canonical_json(
        {
            "grant_sha256": grant_sha256,
            "manifest_sha256": manifest_sha256,
            "recipient_sha256": sha256_hex(recipient.encode()),
        }
    )
