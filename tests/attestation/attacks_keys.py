"""Attacks on the keys of the claims: name -> (codes that must answer, change)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

from tests.attestation.tampering import ed25519_key
from trainer.attestation.dstack.key_chain import prove_possession
from trainer.attestation.evidence import DatasetClaims, KeyChain
from trainer.simulator.agent import SimulatedVm
from trainer.simulator.appraisal_world import APP_COMPOSE, SEED
from trainer.simulator.claimed_keys import key_chain, possession

if TYPE_CHECKING:
    from trainer.simulator.appraisal_world import World

Change = Callable[["World"], "World"]

SIGNATURES = ("app", "recipient", "possession")
BYTES = (0, 31, 32, 63, 64)

OTHER_VALUES: dict[str, Any] = {
    "version": 2,
    "purpose": "receipt",
    "nonce": "02" * 32,
    "job_spec_sha256": "cd" * 32,
    "tls_key": None,
    "gpu_evidence_sha256": None,
    "sandbox": {},
    "software": {},
    "issued_at": 1,
    "expires_at": 2,
}
"""Another value of each claim, beside those that need the honest ones."""


def honest_chain(world: World) -> KeyChain:
    chain = key_chain(world.vm)
    assert chain is not None
    return chain


def with_chain(world: World, **changes: str) -> World:
    return world.showing(key_chain=honest_chain(world).model_copy(update=changes))


def with_bit(name: str, at: int) -> Change:
    """One bit of one signature of the chain changed."""

    def change(world: World) -> World:
        signature = bytearray(bytes.fromhex(getattr(honest_chain(world), name)))
        signature[at] ^= 1
        return with_chain(world, **{name: signature.hex()})

    return change


def without_root(change: Change) -> Change:
    return lambda w: change(w).demanding("app", kms_root_key="any")


def naming(name: str, point: str) -> Change:
    """Claims, quoted again, that name another derived key."""
    return lambda w: w.claiming(derived_keys=w.claims.derived_keys.model_copy(update={name: point}))


def other_value(claims: DatasetClaims, name: str) -> Any:
    match name:
        case "recipients":
            return claims.recipients.model_copy(update={"instance": "age1" + "z" * 58})
        case "derived_keys":
            return claims.derived_keys.model_copy(update={"recipient": "02" + "01" * 32})
        case "receipt_key":
            return ed25519_key()
    return OTHER_VALUES[name]


def signed_with_another(name: str) -> Change:
    """The possession key signed claims with another value of one claim: what a VM of the same app may sign."""

    def change(world: World) -> World:
        other = world.claims.model_copy(update={name: other_value(world.claims, name)})
        return world.showing(possession=possession(world.vm, other))

    return change


def possession_bit(at: int) -> Change:
    def change(world: World) -> World:
        signature = bytearray(bytes.fromhex(possession(world.vm, world.claims)))
        signature[at] ^= 1
        return world.showing(possession=signature.hex())

    return change


def chain_of_another_app(world: World) -> World:
    other = SimulatedVm(APP_COMPOSE, SEED, app_id=bytes(20), options=world.vm.options)
    return world.showing(key_chain=key_chain(other))


def swapped(world: World) -> World:
    chain = honest_chain(world)
    return with_chain(world, recipient=chain.possession, possession=chain.recipient)


OTHER_POINT = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"

ATTACKS: dict[str, tuple[str | tuple[str, ...], Change]] = {
    "another key service": ("key-chain", lambda w: w.demanding("app", kms_root_key="02" * 33)),
    "no key chain": ("key-chain", lambda w: w.showing(key_chain=None)),
    "the key chain of another app": ("key-chain", chain_of_another_app),
    "signatures of the key chain exchanged": ("key-chain", swapped),
    "another recipient key in the claims": ("key-chain", naming("recipient", OTHER_POINT)),
    "another possession key in the claims": (
        ("key-possession", "key-chain"),
        naming("possession", OTHER_POINT),
    ),
    "a possession key in the claims that is no point": (
        ("key-possession", "key-chain"),
        naming("possession", "02" + "ff" * 32),
    ),
    "another key signed the claims": (
        "key-possession",
        lambda w: w.showing(possession=prove_possession(b"\7" * 32, w.claims)),
    ),
    "the claims were signed by zeros": (
        "key-possession",
        lambda w: w.showing(possession="00" * 64),
    ),
}
ATTACKS |= {
    f"byte {at} of the key chain's signature {name}": ("key-chain", with_bit(name, at))
    for name, at in product(SIGNATURES, BYTES)
}
ATTACKS |= {
    f"byte {at} of the key chain's signature {name}, whose root is left open": (
        "key-chain",
        without_root(with_bit(name, at)),
    )
    for name, at in product(("recipient", "possession"), BYTES)
}
ATTACKS |= {f"byte {at} of possession": ("key-possession", possession_bit(at)) for at in BYTES[:4]}
ATTACKS |= {
    f"another {name} in the claims that the possession key signed": (
        "key-possession",
        signed_with_another(name),
    )
    for name in DatasetClaims.model_fields
}
