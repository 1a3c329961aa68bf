"""Each check of an appraisal: change exactly one thing, and exactly that code answers."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trainer.attestation import verifier
from trainer.attestation.binding import gpu_evidence_sha256
from trainer.attestation.catalogue import DATASET_CHECKS, QUOTE_CODES, RECEIPT_CHECKS
from trainer.attestation.checks import CheckCode, CheckState, Ledger
from trainer.attestation.evidence import FreshGpuEvidence, GpuEvidence
from trainer.attestation.policy import KeyProviderDemand, OsMeasurements, OsSection
from trainer.attestation.result import APPRAISER, AttestationResult
from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, VerificationError
from trainer.tee.simulator.agent import Release, SimulatedVm, VmOptions
from trainer.tee.simulator.certificates import raw_signature
from trainer.tee.simulator.event_log import RuntimeEvent
from trainer.tee.simulator.nvattest import SimulatedGpu, nvattest_result
from trainer.tee.simulator.pki import DevelopmentPki

World = Any  # conftest.World; test files do not import from each other

DAY = 86400
GPU_BOOT = nvattest_result([SimulatedGpu()], "5b" * 32)  # the same as conftest's
OTHER = DevelopmentPki(b"another seed of 32 bytes for quotes")


def flipped(world: World, at: int) -> bytes:
    """The honest quote with one bit changed."""
    quote = bytearray(bytes.fromhex(world.evidence().quote))
    quote[at] ^= 1
    return bytes(quote)


def honest_quote(world: World) -> bytes:
    return bytes.fromhex(world.evidence().quote)


def with_module(world: World, **changes: Any) -> World:
    """Collateral whose TDX module identity says something else."""
    return world.with_collateral(mutate=lambda tcb, _qe: tcb["tdxModuleIdentities"][0].update(changes))


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
    world.vm.measure_instead(tuple(events))
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


OTHER_OS = OsSection(
    measurements=(OsMeasurements(mrtd="00" * 48, rtmr0="00" * 48, rtmr1="00" * 48, rtmr2="00" * 48),)
)

TAMPERINGS: dict[str, tuple[str, Callable[[World], World]]] = {
    # the quote and its collateral
    "not a quote": ("quote-format", lambda w: w.change(quote=b"\x04\0quote")),
    "an SGX quote": ("quote-format", lambda w: w.change(quote=flipped(w, 4))),
    "another vendor's quoting enclave": ("quote-format", lambda w: w.change(quote=flipped(w, 12))),
    "another kind of certification data": ("quote-format", lambda w: w.change(quote=flipped(w, 636 + 128))),
    "bytes after the quote": ("quote-trailing-bytes", lambda w: w.change(quote=honest_quote(w) + b"\0more")),
    "no collateral": ("collateral-format", lambda w: w.change(collateral=b"")),
    "collateral without a CRL": (
        "collateral-format",
        lambda w: w.change(collateral=json.dumps({**json.loads(w.collateral), "pck_crl": None}).encode()),
    ),
    "a key twice in the collateral": (
        "collateral-format",
        lambda w: w.change(collateral=w.collateral[:-1] + b', "pck_crl": "00"}'),
    ),
    "huge collateral": ("collateral-format", lambda w: w.change(collateral=b" " * (5 << 20) + w.collateral)),
    "TCB info that is no object": ("collateral-format", lambda w: with_document(w, "tcb_info", lambda _: "[]")),
    "a chain of something else": (
        "collateral-format",
        lambda w: with_document(w, "tcb_info_issuer_chain", lambda pem: pem.replace("MII", "AAA")),
    ),
    "a policy that trusts Intel alone": ("root-of-trust", lambda w: w.opened("trust_root", "intel")),
    "a quote by another root": (
        "root-of-trust",
        lambda w: w.change(quote=OTHER.quote(w.vm.td_fields(bytes.fromhex(w.evidence().quote)[568:632]))),
    ),
    "collateral by another root": (
        "root-of-trust",
        lambda w: w.change(collateral=json.dumps(OTHER.collateral(w.now)).encode()),
    ),
    "TCB info changed": (
        "collateral-signature",
        lambda w: with_document(w, "tcb_info", lambda text: text.replace("UpToDate", "Revoked")),
    ),
    "QE identity changed": (
        "collateral-signature",
        lambda w: with_document(w, "qe_identity", lambda text: text.replace("UpToDate", "Revoked")),
    ),
    "a CRL cut short": ("collateral-signature", lambda w: with_document(w, "pck_crl", lambda text: text[:-8])),
    "expired collateral": (
        "collateral-validity",
        lambda w: w.change(collateral=json.dumps(w.vm.pki.collateral(w.now - 31 * DAY)).encode()),
    ),
    "collateral from the future": (
        "collateral-validity",
        lambda w: w.change(collateral=json.dumps(w.vm.pki.collateral(w.now + DAY)).encode()),
    ),
    "a revoked platform": ("platform-certificate", lambda w: w.with_collateral(revoked=("pck",))),
    "a revoked platform CA": ("platform-certificate", lambda w: w.with_collateral(revoked=("pck-ca",))),
    "a bit of the TD report": ("quote-signature", lambda w: w.change(quote=flipped(w, 48 + 20))),
    "a bit of the signature": ("quote-signature", lambda w: w.change(quote=flipped(w, 640))),
    "a bit of the QE report": ("quote-signature", lambda w: w.change(quote=flipped(w, 636 + 134 + 64))),
    "a bit of the QE authentication data": (
        "quote-signature",
        lambda w: w.change(quote=flipped(w, 636 + 134 + 448 + 2)),
    ),
    "another QE signer": ("quoting-enclave", lambda w: with_qe_identity(w, mrsigner="00" * 32)),
    "another QE product": ("quoting-enclave", lambda w: with_qe_identity(w, isvprodid=9)),
    "an identity of another enclave": ("quoting-enclave", lambda w: with_qe_identity(w, id="QE")),
    "TCB info of another platform": ("tcb-level", lambda w: with_tcb_info(w, fmspc="000000000000")),
    "an unknown TCB": (
        "tcb-level",
        lambda w: w.with_collateral(mutate=lambda tcb, _qe: tcb["tcbLevels"][0]["tcb"].update(pcesvn=99)),
    ),
    "an out-of-date platform": ("tcb-status", lambda w: outdated(w, 1)),
    "an out-of-date quoting enclave": ("tcb-status", lambda w: w.with_collateral(qe_status="OutOfDate")),
    "a revoked TCB": ("tcb-status", lambda w: w.with_collateral(status="Revoked")),
    "longer out of date than allowed": (
        "tcb-grace",
        lambda w: outdated(w, 31).demanding("tcb", accepted_statuses=("UpToDate", "OutOfDate"), grace_days=30),
    ),
    "a refused advisory": ("tcb-advisories", lambda w: w.with_collateral(advisories=("intel-sa-00001",))),
    "an early evaluation": ("tcb-evaluation-number", lambda w: w.demanding("tcb", min_evaluation_number=20)),
    "another module signer": ("tdx-module", lambda w: w.change(td={"mr_signer_seam": b"\1" * 48})),
    "module attributes": ("tdx-module", lambda w: w.change(td={"seam_attributes": b"\1" + bytes(7)})),
    "a module of an unknown version": (
        "tdx-module",
        lambda w: w.change(td={"tee_tcb_svn": b"\6\7\3" + bytes(13)}),
    ),
    "an old module": ("tdx-module", lambda w: w.change(td={"tee_tcb_svn": b"\4\1\3" + bytes(13)})),
    # the TD
    "a debuggable TD": ("td-debug", lambda w: w.change(td={"td_attributes": b"\1\0\0\x10\0\0\0\0"})),
    "no SEPT_VE_DISABLE": ("td-attributes", lambda w: w.change(td={"td_attributes": bytes(8)})),
    "a migratable TD": ("td-attributes", lambda w: w.change(td={"td_attributes": b"\0\0\0\x30\0\0\0\0"})),
    "protection keys": ("td-attributes", lambda w: w.change(td={"td_attributes": b"\0\0\0\x50\0\0\0\0"})),
    "key locker": ("td-attributes", lambda w: w.change(td={"td_attributes": b"\0\0\0\x90\0\0\0\0"})),
    "performance monitoring": ("td-attributes", lambda w: w.change(td={"td_attributes": b"\0\0\0\x10\0\0\0\x80"})),
    "another TDX module of Intel's": ("mr-seam", lambda w: w.demanding("tcb", mr_seam=("11" * 48,))),
    "a reserved attribute": ("td-attributes", lambda w: w.change(td={"td_attributes": b"\0\0\0\x11\0\0\0\0"})),
    "processor trace": ("td-xfam", lambda w: w.change(td={"xfam": (0x602E7 | 1 << 8).to_bytes(8, "little")})),
    "no SSE": ("td-xfam", lambda w: w.change(td={"xfam": b"\1" + bytes(7)})),
    "an owner": ("mr-owner", lambda w: w.change(td={"mr_owner": b"\1" + bytes(47)})),
    "an owner's configuration": ("mr-owner-config", lambda w: w.change(td={"mr_owner_config": bytes(47) + b"\1"})),
    "another compose hash in MRCONFIGID": (
        "mr-config-id",
        lambda w: w.change(td={"mr_config_id": b"\1" + bytes(47)}),
    ),
    "MRCONFIGID with a tail": (
        "mr-config-id",
        lambda w: w.change(td={"mr_config_id": b"\1" + w.vm.compose_hash + bytes(14) + b"\1"}),
    ),
    "MRCONFIGID of an unknown form": (
        "mr-config-id",
        lambda w: w.change(td={"mr_config_id": b"\x09" + bytes(47)}),
    ),
    "MRCONFIGID zero but for its end": (
        "mr-config-id",
        lambda w: w.change(td={"mr_config_id": bytes(47) + b"\1"}),
    ),
    # the OS and what it started
    "another MRTD": ("os-measurements", lambda w: w.change(td={"mrtd": bytes(48)})),
    "another RTMR0": ("os-measurements", lambda w: w.change(td={"rtmr0": bytes(48)})),
    "another RTMR1": ("os-measurements", lambda w: w.change(td={"rtmr1": bytes(48)})),
    "another RTMR2": ("os-measurements", lambda w: w.change(td={"rtmr2": bytes(48)})),
    "an OS that nobody listed": ("os-measurements", lambda w: w.opened("os", OTHER_OS)),
    "no OS listed": ("os-measurements", lambda w: w.opened("os", OsSection())),
    "an image that cannot be recomputed": (
        "os-measurements",
        lambda w: w.opened("os", OsSection(image_sha256=("00" * 32,))),
    ),
    "an event log that is not JSON": ("event-log-format", lambda w: w.showing(event_log="[")),
    "a runtime event for RTMR2": (
        "event-log-format",
        lambda w: edited_log(w, lambda log: log[5].update(imr=2)),
    ),
    "a false digest": ("event-digests", lambda w: edited_log(w, lambda log: log[5].update(digest="00" * 48))),
    "a false preimage": ("event-digests", lambda w: edited_log(w, lambda log: log[5].update(preimage="00"))),
    "a second app id": (
        "event-order",
        lambda w: measuring(
            w, lambda events: events.insert(index_of(events, "app-id"), RuntimeEvent("app-id", w.vm.app_id))
        ),
    ),
    "a system event after system-ready": (
        "event-order",
        lambda w: measuring(w, lambda events: events.append(RuntimeEvent("storage-fs"))),
    ),
    "no system-ready": ("event-order", lambda w: measuring(w, removed("system-ready"))),
    "two system-ready": (
        "event-order",
        lambda w: measuring(w, lambda events: events.append(RuntimeEvent("system-ready"))),
    ),
    "the wrong order": (
        "event-order",
        lambda w: measuring(
            w,
            lambda events: events.insert(index_of(events, "app-id"), events.pop(index_of(events, "boot-mr-done"))),
        ),
    ),
    "an event left out of the log": ("rtmr3-replay", lambda w: edited_log(w, lambda log: log.pop(-2))),
    "an event added to the log": (
        "rtmr3-replay",
        lambda w: edited_log(w, lambda log: log.append(log[-2] | {"event": "mine"})),
    ),
    "a compose hash that was not measured": (
        "compose-hash",
        lambda w: w.showing(compose_hash="sha256:" + "00" * 32),
    ),
    "another compose hash measured": (
        "compose-hash",
        lambda w: measuring(w, replaced("compose-hash", bytes(32))),
    ),
    "an unlisted compose file": ("compose-accepted", lambda w: w.demanding("app", compose_sha256=("00" * 32,))),
    "another app id": ("app-id", lambda w: w.demanding("app", app_id="00" * 20)),
    "another key provider": (
        "key-provider",
        lambda w: w.demanding("app", key_provider=KeyProviderDemand(name="kms", id="00")),
    ),
    "a key provider event of another form": (
        "key-provider",
        lambda w: measuring(w, replaced("key-provider", b"kms")),
    ),
    "another key service": ("key-chain", lambda w: w.demanding("app", kms_root_key="02" * 33)),
    "no key chain": ("key-chain", lambda w: w.showing(key_chain=())),
    "a chain of one": (
        "key-chain",
        lambda w: w.showing(
            key_chain=(w.evidence().key_chain[0].model_copy(update={"signature_chain": ("00" * 65,)}),)
        ),
    ),
    "a key that the app did not sign": (
        "key-chain",
        lambda w: w.showing(key_chain=(w.evidence().key_chain[0].model_copy(update={"purpose": "other"}),)),
    ),
    # the claims
    "claims changed after the quote": (
        "report-data",
        lambda w: w.showing(claims=w.claims.model_copy(update={"software": {"trainer": "0.2.0"}})),
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
    "a connection, but claims without a TLS key": ("tls-key", lambda w: w.claiming(tls_spki_sha256=None)),
    "another job spec": ("job-spec-digest", lambda w: w.claiming(job_spec_sha256="cd" * 32)),
    "a derived key passed off as instance key": (
        "recipient",
        lambda w: w.claiming(recipients=w.claims.recipients.model_copy(update={"instance": "age1" + "q" * 58})),
    ),
    "a receipt key on another curve": ("receipt-key", lambda w: w.claiming(receipt_key=p384_key())),
    "a receipt key of another kind": ("receipt-key", lambda w: w.claiming(receipt_key=ed25519_key())),
    "a receipt key that is no key": ("receipt-key", lambda w: w.claiming(receipt_key="00" * 91)),
    "other fresh GPU evidence": (
        "gpu-evidence",
        lambda w: w.showing(gpu=w.with_gpu(*another_gpu(w)).gpu),
    ),
    "GPU evidence that nobody claimed": ("gpu-evidence", lambda w: w.claiming(gpu_evidence_sha256=None)),
    "boot evidence that the OS did not measure": (
        "gpu-boot",
        lambda w: measuring(w, replaced("gpu-attestation", gpu_event(evidence_sha256="00" * 32))),
    ),
    "a GPU event of another form": ("gpu-boot", lambda w: measuring(w, replaced("gpu-attestation", b"{}"))),
    "a GPU open to developer tools": (
        "gpu-devtools",
        lambda w: measuring(w, replaced("gpu-attestation", gpu_event(devtools=True))),
    ),
    "GPUs of another maker": (
        "gpu-required",
        lambda w: measuring(w, replaced("gpu-attestation", gpu_event(provider="other"))),
    ),
    "a GPU outside confidential mode": (
        "gpu-cc-mode",
        lambda w: measuring(w, replaced("gpu-attestation", gpu_event(cc_mode="off"))),
    ),
    # fresh reports of GPUs
    "a GPU report with a byte too many": ("gpu-report-format", lambda w: w.with_gpu(tail=b"!")),
    "GPU certificates of a home-made root": (
        "gpu-report-chain",
        lambda w: w.with_gpu(w.bench.leaf, w.bench.ca, renamed(w.bench.root, scalar=2001)),
    ),
    "no GPU certificates": (
        "gpu-report-chain",
        lambda w: w.answering(w.bench.answer().model_copy(update={"certificate_chain": "none"})),
    ),
    "an expired GPU certificate": (
        "gpu-report-chain",
        lambda w: w.with_gpu(renamed(w.bench.leaf, end=w.now - 1), w.bench.ca, w.bench.root),
    ),
    "a GPU's own certificate as authority": (
        "gpu-report-chain",
        lambda w: w.with_gpu(renamed(w.bench.leaf, scalar=2002), w.bench.leaf, w.bench.ca, w.bench.root),
    ),
    "a GPU measurement changed after signing": ("gpu-report-signature", lambda w: w.answering(altered(w, 60))),
    "a driver version changed after signing": (
        "gpu-report-signature",
        lambda w: w.answering(altered(w, bytes.fromhex(w.gpu.fresh[0].report).index(b"0.90.07"))),
    ),
    "a bit of a GPU's signature": ("gpu-report-signature", lambda w: w.answering(altered(w, -1))),
    "a report that another key signed": (
        "gpu-report-signature",
        lambda w: w.with_gpu(key=renamed(w.bench.leaf, scalar=2003).key),
    ),
    "a GPU key on another curve": (
        "gpu-report-signature",
        lambda w: w.with_gpu(renamed(w.bench.leaf, curve=ec.SECP256R1()), w.bench.ca, w.bench.root),
    ),
    "an earlier GPU report": ("gpu-report-nonce", lambda w: w.with_gpu(nonce=bytes(32))),
    "the provider's nonce itself, without the domain": (
        "gpu-report-nonce",
        lambda w: w.with_gpu(nonce=bytes.fromhex(w.nonce)),
    ),
    "other GPU firmware than certified": (
        "gpu-report-fwid",
        lambda w: w.with_gpu(opaque={**w.bench.opaque, 20: bytes(48)}),
    ),
    "a GPU certificate without firmware id": (
        "gpu-report-fwid",
        lambda w: w.with_gpu(renamed(w.bench.leaf, extensions=()), w.bench.ca, w.bench.root),
    ),
    "no fresh GPU report": ("gpu-report-count", lambda w: w.answering()),
    "one GPU that answers for two": (
        "gpu-report-count",
        lambda w: w.answering(*w.gpu.fresh, *w.gpu.fresh).demanding("gpu", boot="any", count=2),
    ),
    "one GPU that answers twice": (
        "gpu-report-count",
        lambda w: w.answering(*w.gpu.fresh, *w.gpu.fresh).demanding("gpu", count="any"),
    ),
    "a GPU that keeps silent": ("gpu-report-count", lambda w: w.demanding("gpu", boot="any", count=2)),
    "an old driver": (
        "gpu-report-versions",
        lambda w: w.with_gpu(opaque={**w.bench.opaque, 3: b"550.54.15\0"}),
    ),
    "an old VBIOS": (
        "gpu-report-versions",
        lambda w: w.with_gpu(opaque={**w.bench.opaque, 6: bytes.fromhex("009e009601000000")}),
    ),
    "a sandbox with a gap": ("sandbox", lambda w: w.opened("sandbox", ("landlock", "separate_users"))),
}


def test_the_honest_world_is_affirmed_in_everything(world: World) -> None:
    result = world.appraise()
    assert [check.code for check in result.checks if check.state is not CheckState.AFFIRMED] == []
    assert result.status == "pass"
    result.require_pass(world.now)
    assert result.recipient == world.claims.recipients.instance
    assert result.receipt_key == bytes.fromhex(world.claims.receipt_key)
    assert result.job_spec_sha256 == world.claims.job_spec_sha256


@pytest.mark.parametrize("name", TAMPERINGS)
def test_one_change_is_answered_by_its_own_code(world: World, name: str) -> None:
    code, change = TAMPERINGS[name]
    changed = change(world)
    assert changed.contraindicated() == [code]
    result = changed.appraise()
    assert result.status == "fail"
    with pytest.raises(VerificationError) as refused:
        result.require_pass(world.now)
    assert refused.value.code is ErrorCode.VERIFICATION_FAILED
    assert code in str(refused.value)


def test_every_check_has_a_tampering_that_it_answers() -> None:
    answered = {code for code, _ in TAMPERINGS.values()} | {"service-td"}  # below, with a version 5 quote
    assert answered == {definition.code for definition in DATASET_CHECKS}


def service_td_quote(world: World, service_td: bytes) -> bytes:
    """A version 5 quote, TD report 1.5, signed by the development PKI's attestation key."""
    four = honest_quote(world)
    header = struct.pack("<H", 5) + four[2:48]
    body = four[48:632] + four[48:64] + service_td  # the current TCB is that at start
    signed = header + struct.pack("<HI", 3, len(body)) + body
    signature = raw_signature(world.vm.pki._attestation_key, signed)
    return signed + four[632:636] + signature + four[700:]


