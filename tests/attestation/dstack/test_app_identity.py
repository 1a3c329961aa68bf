"""MRCONFIGID, the OS image's name, and the app's keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from trainer.attestation.catalogue import DEFINITIONS
from trainer.attestation.checks import CheckState
from trainer.attestation.dstack.event_log import Event, parse_event_log, payload, payloads
from trainer.attestation.dstack.keccak import keccak256
from trainer.attestation.dstack.key_chain import proves_possession
from trainer.attestation.dstack.key_source import CLEAN_START_SHA256
from trainer.attestation.dstack.os_image import image_name, is_development
from trainer.attestation.policy import OsSection
from trainer.attestation.tdx.config_id import DOCUMENT_DOMAIN, UNSET, acceptable_config_ids
from trainer.encoding import canonical_json
from trainer.simulator.agent import SimulatedVm, VmOptions
from trainer.simulator.appraisal_world import SEALED_COMPOSE, SEED
from trainer.simulator.event_log_writer import RuntimeEvent
from trainer.simulator.gpu_evidence import GPU_BOOT

World = Any  # conftest.World
DEVELOPMENT = '{"image": "dstack-dev-0.6.0"}'


def configured(world: World, form: int, digest: bytes) -> World:
    """A VM that the host configured in another form."""
    return world.change(td={"mr_config_id": (bytes([form]) + digest).ljust(48, b"\0")})


def log_of(world: World) -> tuple[Event, ...]:
    return parse_event_log(world.evidence().event_log)


def binding(world: World, *, kind: int = 2, app_id: bytes | None = None) -> bytes:
    """Form 02 as the host makes it; 2 stands for a KMS."""
    identity = bytes.fromhex(world.policy.app.key_provider.id)
    return keccak256(world.vm.compose_hash + (app_id or world.vm.app_id) + bytes([kind]) + identity)


def document(world: World, **changes: object) -> bytes:
    """Form 03 as the host makes it; None leaves a field out."""
    fields: dict[str, object] = {
        "version": 3,
        "app_id": world.vm.app_id.hex(),
        "compose_hash": world.vm.compose_hash.hex(),
        "gpu_policy_hash": (payload(log_of(world), "gpu-policy-hash") or b"").hex(),
        "key_provider": "kms",
        "key_provider_id": world.policy.app.key_provider.id,
        "instance_id": world.vm.instance_id.hex(),
    }
    kept = {name: value for name, value in (fields | changes).items() if value is not None}
    return hashlib.sha256(DOCUMENT_DOMAIN + canonical_json(kept)).digest()


ATTACKS: dict[str, tuple[str, Callable[[World], World]]] = {
    "another app id in MRCONFIGID, form 02": (
        "mr-config-id",
        lambda w: configured(w, 2, binding(w, app_id=bytes(20))),
    ),
    "another kind of key provider in MRCONFIGID, form 02": (
        "mr-config-id",
        lambda w: configured(w, 2, binding(w, kind=1)),
    ),
    "another instance in MRCONFIGID, form 03": (
        "mr-config-id",
        lambda w: configured(w, 3, document(w, instance_id="00" * 20)),
    ),
    "another compose hash in MRCONFIGID, form 03": (
        "mr-config-id",
        lambda w: configured(w, 3, document(w, compose_hash="00" * 32)),
    ),
    "a key provider of another kind in MRCONFIGID, form 03": (
        "mr-config-id",
        lambda w: configured(w, 3, document(w, key_provider="none")),
    ),
    "an init script that was not measured in MRCONFIGID, form 03": (
        "mr-config-id",
        lambda w: configured(w, 3, document(w, init_script_hashes=["00" * 32])),
    ),
    "a development image": (
        "os-development",
        lambda w: w.showing(vm_config=DEVELOPMENT),
    ),
}


def test_the_forms_of_mrconfigid_that_dstack_writes_are_affirmed(world: World) -> None:
    full, bare = (
        document(world),
        document(world, app_id=None, gpu_policy_hash=None, instance_id=None),
    )
    listed = document(world, init_script_hashes=[CLEAN_START_SHA256])
    for digest in (full, bare, listed):
        assert configured(world, 3, digest).state("mr-config-id").state is CheckState.AFFIRMED
    check = configured(world, 2, binding(world)).state("mr-config-id")
    assert (check.state, check.detail) == (
        CheckState.AFFIRMED,
        "form 02: compose hash, app id and key provider",
    )
    assert (
        world.change(td={"mr_config_id": UNSET}).state("mr-config-id").state is CheckState.AFFIRMED
    )


def test_the_forms_of_mrconfigid_of_a_vm_without_a_key_service_are_affirmed(
    make_world: Callable[..., World],
) -> None:
    vm = SimulatedVm(
        SEALED_COMPOSE, SEED, options=VmOptions(gpu_attestation=GPU_BOOT, image="dstack-0.6.0")
    )
    world = make_world(vm=vm)
    short = keccak256(vm.compose_hash + vm.app_id + b"\0")
    whole = document(world, key_provider="none", key_provider_id=None)
    listed = document(world, key_provider="none", key_provider_id="", init_script_hashes=[])
    for form, digest in ((2, short), (3, whole), (3, listed)):
        assert configured(world, form, digest).state("mr-config-id").state is CheckState.AFFIRMED
    service = document(world, key_provider="kms", key_provider_id=None)
    assert configured(world, 3, service).state("mr-config-id").state is CheckState.CONTRAINDICATED


def test_init_scripts_are_read_from_before_system_ready(world: World) -> None:
    scripts = [RuntimeEvent("init-script-hash", bytes([number]) * 32) for number in (1, 2)]
    events = list(world.vm.events)
    names = [getattr(event, "name", "") for event in events]
    at = names.index("compose-hash") + 1
    world.vm.replace_events(
        (*events[:at], *scripts, *events[at + 1 :], RuntimeEvent("init-script-hash", b"late"))
    )
    assert payloads(log_of(world), "init-script-hash") == (b"\1" * 32, b"\2" * 32)
    digest = document(world, init_script_hashes=["01" * 32, "02" * 32])
    assert configured(world, 3, digest).state("mr-config-id").state is CheckState.AFFIRMED


@pytest.mark.parametrize("provider", [b"kms", b'{"name": "cloud", "id": ""}'])
def test_without_a_known_key_provider_the_wider_forms_bind_nothing(
    world: World, provider: bytes
) -> None:
    events = tuple(
        replace(event, payload=provider) if getattr(event, "name", "") == "key-provider" else event
        for event in world.vm.events
    )
    world.vm.replace_events(events)
    for form in (2, 3):
        assert acceptable_config_ids(form, world.vm.compose_hash, log_of(world)) == frozenset()


def test_an_identity_that_is_not_hex_counts_as_none(world: World) -> None:
    provider = b'{"name": "none", "id": "not hex"}'
    events = (RuntimeEvent("app-id", world.vm.app_id), RuntimeEvent("key-provider", provider))
    world.vm.replace_events(events)
    digest = keccak256(world.vm.compose_hash + world.vm.app_id + b"\0")
    ids = acceptable_config_ids(2, world.vm.compose_hash, log_of(world))
    assert ids == {b"\2" + digest + bytes(15)}


def test_mrconfigid_without_an_event_log_is_judged_where_it_can_be(world: World) -> None:
    assert world.showing(event_log="[").state("mr-config-id").state is CheckState.AFFIRMED
    changed = configured(world.showing(event_log="["), 3, document(world))
    assert changed.state("mr-config-id").state is CheckState.CONTRAINDICATED


@pytest.mark.parametrize(
    "name", ["dstack-dev-0.6.0", "dstack-nvidia-dev-0.5.4", "DEVELOPMENT-simulated", "dev"]
)
def test_development_images_are_told_by_name(name: str) -> None:
    assert is_development(name)


@pytest.mark.parametrize("name", ["dstack-0.6.0", "dstack-nvidia-0.5.4", "device", "devops-1"])
def test_production_images_are_not_taken_for_development_images(name: str) -> None:
    assert not is_development(name)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"image": 1}', '{"image": "a", "image": "b"}']
)
def test_an_image_without_name(text: str) -> None:
    assert image_name(text) is None


def test_development_images_are_left_open_where_nobody_refuses_them(world: World) -> None:
    lenient = world.opened("os", world.policy.os.model_copy(update={"development": "any"}))
    for changed in (world.opened("os"), lenient):
        assert (
            changed.showing(vm_config=DEVELOPMENT).state("os-development").state
            is CheckState.NOT_DEMANDED
        )


def test_a_host_that_names_no_image_does_not_pass_by_silence(world: World) -> None:
    other = world.opened(
        "os", OsSection(measurements=world.policy.os.measurements[:0], image_sha256=("00" * 32,))
    )
    unnamed = other.showing(vm_config="{}").state("os-development")
    assert (unnamed.state, unnamed.found) == (CheckState.CONTRAINDICATED, "no image name")
    unread = world.change(quote=b"\4\0quote").showing(vm_config="{}").state("os-development")
    assert unread.state is CheckState.CONTRAINDICATED


@pytest.mark.parametrize("config", ["{}", "", '{"image": null}'])
def test_a_listed_image_needs_no_name_of_the_host(world: World, config: str) -> None:
    """dstack 0.5 names no image; the measurements say which one it is."""
    unnamed = world.showing(vm_config=config)
    assert unnamed.contraindicated() == []
    assert unnamed.state("os-development").state is CheckState.AFFIRMED
    assert "os.development" in str(DEFINITIONS["os-development"].hint)


def test_a_listed_image_may_still_be_refused_as_a_development_image() -> None:
    assert OsSection(image_sha256=("00" * 32,)).development == "refused"


def test_a_chain_is_left_open_where_no_root_is_named(world: World) -> None:
    opened = world.demanding("app", kms_root_key="any")
    check = opened.state("key-chain")
    assert (check.state, check.found) == (
        CheckState.NOT_DEMANDED,
        world.vm.key_service.root_public_key.hex(),
    )
    bare = opened.showing(key_chain=None).state("key-chain")
    assert (bare.state, bare.found) == (CheckState.NOT_DEMANDED, "no key chain")


def test_possession_is_judged_without_a_key_service(world: World) -> None:
    bare = world.demanding("app", kms_root_key="any").showing(key_chain=None)
    assert bare.state("key-possession").state is CheckState.AFFIRMED
    assert bare.showing(event_log="[").state("key-possession").state is CheckState.AFFIRMED


def test_a_public_key_that_is_no_point_proves_nothing(world: World) -> None:
    evidence = world.evidence()
    keys = evidence.claims.derived_keys.model_copy(update={"possession": "02" + "ff" * 32})
    assert not proves_possession(
        evidence.possession, evidence.claims.model_copy(update={"derived_keys": keys})
    )
