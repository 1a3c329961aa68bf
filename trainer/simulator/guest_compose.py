"""How the simulated guest reads app-compose.json: as JSON, and for the key provider that it names."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.attestation.dstack.compose import parse_app_compose
from trainer.attestation.dstack.key_source import (
    IDENTITY,
    KEY_SERVICE,
    NO_KEY_SERVICE,
    KeySource,
    read_key_source,
)
from trainer.errors import ErrorCode, UsageError


def parse_compose(text: str) -> dict[str, object]:
    """Parses an app-compose.json.

    Raises:
        UsageError: not a JSON object.
    """
    try:
        return parse_app_compose(text)
    except ValueError as error:
        raise UsageError(ErrorCode.USAGE, f"app-compose: {error}") from None


def simulated_key_source(app: Mapping[str, object]) -> KeySource:
    """Returns the key source of an app-compose.json, as the guest picks it.

    Raises:
        UsageError: a key provider that is not simulated, or an identity with which no guest boots.
    """
    source = read_key_source(app)
    if source.provider not in (NO_KEY_SERVICE, KEY_SERVICE):
        found = source.provider or "keys that contradict each other"
        raise UsageError(
            ErrorCode.USAGE, "app-compose: key_provider", expected="none or kms", found=found
        )
    if source.identity and not IDENTITY.fullmatch(source.identity):
        raise UsageError(
            ErrorCode.USAGE,
            "app-compose: key_provider_id",
            expected="16 to 2048 bytes in hex, or nothing",
            found="another text",
        )
    return source
