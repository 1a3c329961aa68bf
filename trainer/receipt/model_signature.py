"""`model.sig`: an OpenSSF model signature over the adapter, which `model_signing verify key` checks by itself.

    bundle  = {"mediaType": …, "verificationMaterial": {"publicKey": {"hint": SHA-256 of the key's PEM}, …},
               "dsseEnvelope": envelope}
    payload = in-toto Statement v1: the files of the model with their SHA-256, in the order of their names, and as
              subject the SHA-256 over these digests, one after the other

The receipt key signs it, and the receipt lists the file: what it adds is a form that others read. Sources: OpenSSF
Model Signing v1.0 (github.com/ossf/model-signing-spec), Sigstore bundle 0.3 (docs.sigstore.dev/about/bundle).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field, TypeAdapter

from trainer.encoding import canonical_json, sha256_hex
from trainer.errors import ErrorCode, VerificationError
from trainer.models import Sha256Hex, Strict
from trainer.receipt.dsse import (
    Envelope,
    load_public_key,
    parse_envelope,
    sign_envelope,
    verify_envelope,
)
from trainer.receipt.statement import STATEMENT_TYPE, parse_receipt_json

MODEL_SIGNATURE: Final = "model.sig"
SIGNED_MODEL: Final = "adapter"
"""The directory that is signed, and the name of the model in the signature."""

BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"


class _KeyHint(Strict):
    hint: Sha256Hex


class _VerificationMaterial(Strict):
    publicKey: _KeyHint  # noqa: N815 -- the format's spelling
    tlogEntries: Annotated[tuple[None, ...], Field(max_length=0)]  # noqa: N815


class _Bundle(Strict):
    mediaType: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]  # noqa: N815
    verificationMaterial: _VerificationMaterial  # noqa: N815
    dsseEnvelope: Envelope  # noqa: N815


_BUNDLE: Final = TypeAdapter(_Bundle)


def public_key_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """Returns a public key in PEM, as `model_signing` and OpenSSL read it."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def sign_model(files: Mapping[str, str], key: ec.EllipticCurvePrivateKey) -> bytes:
    """Returns the signature file.

    Args:
        files: maps each file of the result to its SHA-256; those below `adapter/` are signed.
        key: the receipt key.
    """
    envelope = parse_envelope(sign_envelope(_statement(files), key))
    hint = sha256_hex(public_key_pem(key.public_key()))
    bundle = _Bundle(
        mediaType=BUNDLE_TYPE,
        verificationMaterial=_VerificationMaterial(publicKey=_KeyHint(hint=hint), tlogEntries=()),
        dsseEnvelope=envelope,
    )
    return canonical_json(bundle.model_dump(mode="json"))


def verify_model_signature(document: bytes, files: Mapping[str, str], public_key: bytes) -> None:
    """Verifies that a signature file is the one over these files by the receipt key.

    Args:
        document: the content of `model.sig`.
        files: as for `sign_model`.
        public_key: DER SubjectPublicKeyInfo of the receipt key.

    Raises:
        VerificationError: RECEIPT_INVALID or RECEIPT_MISMATCH.
    """
    bundle = parse_receipt_json(_BUNDLE, document, what=MODEL_SIGNATURE)
    payload = verify_envelope(
        canonical_json(bundle.dsseEnvelope.model_dump(mode="json")), public_key
    )
    hint = sha256_hex(public_key_pem(load_public_key(public_key)))
    # One content has one signature file: whatever else the same key signed is not a model signature.
    if payload != _statement(files) or bundle.verificationMaterial.publicKey.hint != hint:
        raise VerificationError(
            ErrorCode.RECEIPT_MISMATCH,
            f"{MODEL_SIGNATURE} is over something else",
            expected="the files of the adapter, by the receipt key",
            found="other files, or another key",
            hint="do not use this result",
        )


def _statement(files: Mapping[str, str]) -> bytes:
    prefix = f"{SIGNED_MODEL}/"
    signed = {
        name.removeprefix(prefix): digest
        for name, digest in files.items()
        if name.startswith(prefix)
    }
    digests = [signed[name] for name in sorted(signed)]
    model_digest = hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": SIGNED_MODEL, "digest": {"sha256": model_digest}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                    "ignore_paths": [],
                },
                "resources": [
                    {"name": name, "algorithm": "sha256", "digest": signed[name]}
                    for name in sorted(signed)
                ],
            },
        }
    )
