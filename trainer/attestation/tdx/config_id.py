"""MRCONFIGID: the configuration of the VM as the host gave it to the TDX module before the VM ran.

dstack writes four forms, which the first byte distinguishes; the rest of the 48 bytes is zero:

    00  unset
    01  compose hash (32 bytes)
    02  Keccak-256 of compose hash, app id (20 bytes), one byte for the kind of key provider, its identity
    03  SHA-256 of "dstack-mr-config-v3:", 0x00 and a configuration document in JCS

Evidence does not contain the configuration document. All of its values are in the event log, so the verifier
writes it again from there. The host chooses which optional fields it has, so the verifier tries every choice.

Source: dstack 0.6.0, `dstack-types` (`mr_config.rs`).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Final

from trainer.attestation.dstack.event_log import (
    REGISTER_BYTES,
    Event,
    key_provider,
    payload,
    payloads,
)
from trainer.attestation.dstack.keccak import keccak256
from trainer.encoding import canonical_json

UNSET: Final = bytes(REGISTER_BYTES)
DOCUMENT_DOMAIN: Final = b"dstack-mr-config-v3:\0"
FORMS: Final = {
    0: "unset",
    1: "compose hash",
    2: "compose hash, app id and key provider",
    3: "whole configuration",
}

_KINDS: Final = {"none": "none", "local-sgx": "local", "kms": "kms", "tpm": "tpm"}
"""Name in the key-provider event → name in the configuration document."""
_KIND_BYTES: Final = {"none": 0, "local": 1, "kms": 2, "tpm": 3}
_OPTIONAL: Final = (
    "app_id",
    "gpu_policy_hash",
    "key_provider_id",
    "instance_id",
    "init_script_hashes",
)


def acceptable_config_ids(
    form: int, compose_hash: bytes, events: Sequence[Event]
) -> frozenset[bytes]:
    """Returns every value of MRCONFIGID in one form that agrees with the event log.

    Args:
        form: first byte of the register.
        compose_hash: 32 bytes.
        events: the event log; matters for forms 2 and 3 only.

    Returns:
        Values of 48 bytes; none for an unknown form, or where the event log names no known key provider.
    """
    # The host writes the register before the VM runs and chooses the form. A value that is set must name this
    # app: otherwise the VM was started for another configuration.
    if form == 0:
        return frozenset({UNSET})
    if form == 1:
        return frozenset({_config_id(1, compose_hash)})
    provider = key_provider(events)
    if provider is None or provider.name not in _KINDS:
        return frozenset()
    kind, identity = _KINDS[provider.name], _from_hex(provider.identity)
    if form == 2:
        prefix = compose_hash + (payload(events, "app-id") or b"") + bytes([_KIND_BYTES[kind]])
        # With the provider's identity, and without it, as for an app that does not pin it.
        return frozenset(_config_id(2, keccak256(prefix + each)) for each in (identity, b""))
    if form == 3:
        digests = _document_digests(compose_hash, kind, identity, events)
        return frozenset(_config_id(3, digest) for digest in digests)
    return frozenset()


def _config_id(form: int, digest: bytes) -> bytes:
    return (bytes([form]) + digest).ljust(REGISTER_BYTES, b"\0")


def _document_digests(
    compose_hash: bytes, kind: str, identity: bytes, events: Sequence[Event]
) -> Iterator[bytes]:
    """Yields the digest of the configuration document for every choice of its optional fields: 2^5 digests."""
    fixed = {"version": 3, "compose_hash": compose_hash.hex(), "key_provider": kind}
    measured = {
        "app_id": (payload(events, "app-id") or b"").hex(),
        "gpu_policy_hash": (payload(events, "gpu-policy-hash") or b"").hex(),
        "key_provider_id": identity.hex(),
        "instance_id": (payload(events, "instance-id") or b"").hex(),
        "init_script_hashes": [script.hex() for script in payloads(events, "init-script-hash")],
    }
    for count in range(len(_OPTIONAL) + 1):
        for names in itertools.combinations(_OPTIONAL, count):
            document = canonical_json(fixed | {name: measured[name] for name in names})
            yield hashlib.sha256(DOCUMENT_DOMAIN + document).digest()


def _from_hex(text: str) -> bytes:
    """Returns the identity's bytes; empty where it is not hex, which is the form that dstack hashes."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
