"""Tokens that a provider signs and shows a job: a document of a known kind, and one signature.

token    base64url(JCS document) "." base64url(signature), without padding
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Final, TypeVar

from pydantic import TypeAdapter

from trainer.encoding import canonical_json
from trainer.models import Strict, parse_strict
from trainer.provider_keys import ProviderKey, is_signed_by

MAX_TOKEN_BYTES: Final = 1024
"""One token; the longest kind has about 550 characters."""

Document = TypeVar("Document", bound=Strict)


def sign_token(document: Strict, domain: str, key: ProviderKey) -> str:
    """Returns the token.

    Args:
        document: what is signed.
        domain: what kind of document it is; a signature is good for one kind.
        key: the provider's.
    """
    text = canonical_json(document.model_dump(mode="json"))
    return f"{_encode(text)}.{_encode(key.sign(domain, text))}"


def read_token(
    token: str, domain: str, providers: Sequence[str], model: type[Document]
) -> tuple[str, Document] | None:
    """Returns who signed a token and its document; None if no listed provider signed one of this kind.

    Nothing of the document is parsed before that is known.

    Args:
        token: as received.
        domain: the kind of document.
        providers: public keys of the listed providers.
        model: the type of the document.
    """
    document_text, _, signature_text = token.partition(".")
    try:
        document, signature = _decode(document_text), _decode(signature_text)
    except (UnicodeEncodeError, binascii.Error):
        return None
    for provider in providers:
        if is_signed_by(provider, signature, domain, document):
            try:
                return provider, parse_strict(TypeAdapter(model), document)
            except ValueError:
                return None
    return None


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    data = text.encode("ascii")
    return base64.b64decode(data + b"=" * (-len(data) % 4), altchars=b"-_", validate=True)
