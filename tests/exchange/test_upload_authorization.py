"""The authorisation of an upload: what a listed provider signed is good for one upload to one start of one job."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from trainer.encoding import canonical_json
from trainer.exchange.signed_token import MAX_TOKEN_BYTES
from trainer.exchange.upload_authorization import (
    UploadAuthorization,
    UploadGate,
    UploadScope,
    sign_authorization,
)
from trainer.provider_keys import ProviderKey

NOW = 1_800_000_000
PROVIDER, STRANGER = ProviderKey(b"p" * 32), ProviderKey(b"s" * 32)
TLS, DERIVED, INSTANCE = "1a" * 32, "2b" * 32, "3c" * 32
SCOPE = UploadScope(job_spec_sha256="4d" * 32, recipient_sha256=(DERIVED, INSTANCE))
GATE = UploadGate((ProviderKey(b"o" * 32).public, PROVIDER.public), TLS)
GOOD = UploadAuthorization(
    version=1,
    expires_at=NOW + 1,
    job_spec_sha256=SCOPE.job_spec_sha256,
    recipient_sha256=INSTANCE,
    size=4096,
    tls_spki_sha256=TLS,
)


def admits(
    token: str | None,
    *,
    gate: UploadGate = GATE,
    scope: UploadScope | None = SCOPE,
    size: int = 4096,
) -> bool:
    return gate.admits(token, size, scope, now=NOW)


def test_a_listed_provider_is_admitted() -> None:
    token = sign_authorization(GOOD, PROVIDER)
    assert admits(token)
    assert admits(
        sign_authorization(GOOD.model_copy(update={"recipient_sha256": DERIVED}), PROVIDER)
    )
    assert len(token) <= MAX_TOKEN_BYTES


def test_without_a_list_anyone_is_admitted() -> None:
    assert admits(None, gate=UploadGate((), TLS), scope=None)


@pytest.mark.parametrize(
    "changes",
    [
        {"tls_spki_sha256": "00" * 32},
        {"tls_spki_sha256": None},
        {"recipient_sha256": "00" * 32},
        {"job_spec_sha256": "00" * 32},
        {"size": 4097},
        {"size": 4095},
        {"expires_at": NOW},
    ],
    ids=["another start", "a spool", "another VM", "another job", "smaller", "larger", "expired"],
)
def test_a_token_for_something_else_is_refused(changes: dict[str, Any]) -> None:
    assert not admits(sign_authorization(GOOD.model_copy(update=changes), PROVIDER))


def test_a_token_of_the_network_is_worth_nothing_in_a_spool() -> None:
    spool = UploadGate(GATE.providers, None)
    assert not admits(sign_authorization(GOOD, PROVIDER), gate=spool)
    assert admits(
        sign_authorization(GOOD.model_copy(update={"tls_spki_sha256": None}), PROVIDER), gate=spool
    )


def test_a_stranger_is_refused() -> None:
    good, forged = sign_authorization(GOOD, PROVIDER), sign_authorization(GOOD, STRANGER)
    document, _, signature = good.partition(".")
    larger = canonical_json(GOOD.model_copy(update={"size": 1 << 40}).model_dump(mode="json"))
    tokens = (
        None, "", ".", forged, document, f"{document}.", f"{document}.{forged.partition('.')[2]}",
        f"{base64.urlsafe_b64encode(larger).decode().rstrip('=')}.{signature}", f"{good}.{signature}",
        f"{good}\xe9", good[:-2], f"{document}!.{signature}",
    )  # fmt: skip
    assert [token for token in tokens if admits(token)] == []


def test_nobody_is_admitted_before_the_job_has_keys() -> None:
    assert not admits(sign_authorization(GOOD, PROVIDER), scope=None)


def test_what_a_provider_signed_for_another_use_authorises_nothing() -> None:
    document = canonical_json(GOOD.model_dump(mode="json"))
    parts = (document, PROVIDER.sign("confidential-trainer/bundle-signature/v1", document))
    assert not admits(
        ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    )


@pytest.mark.parametrize(
    "document", [b"{}", b"[]", b"\xff", b'{"version":1,"version":1}', b"x" * 500]
)
def test_what_a_provider_signed_and_is_no_authorisation_is_refused(document: bytes) -> None:
    parts = (document, PROVIDER.sign("confidential-trainer/upload-authorization/v1", document))
    assert not admits(
        ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    )
