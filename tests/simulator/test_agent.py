"""The simulated VM: its quotes fit its log, its log is one the verifier accepts, its constants stay."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, get_args

import dcap_qvl
import pytest

from trainer.attestation.dstack import event_log as verifier
from trainer.errors import UsageError
from trainer.simulator.agent import BANNER, Release, SimulatedVm, VmOptions, simulated_measurements
from trainer.simulator.appraisal_world import APP_COMPOSE as KMS_COMPOSE
from trainer.simulator.event_log_writer import EventVersion, RuntimeEvent

GPU_ATTESTATION = '{"result_code": 0}\n'


def options(**changes: Any) -> VmOptions:
    return VmOptions(**changes)


@pytest.mark.parametrize("version", get_args(EventVersion))
@pytest.mark.parametrize("release", list(Release))
@pytest.mark.parametrize("gpu", ["", GPU_ATTESTATION])
def test_quote_fits_the_log(
    compose: str, seed: bytes, version: EventVersion, release: Release, gpu: str
) -> None:
    vm = SimulatedVm(compose, seed, options=VmOptions(release, version, gpu))
    quote = vm.quote(b"data")
    report = dcap_qvl.Quote.parse(quote.quote).report
    events = verifier.parse_event_log(quote.event_log)
    assert verifier.replay(events) == report.rt_mr3
    assert verifier.order_problem(events) is None
    assert verifier.digest_problem(events) is None
    assert verifier.payload(events, "compose-hash") == hashlib.sha256(compose.encode()).digest()
    assert report.report_data == b"data".ljust(64, b"\0")
    for index in range(3):
        digests = [event.digest for event in events if event.imr == index]
        assert verifier.extend(digests) == getattr(report, f"rt_mr{index}")


def test_quote_is_genuine(vm: SimulatedVm, judge: Callable[..., dict[str, Any]]) -> None:
    judge(vm.quote(b"x").quote, vm.pki)


def test_releases_differ_in_what_the_log_shows(compose: str, seed: bytes) -> None:
    old, new = (SimulatedVm(compose, seed, options=options(release=release)) for release in Release)
    digests = [
        {bool(e["digest"]) for e in json.loads(vm.event_log()) if e["imr"] == 3}
        for vm in (old, new)
    ]
    assert digests == [{True}, {False}]
    assert old.td_fields() == new.td_fields()


def test_measurements_are_fixed_and_not_anyones_else(vm: SimulatedVm) -> None:
    other = SimulatedVm('{"name": "other"}', b"an entirely different seed")
    ours, theirs = vm.td_fields(), other.td_fields()
    assert (ours.mrtd, ours.rtmr0, ours.rtmr1, ours.rtmr2) == (
        theirs.mrtd,
        theirs.rtmr0,
        theirs.rtmr1,
        theirs.rtmr2,
    )
    assert ours.rtmr3 != theirs.rtmr3
    fixed = simulated_measurements()
    assert asdict(fixed) == {
        name: getattr(ours, name).hex() for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2")
    }
    # Part of saved policies: must not change unnoticed.
    assert fixed.mrtd.startswith("59c4dcd2cf26d120")


def test_app_id_is_of_the_first_deployment(seed: bytes) -> None:
    first = SimulatedVm(KMS_COMPOSE, seed)
    assert first.app_id == hashlib.sha256(KMS_COMPOSE.encode()).digest()[:20]
    upgraded = SimulatedVm(KMS_COMPOSE.replace("demo", "evil"), seed, app_id=first.app_id)
    assert upgraded.compose_hash != first.compose_hash
    assert upgraded.keys.derive("p").secret == first.keys.derive("p").secret
    assert upgraded.instance_id == first.instance_id
    unrelated = SimulatedVm(KMS_COMPOSE.replace("demo", "evil"), seed)
    assert unrelated.keys.derive("p").secret != first.keys.derive("p").secret


def test_without_a_key_service_keys_and_ids_end_with_the_boot(compose: str, seed: bytes) -> None:
    first, second = (SimulatedVm(compose, seed, boot_seed=bytes([boot]) * 32) for boot in range(2))
    assert first.key_provider == '{"name":"none","id":""}'
    assert first.keys.derive("p").secret != second.keys.derive("p").secret
    assert first.instance_id != second.instance_id
    by_app, by_service = first.derive_key("p", "sealing").signature_chain
    assert (len(by_app), by_service) == (65, b"")
    upgraded = SimulatedVm('{"name": "evil"}', seed, app_id=first.app_id)
    assert upgraded.app_id == upgraded.compose_hash[:20] != first.app_id


def test_the_key_service_is_the_one_that_the_text_names(seed: bytes) -> None:
    named = json.loads(SimulatedVm(KMS_COMPOSE, seed).key_provider)
    assert named == {"name": "kms", "id": json.loads(KMS_COMPOSE)["key_provider_id"]}
    unnamed = SimulatedVm('{"kms_enabled": true}', seed)
    assert len(json.loads(unnamed.key_provider)["id"]) == 2 * 91  # a P-256 public key in DER


@pytest.mark.parametrize(
    "text",
    [
        '{"key_provider": "tpm"}',
        '{"local_key_provider_enabled": true}',
        '{"key_provider": "none", "kms_enabled": true}',
        '{"kms_enabled": true, "key_provider_id": "FILL IN"}',
    ],
)
def test_a_key_provider_that_is_not_simulated_is_refused(seed: bytes, text: str) -> None:
    with pytest.raises(UsageError, match="key_provider"):
        SimulatedVm(text, seed)


def test_config_id_is_form_01_or_unset(compose: str, seed: bytes) -> None:
    vm = SimulatedVm(compose, seed)
    assert vm.td_fields().mr_config_id == b"\x01" + vm.compose_hash + bytes(15)
    without = SimulatedVm(compose, seed, options=options(config_id=False))
    assert without.td_fields().mr_config_id == bytes(48)


def test_single_fields_can_be_changed(
    vm: SimulatedVm, judge: Callable[..., dict[str, Any]]
) -> None:
    quote = vm.quote(b"x", rtmr3=b"\x09" * 48)
    report = judge(quote.quote, vm.pki)["report"]["TD10"]
    assert report["rt_mr3"] == "09" * 48
    assert report["rt_mr0"] == vm.td_fields().rtmr0.hex()


def test_application_events_extend_the_register(vm: SimulatedVm) -> None:
    before = vm.td_fields()
    vm.emit_event("my-event", b"payload")
    assert vm.td_fields().rtmr3 != before.rtmr3
    assert vm.td_fields().rtmr2 == before.rtmr2
    assert verifier.replay(verifier.parse_event_log(vm.event_log())) == vm.td_fields().rtmr3


@pytest.mark.parametrize("name", ["", "app-id", "compose-hash", "system-ready", "gpu-attestation"])
def test_system_events_cannot_be_emitted(vm: SimulatedVm, name: str) -> None:
    before = vm.events
    with pytest.raises(ValueError, match="does not use"):
        vm.emit_event(name, b"")
    assert vm.events == before


def test_other_log_can_be_measured(vm: SimulatedVm) -> None:
    vm.replace_events((*vm.events, RuntimeEvent("system-ready")))
    events = verifier.parse_event_log(vm.quote(b"x").event_log)
    assert verifier.order_problem(events) is not None
    assert verifier.replay(events) == vm.td_fields().rtmr3


def test_gpu_event_binds_the_exact_text(compose: str, seed: bytes) -> None:
    vm = SimulatedVm(compose, seed, options=options(gpu_attestation=GPU_ATTESTATION, gpu_count=8))
    payload = verifier.payload(verifier.parse_event_log(vm.event_log()), "gpu-attestation")
    assert payload is not None
    event = json.loads(payload)
    assert event["evidence_sha256"] == hashlib.sha256(GPU_ATTESTATION.encode()).hexdigest()
    assert (event["devices"], event["cc_mode"]) == (8, "on")
    assert json.loads(vm.vm_config)["num_gpus"] == 8


def test_report_data_has_a_limit(vm: SimulatedVm) -> None:
    with pytest.raises(ValueError, match="at most 64 bytes, got 65"):
        vm.quote(bytes(65))


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1, "a": 2}'])
def test_compose_must_be_one_json_object(seed: bytes, text: str) -> None:
    with pytest.raises(UsageError, match="app-compose"):
        SimulatedVm(text, seed)


def test_it_says_loudly_what_it_is(vm: SimulatedVm) -> None:
    assert "NOT a TEE" in BANNER
    assert "DEVELOPMENT" in BANNER
    assert "DEVELOPMENT" in json.loads(vm.vm_config)["image"]
    assert "DEVELOPMENT" in vm.pki.issue_root("KMS Root CA").certificate.subject.rfc4514_string()
