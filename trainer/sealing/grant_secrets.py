"""What is derived from the secret of a grant: one value for each use, so that none of them serves for another use.

    events token        shown to the front, which streams private events to whoever shows it
    acknowledgement     shown to the front when a result has arrived; of one result alone
    state secret        enters the state key of the job, which seals its checkpoints; shown to nobody
    re-grant key        authenticates a re-grant; shown to nobody
    manifest salt       in the manifest of the dataset, inside the bundle; shown to nobody

Each is 32 bytes of HKDF-SHA256(secret, no salt, info = domain ‖ 0 ‖ context). So the front, which faces
the network, learns nothing that checkpoints are sealed with; what acknowledges one result acknowledges no other.
"""

from __future__ import annotations

from typing import Final

from trainer.sealing.age.identity import hkdf_sha256
from trainer.sealing.wiping import wiped

_EVENTS_DOMAIN: Final = "confidential-trainer/grant-events/v1"
_ACKNOWLEDGEMENT_DOMAIN: Final = "confidential-trainer/grant-acknowledgement/v1"
_SALT_DOMAIN: Final = "confidential-trainer/manifest-salt/v1"
_STATE_DOMAIN: Final = "confidential-trainer/grant-state/v1"
_REGRANT_DOMAIN: Final = "confidential-trainer/grant-regrant/v1"


def events_token(secret: str) -> str:
    """Returns the bearer token for private events, 64 hex digits.

    Args:
        secret: of the grant, 64 hex digits.
    """
    return _derive(secret, _EVENTS_DOMAIN)


def acknowledgement(secret: str, result_sha256: str) -> str:
    """Returns what acknowledges one sealed result or failure report, 64 hex digits.

    The result's digest is its context: the acknowledgement of an interrupted job's report, which a spool shows to
    its operator, must not acknowledge the result that follows under the same secret.

    Args:
        secret: of the grant, 64 hex digits.
        result_sha256: digest of the sealed result, in hex.
    """
    return _derive(secret, _ACKNOWLEDGEMENT_DOMAIN, bytes.fromhex(result_sha256))


def state_secret(secret: str) -> str:
    """Returns this grant's part in the state key of the job, 64 hex digits.

    Args:
        secret: of the grant, 64 hex digits.
    """
    return _derive(secret, _STATE_DOMAIN)


def regrant_key(secret: str) -> bytearray:
    """Returns the key of the tag of re-grants, 32 bytes; the caller wipes it.

    Args:
        secret: of the grant, 64 hex digits.
    """
    return hkdf_sha256(bytes.fromhex(secret), b"", _REGRANT_DOMAIN.encode() + b"\0")


def manifest_salt(secret: str) -> str:
    """Returns the salt of the dataset's manifest, 64 hex digits.

    A dataset that is sealed again under the secret of an earlier grant has the same manifest, so that a job finds
    the checkpoints it made from it.

    Args:
        secret: of the grant, 64 hex digits.
    """
    return _derive(secret, _SALT_DOMAIN)


def _derive(secret: str, domain: str, context: bytes = b"") -> str:
    with wiped(
        hkdf_sha256(bytes.fromhex(secret), b"", domain.encode() + b"\0" + context)
    ) as derived:
        return derived.hex()
