"""Attacks on the claims and on the moment: name -> (code that must answer, change)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from tests.attestation.tampering import ed25519_key, honest_quote, p384_key, stale_claims
from trainer.encoding import sha256_hex
from trainer.simulator.claimed_keys import possession

if TYPE_CHECKING:
    from trainer.simulator.appraisal_world import World


def claiming_afterwards(world: World, **changes: Any) -> World:
    """Claims changed after the quote, and signed again by a VM that has the keys."""
    claims = world.claims.model_copy(update=changes)
    return world.showing(claims=claims, possession=possession(world.vm, claims))


def ending_tls(world: World, key: str) -> World:
    """Claims of a front whose TLS key is `key`, and a connection to it."""
    return world.change(peer=sha256_hex(bytes.fromhex(key))).claiming(tls_key=key)


def compressed(spki: str) -> str:
    """The same P-256 key with its point in the short form: 33 bytes in place of 65."""
    key = load_der_public_key(bytes.fromhex(spki))
    point = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    return "3039301306072a8648ce3d020106082a8648ce3d030107032200" + point.hex()


ATTACKS: dict[str, tuple[str, Callable[[World], World]]] = {
    "claims changed after the quote": (
        "report-data",
        lambda w: claiming_afterwards(w, software={"trainer": "0.2.0"}),
    ),
    "the last byte of report_data": (
        "report-data",
        lambda w: w.change(td={"report_data": honest_quote(w)[568:631] + b"\0"}),
    ),
    "another nonce": ("nonce", lambda w: w.change(nonce="02" * 32)),
    "a nonce that was used before": ("nonce-unused", lambda w: w.change(nonce_unused=False)),
    "expired claims": ("claims-validity", lambda w: w.claiming(expires_at=w.now)),
    "claims from the future": ("claims-validity", lambda w: w.claiming(issued_at=w.now + 301)),
    "claims that end before they begin": (
        "claims-validity",
        lambda w: w.claiming(issued_at=w.now + 200, expires_at=w.now + 100),
    ),
    "old claims": ("freshness", stale_claims),
    "another TLS key": ("tls-key", lambda w: w.change(peer="0f" * 32)),
    "a connection, but claims without a TLS key": ("tls-key", lambda w: w.claiming(tls_key=None)),
    "another job spec": ("job-spec-digest", lambda w: w.claiming(job_spec_sha256="cd" * 32)),
    "a derived key passed off as instance key": (
        "recipient",
        lambda w: w.claiming(
            recipients=w.claims.recipients.model_copy(update={"instance": "age1" + "q" * 58})
        ),
    ),
    "a receipt key on another curve": ("receipt-key", lambda w: w.claiming(receipt_key=p384_key())),
    "a receipt key of another kind": (
        "receipt-key",
        lambda w: w.claiming(receipt_key=ed25519_key()),
    ),
    "a receipt key that is no key": ("receipt-key", lambda w: w.claiming(receipt_key="00" * 91)),
    "a receipt key that ends TLS as well": (
        "key-separation",
        lambda w: ending_tls(w, w.claims.receipt_key),
    ),
    "a receipt key that ends TLS, in evidence from a file": (
        "key-separation",
        lambda w: w.change(peer=None).claiming(tls_key=w.claims.receipt_key),
    ),
    "a receipt key that ends TLS, in another encoding": (
        "key-separation",
        lambda w: ending_tls(w, compressed(w.claims.receipt_key)),
    ),
    "a receipt key in another encoding that ends TLS": (
        "key-separation",
        lambda w: ending_tls(w, w.claims.receipt_key).claiming(
            receipt_key=compressed(w.claims.receipt_key)
        ),
    ),
    "a sandbox with a gap": (
        "sandbox",
        lambda w: w.opened("sandbox", ("landlock", "separate_users")),
    ),
}
