"""The adapter's OpenSSF model signature: the stock tool reads it, and nothing else than these files has it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from trainer.encoding import canonical_json, sha256_hex
from trainer.errors import ErrorCode, VerificationError
from trainer.receipt.dsse import public_key_der, sign_envelope
from trainer.receipt.model_signature import (
    MODEL_SIGNATURE,
    public_key_pem,
    sign_model,
    verify_model_signature,
)

KEY = ec.derive_private_key(11, ec.SECP256R1())
OTHER = ec.derive_private_key(12, ec.SECP256R1())
CONTENT = {
    "adapter/adapter_config.json": b"{}",
    "adapter/adapter_model.safetensors": b"\x02\0\0\0\0\0\0\0{}",
    "adapter/README.md": b"card",
    "report/summary.json": b"{}",
}
FILES = {name: sha256_hex(content) for name, content in CONTENT.items()}


def verify(document: bytes, files: Mapping[str, str] = FILES) -> None:
    verify_model_signature(document, files, public_key_der(KEY.public_key()))


def test_it_is_over_the_adapter_alone() -> None:
    document = sign_model(FILES, KEY)
    verify(document)
    verify(document, {**FILES, "report/summary.json": "0" * 64})


@pytest.mark.parametrize(
    "files",
    [
        {**FILES, "adapter/README.md": "0" * 64},
        {**FILES, "adapter/more.json": "0" * 64},
        {name: digest for name, digest in FILES.items() if name != "adapter/README.md"},
    ],
)
def test_other_files_are_refused(files: Mapping[str, str]) -> None:
    with pytest.raises(VerificationError, match="over something else"):
        verify(sign_model(FILES, KEY), files)


def test_another_key_and_another_statement_of_the_same_key_are_refused() -> None:
    with pytest.raises(VerificationError, match="receipt key"):
        verify(sign_model(FILES, OTHER))
    bundle = json.loads(sign_model(FILES, KEY))
    bundle["dsseEnvelope"] = json.loads(sign_envelope(b'{"_type": "another statement"}', KEY))
    with pytest.raises(VerificationError) as caught:
        verify(canonical_json(bundle))
    assert caught.value.code is ErrorCode.RECEIPT_MISMATCH
    bundle = json.loads(sign_model(FILES, KEY))
    bundle["verificationMaterial"]["publicKey"]["hint"] = "0" * 64
    with pytest.raises(VerificationError, match="over something else"):
        verify(canonical_json(bundle))
    for document in (b"", b"{}", canonical_json({**bundle, "more": 1})):
        with pytest.raises(VerificationError, match=MODEL_SIGNATURE):
            verify(document)


def test_the_stock_tool_accepts_the_adapter_and_refuses_a_changed_one(tmp_path: Path) -> None:
    verifying = pytest.importorskip("model_signing.verifying")
    for name, content in CONTENT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    signature, key = tmp_path / MODEL_SIGNATURE, tmp_path / "receipt-key.pem"
    signature.write_bytes(sign_model(FILES, KEY))
    key.write_bytes(public_key_pem(KEY.public_key()))
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    verifier.verify(tmp_path / "adapter", signature)
    (tmp_path / "adapter" / "README.md").write_bytes(b"Card")
    with pytest.raises(ValueError, match=r"README\.md"):
        verifier.verify(tmp_path / "adapter", signature)


def test_the_payload_is_of_the_published_form() -> None:
    envelope = json.loads(sign_model(FILES, KEY))["dsseEnvelope"]
    payload = json.loads(base64.b64decode(envelope["payload"]))
    assert payload["predicateType"] == "https://model_signing/signature/v1.0"
    assert [resource["name"] for resource in payload["predicate"]["resources"]] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
