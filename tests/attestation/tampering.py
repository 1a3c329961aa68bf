"""How attacks change the honest world: each function changes one thing and leaves the rest as it was."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trainer.attestation.evidence import FreshGpuEvidence
from trainer.encoding import sha256_hex
from trainer.simulator.event_log_writer import RuntimeEvent
from trainer.simulator.gpu_evidence import GPU_BOOT
from trainer.simulator.pki import DevelopmentPki
from trainer.simulator.quote import field_ranges

if TYPE_CHECKING:
    from trainer.simulator.appraisal_world import World

DAY = 86400
OTHER = DevelopmentPki(b"another seed of 32 bytes for quotes")


def flipped(world: World, at: int) -> bytes:
    """The honest quote with one bit changed."""
    quote = bytearray(bytes.fromhex(world.evidence().quote))
    quote[at] ^= 1
    return bytes(quote)


def honest_quote(world: World) -> bytes:
    return bytes.fromhex(world.evidence().quote)


def certificates_of(world: World) -> list[bytes]:
    """The certificates in the honest quote, in PEM: of the platform, of its issuer, of the root."""
    quote = honest_quote(world)
    end = b"-----END CERTIFICATE-----\n"
    return [part + end for part in quote[field_ranges(quote)["chain"].start :].split(end)[:-1]]


def with_chain(world: World, *parts: bytes, kind: int = 5) -> World:
    """The honest quote with other certification data of the quoting enclave; all lengths fit."""
    quote, chain = honest_quote(world), b"".join(parts)
    places = field_ranges(quote)
    changed = bytearray(quote[: places["chain"].start] + chain)
    for name in ("signature_size", "certification_size", "chain_size"):
        at, size = places[name].start, len(chain) - len(places["chain"])
        struct.pack_into("<I", changed, at, struct.unpack_from("<I", quote, at)[0] + size)
    struct.pack_into("<H", changed, places["chain_type"].start, kind)
    return world.change(quote=bytes(changed))


def with_certificates_in_collateral(world: World) -> World:
    """Collateral that brings along the certificates of this platform, in the place where some tools save them."""
    document = json.loads(world.collateral) | {
        "pck_certificate_chain": b"".join(certificates_of(world)).decode()
    }
    return world.change(collateral=json.dumps(document).encode())


def other_revocation_list(world: World, name: str, days: int) -> World:
    """One CRL of another time, rightly signed; all the rest of the collateral is of now."""
    other = world.vm.pki.collateral(world.now + days * DAY)
    return with_document(world, name, lambda _: other[name])


def with_module(world: World, **changes: Any) -> World:
    """Collateral whose TDX module identity says something else."""
    return world.with_collateral(
        mutate=lambda tcb, _qe: tcb["tdxModuleIdentities"][0].update(changes)
    )


def with_qe_identity(world: World, **changes: Any) -> World:
    return world.with_collateral(mutate=lambda _tcb, qe: qe.update(changes))


def with_tcb_info(world: World, **changes: Any) -> World:
    return world.with_collateral(mutate=lambda tcb, _qe: tcb.update(changes))


def with_document(world: World, name: str, change: Callable[[str], str]) -> World:
    """One part of the collateral document changed after it was signed."""
    document = json.loads(world.collateral)
    return world.change(collateral=json.dumps(document | {name: change(document[name])}).encode())


def measuring(world: World, edit: Callable[[list[Any]], None]) -> World:
    """The VM measured other events."""
    events = list(world.vm.events)
    edit(events)
    world.vm.replace_events(tuple(events))
    return world


def index_of(events: list[Any], name: str) -> int:
    return next(index for index, event in enumerate(events) if getattr(event, "name", "") == name)


def replaced(name: str, payload: bytes) -> Callable[[list[Any]], None]:
    def edit(events: list[Any]) -> None:
        events[index_of(events, name)] = RuntimeEvent(name, payload)

    return edit


def removed(name: str) -> Callable[[list[Any]], None]:
    return lambda events: events.pop(index_of(events, name))


def edited_log(world: World, edit: Callable[[list[Any]], None]) -> World:
    """The log that is shown, not the one that was measured, is edited."""
    log = json.loads(world.evidence().event_log)
    edit(log)
    return world.showing(event_log=json.dumps(log))


def outdated(world: World, days: int) -> World:
    return world.with_collateral(status="OutOfDate", tcb_date=world.now - days * DAY)


def gpu_event(**changes: Any) -> bytes:
    document = {
        "version": 2,
        "provider": "nvidia",
        "devices": 1,
        "cc_mode": "on",
        "devtools": False,
        "evidence_sha256": sha256_hex(GPU_BOOT.encode()),
    }
    return json.dumps(document | changes).encode()


def ed25519_key() -> str:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()


def p384_key() -> str:
    key = ec.derive_private_key(7, ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()


def stale_claims(world: World) -> World:
    return world.claiming(issued_at=world.now - 601)


def renamed(certificate: Any, **changes: Any) -> Any:
    """A certificate of a GPU chain, made otherwise."""
    return dataclasses.replace(certificate, **changes)


def another_gpu(world: World) -> tuple[Any, ...]:
    """The chain of another genuine GPU."""
    return renamed(world.bench.leaf, scalar=2004), world.bench.ca, world.bench.root


def altered(world: World, at: int) -> FreshGpuEvidence:
    """The honest GPU's report with one bit changed after it was signed."""
    honest: FreshGpuEvidence = world.gpu.fresh[0]
    report = bytearray(bytes.fromhex(honest.report))
    report[at] ^= 1
    return honest.model_copy(update={"report": report.hex()})