def test_a_service_td_is_refused(world: World) -> None:
    changed = world.change(quote=service_td_quote(world, b"\1" * 48))
    assert changed.contraindicated() == ["service-td"]
    check = changed.state("service-td")
    assert (check.expected, check.found) == ("none", "01" * 48)


def test_a_version_5_quote_without_service_td_passes(world: World) -> None:
    changed = world.change(quote=service_td_quote(world, bytes(48)))
    assert changed.contraindicated() == []
    assert changed.change(quote=changed.quote + b"!").contraindicated() == ["quote-trailing-bytes"]


def test_another_compose_text_is_neither_the_measured_nor_a_listed_one(world: World) -> None:
    changed = world.showing(app_compose=world.vm.app_compose + " ")
    assert changed.contraindicated() == ["compose-hash", "compose-accepted", "mr-config-id"]


def test_the_compose_hash_counts_bytes_not_values(world: World) -> None:
    reformatted = json.dumps(json.loads(world.vm.app_compose))
    assert "compose-hash" in world.showing(app_compose=reformatted).contraindicated()


def test_a_later_event_cannot_stand_in_for_the_measured_one(world: World) -> None:
    world.vm.emit_event("mine", b"payload")
    assert world.contraindicated() == []


def test_an_accepted_out_of_date_platform_within_grace_passes(world: World) -> None:
    changed = outdated(world, 29).demanding("tcb", accepted_statuses=("UpToDate", "OutOfDate"), grace_days=30)
    assert changed.contraindicated() == []


def test_an_out_of_date_module_counts_with_its_own_date(world: World) -> None:
    old = "2020-01-01T00:00:00Z"
    levels = [
        {"tcb": {"isvsvn": 7}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": "UpToDate"},
        {"tcb": {"isvsvn": 5}, "tcbDate": old, "tcbStatus": "OutOfDate"},
    ]
    changed = with_module(world, tcbLevels=levels)
    assert changed.contraindicated() == ["tcb-status"]
    accepting = changed.demanding("tcb", accepted_statuses=("OutOfDate",), grace_days=365)
    assert accepting.contraindicated() == ["tcb-grace"]
    assert changed.demanding("tcb", accepted_statuses=("OutOfDate",), grace_days=3650).contraindicated() == []


def test_zeros_after_the_quote_are_padding(world: World) -> None:
    assert world.change(quote=honest_quote(world) + bytes(70)).contraindicated() == []


def test_mrconfigid_may_be_unset(make_world: Callable[..., World]) -> None:
    world = make_world(VmOptions(gpu_attestation=GPU_BOOT, config_id=False))
    assert world.contraindicated() == []


@pytest.mark.parametrize(("form", "word"), [(2, "key provider"), (3, "document")])
def test_wider_forms_of_mrconfigid_are_named_and_left_open(world: World, form: int, word: str) -> None:
    check = world.change(td={"mr_config_id": bytes([form]) + b"\1" * 47}).state("mr-config-id")
    assert check.state is CheckState.NOT_DEMANDED
    assert check.detail is not None
    assert word in check.detail


@pytest.mark.parametrize(
    "options",
    [
        VmOptions(gpu_attestation=GPU_BOOT, event_version=2),
        VmOptions(gpu_attestation=GPU_BOOT, release=Release.V0_5),
        VmOptions(gpu_attestation=GPU_BOOT, release=Release.V0_5, event_version=2),
    ],
)
def test_other_releases_and_event_versions_pass(make_world: Callable[..., World], options: VmOptions) -> None:
    assert make_world(options).contraindicated() == []


OPENINGS: dict[str, Callable[[World], World]] = {
    "tcb-advisories": lambda w: w.demanding("tcb", refused_advisories=()),
    "mr-seam": lambda w: w.demanding("tcb", mr_seam="any"),
    "nonce-unused": lambda w: w.change(nonce_unused=None),
    "gpu-devtools": lambda w: w.demanding("gpu", devtools="any"),
    "tcb-evaluation-number": lambda w: w.demanding("tcb", min_evaluation_number="any"),
    "os-measurements": lambda w: w.opened("os"),
    "app-id": lambda w: w.demanding("app", app_id="any"),
    "key-provider": lambda w: w.demanding("app", key_provider="any"),
    "key-chain": lambda w: w.demanding("app", kms_root_key="any"),
    "tls-key": lambda w: w.change(peer=None),
    "gpu-required": lambda w: w.demanding("gpu", required=False),
    "gpu-report-versions": lambda w: w.demanding("gpu", min_driver_version="any", min_vbios_version="any"),
    "sandbox": lambda w: w.opened("sandbox"),
}


@pytest.mark.parametrize("code", OPENINGS)
def test_what_is_left_open_shows_as_not_demanded(world: World, code: str) -> None:
    result = OPENINGS[code](world).appraise()
    assert [check.code for check in result.checks if check.state is CheckState.NOT_DEMANDED] == [code]
    assert result.status == "pass"


def test_a_vm_without_gpu(make_world: Callable[..., World]) -> None:
    world = make_world(VmOptions())
    assert world.contraindicated() == ["gpu-required", "gpu-report-count"]
    lenient = world.demanding("gpu", required=False).without_reports()
    assert lenient.contraindicated() == []
    assert lenient.state("gpu-boot").state is CheckState.NOT_DEMANDED


@pytest.mark.parametrize("boot", ["", '{"claims": [1]}\n'])
def test_boot_evidence_and_measured_event_belong_together(make_world: Callable[..., World], boot: str) -> None:
    world = make_world(VmOptions(gpu_attestation="" if boot else GPU_BOOT))
    gpu = GpuEvidence(boot=boot)
    digest = gpu_evidence_sha256(gpu)
    opened = world.without_reports().demanding("gpu", required=False)
    changed = opened.change(gpu=gpu).claiming(gpu_evidence_sha256=digest)
    assert changed.contraindicated() == ["gpu-boot"]


def test_what_cannot_be_looked_at_is_not_reached(world: World) -> None:
    result = world.change(quote=b"\x04\0quote").showing(event_log="[").appraise()
    states = {check.code: check.state for check in result.checks}
    assert {code for code, state in states.items() if state is CheckState.CONTRAINDICATED} == {
        "quote-format",
        "event-log-format",
    }
    for code in ("quote-signature", "rtmr3-replay", "report-data", "os-measurements", "compose-hash", "gpu-boot"):
        assert states[code] is CheckState.NOT_REACHED
    for code in ("nonce", "tls-key", "job-spec-digest", "compose-accepted", "claims-validity"):
        assert states[code] is CheckState.AFFIRMED
    assert result.td is None
    assert result.status == "fail"


def test_chains_without_any_root_are_refused(world: World) -> None:
    """Nothing to compare must not be the same as nothing wrong."""
    quote = honest_quote(world).replace(b"-----BEGIN CERTIFICATE-----", b"-----BEGIN  ERTIFICATE-----")
    document = json.loads(world.collateral)
    bare = {name: "" if name.endswith("issuer_chain") else value for name, value in document.items()}
    changed = world.change(quote=quote, collateral=json.dumps(bare).encode())
    assert "root-of-trust" in changed.contraindicated()
    assert changed.state("root-of-trust").found == "no root certificate"


def test_numbers_follow_the_list_in_the_docstring_and_the_tags_in_the_code() -> None:
    listed = re.findall(r"(\d\d) ([a-z0-9-]+)", verifier.appraise.__doc__ or "")
    expected = {(f"{number:02}", definition.code.value) for number, definition in enumerate(DATASET_CHECKS, 1)}
    assert set(listed) == expected
    assert sorted(tags("check")) == sorted(expected)


def test_receipt_numbers_follow_the_list_in_the_docstring_and_the_tags_in_the_code() -> None:
    listed = re.findall(r"(\d\d) ([a-z-]+-[a-z]+)", verifier.appraise_receipt.__doc__ or "")
    expected = {(f"{number:02}", definition.code.value) for number, definition in enumerate(RECEIPT_CHECKS, 1)}
    assert set(listed) == {(number, code) for number, code in expected if int(number) > len(QUOTE_CODES)}
    assert sorted(tags("receipt check")) == sorted(listed)


def checks_page() -> str:
    """The page docs/checks.md, made from the code's lists and this file's tamperings."""
    lines = [
        "# Checks of an appraisal",
        "",
        "Made from `trainer/attestation/catalogue.py` and `tests/attestation/test_appraise.py`;",
        "`UPDATE_DOCS=1 pytest tests/attestation` writes it anew.",
        "",
        "Every check ends `affirmed`, `contraindicated`, `not-demanded` (the policy leaves it open) or",
        "`not-reached` (nothing to look at). Evidence passes only if each is `affirmed` or `not-demanded`.",
        "",
        "| | code | demands | stops | attacks that the tests make |",
        "|---|---|---|---|---|",
    ]
    for number, definition in enumerate(DATASET_CHECKS, 1):
        attacks = [name for name, (code, _) in TAMPERINGS.items() if code == definition.code]
        made = "; ".join(attacks or ["a service TD, in a version 5 quote"])
        lines.append(f"| {number} | `{definition.code}` | {definition.title} | {definition.attack} | {made} |")
    lines += [
        "",
        "## Evidence beside a receipt",
        "",
        f"Checks 1 to {len(QUOTE_CODES)} as above (tests: `tests/attestation/test_receipt_evidence.py`), then:",
        "",
        "| | code | demands | stops |",
        "|---|---|---|---|",
    ]
    for number, definition in enumerate(RECEIPT_CHECKS, 1):
        if definition.code not in QUOTE_CODES:
            lines.append(f"| {number} | `{definition.code}` | {definition.title} | {definition.attack} |")
    return "\n".join(lines) + "\n"


def test_the_page_of_checks_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "checks.md"
    if os.environ.get("UPDATE_DOCS") == "1":
        page.write_text(checks_page())
    assert page.read_text() == checks_page()


def tags(word: str) -> list[tuple[str, str]]:
    folder = Path(verifier.__file__).parent
    text = "\n".join(path.read_text() for path in sorted(folder.rglob("*.py")))
    return re.findall(rf"^ +# {word} (\d\d) ([a-z0-9-]+)$", text, re.MULTILINE)


def test_only_an_appraisal_makes_results(world: World) -> None:
    result = world.change(nonce="02" * 32).appraise()
    checks = tuple(dataclasses.replace(check, state=CheckState.AFFIRMED) for check in result.checks)
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    with pytest.raises(TypeError, match="only"):
        AttestationResult(**{**fields, "checks": checks}, appraiser=object())
    with pytest.raises(ValueError, match="appraiser"):
        dataclasses.replace(result, checks=checks)
    with pytest.raises(TypeError, match="appraise again"):
        copy.copy(result)
    with pytest.raises(TypeError, match="appraise again"):
        pickle.dumps(result)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.checks = checks


def test_a_result_without_checks_is_no_pass(world: World) -> None:
    result = world.appraise()
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    empty = AttestationResult(**{**fields, "checks": ()}, appraiser=APPRAISER)
    with pytest.raises(VerificationError, match="no checks"):
        empty.require_pass(world.now)


def test_a_pass_expires(world: World) -> None:
    result = world.appraise()
    assert result.expires_at == world.claims.issued_at + world.policy.freshness.max_age_seconds
    result.require_pass(result.expires_at - 1)
    for moment in (result.expires_at, result.appraised_at - 301):
        with pytest.raises(VerificationError) as refused:
            result.require_pass(moment)
        assert refused.value.code is ErrorCode.ATTESTATION_EXPIRED


def test_a_pass_lives_no_longer_than_the_collateral(world: World) -> None:
    result = world.with_collateral(valid_seconds=100).appraise()
    assert result.expires_at == world.now + 100


def test_a_pass_lives_no_longer_than_the_claims(world: World) -> None:
    assert world.claiming(expires_at=world.now + 9).appraise().expires_at == world.now + 9


def test_a_clock_that_runs_ahead_does_not_lengthen_a_pass(world: World) -> None:
    result = world.claiming(issued_at=world.now + 299).appraise()
    assert result.status == "pass"
    assert result.expires_at == world.now + world.policy.freshness.max_age_seconds


def test_receipt_evidence_is_not_for_sealing(world: World) -> None:
    with pytest.raises(VerificationError) as refused:
        world.showing(claims=world.receipt).appraise()
    assert (refused.value.code, refused.value.found) == (ErrorCode.EVIDENCE_INVALID, "receipt")


def test_a_ledger_records_each_check_once() -> None:
    ledger = Ledger(DATASET_CHECKS)
    ledger.judge(CheckCode.NONCE, True, expected="a", found="a")
    with pytest.raises(ValueError, match="twice"):
        ledger.leave_open(CheckCode.NONCE)


def test_an_appraisal_is_quick(world: World) -> None:
    evidence = world.evidence()
    arguments = {"collateral": world.collateral, "policy": world.policy, "nonce": world.nonce, "now": world.now}
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        verifier.appraise(evidence, **arguments, peer_spki_sha256=world.peer)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.05  # about 5 ms; wide, as test machines are shared


def test_another_vm_of_the_same_root_needs_its_own_policy(world: World) -> None:
    other = SimulatedVm(world.vm.app_compose.replace("demo", "evil"), b"a seed of 32 bytes for appraisals")
    assert set(world.change(vm=other).contraindicated()) >= {"compose-accepted", "app-id"}
