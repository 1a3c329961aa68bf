"""The verdict as a whole: what passes, what is left open, and what an appraisal that finds nothing says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.attestation.attacks_gpu import without_fwid
from tests.attestation.tampering import honest_quote, measuring, outdated, removed, with_module
from tests.growth import shortest
from trainer.attestation import verifier
from trainer.attestation.catalogue import DEFINITIONS
from trainer.attestation.checks import CheckState
from trainer.attestation.claims.binding import gpu_evidence_sha256
from trainer.attestation.evidence import GpuEvidence, parse_evidence
from trainer.errors import ErrorCode, VerificationError
from trainer.simulator.agent import Release, SimulatedVm, VmOptions
from trainer.simulator.appraisal_world import SEALED_COMPOSE, SEED
from trainer.simulator.gpu_evidence import GPU_BOOT

World = Any  # conftest.World


UNENDORSED = ("gpu-report-measurements", "gpu-report-revocation")
"""What the honest world leaves open: manifests and revocation answers have honest worlds of their own."""


def test_the_honest_world_is_affirmed_in_everything(world: World) -> None:
    result = world.appraise()
    assert [check.code for check in result.checks if check.state is not CheckState.AFFIRMED] == [
        *UNENDORSED
    ]
    assert result.status == "pass"
    result.require_pass(world.now)
    assert result.recipient == world.claims.recipients.instance
    assert result.job_spec_sha256 == world.claims.job_spec_sha256


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
    changed = outdated(world, 29).demanding(
        "tcb", accepted_statuses=("UpToDate", "OutOfDate"), grace_days=30
    )
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
    assert (
        changed.demanding(
            "tcb", accepted_statuses=("OutOfDate",), grace_days=3650
        ).contraindicated()
        == []
    )


def sealed_world(make_world: Callable[..., World], **changes: Any) -> World:
    """An honest VM that makes its keys itself."""
    options = VmOptions(gpu_attestation=GPU_BOOT, image="dstack-0.6.0", **changes)
    return make_world(vm=SimulatedVm(SEALED_COMPOSE, SEED, options=options))


def test_a_vm_without_a_key_service_is_affirmed_where_none_is_demanded(
    make_world: Callable[..., World],
) -> None:
    world = sealed_world(make_world)
    result = world.appraise()
    left_open = [check.code for check in result.checks if check.state is not CheckState.AFFIRMED]
    assert left_open == [*UNENDORSED]
    assert result.status == "pass"
    assert result.check("key-provider").found == "none"


def test_the_two_profiles_are_refused_under_the_policy_of_the_other(
    world: World, make_world: Callable[..., World]
) -> None:
    sealed = sealed_world(make_world)
    expected = ["compose-accepted", "app-id", "key-provider", "key-chain", "init-scripts"]
    assert world.change(policy=sealed.policy).contraindicated() == expected
    assert sealed.change(policy=world.policy).contraindicated() == expected


def test_another_version_of_a_sealed_app_has_another_app_id(
    make_world: Callable[..., World],
) -> None:
    world = sealed_world(make_world)
    other = SimulatedVm(
        SEALED_COMPOSE + " ", SEED, app_id=world.vm.app_id, options=world.vm.options
    )
    assert "app-id" in world.change(vm=other).contraindicated()


def test_a_guest_that_measures_no_script_is_judged_by_the_text(world: World) -> None:
    older = measuring(world, removed("init-script-hash"))
    assert older.contraindicated() == []
    assert older.state("init-scripts").detail == "the guest measures no script by itself"
    unreadable = older.showing(app_compose="{").state("init-scripts")
    assert (unreadable.state, unreadable.found) == (CheckState.CONTRAINDICATED, "not readable")


@pytest.mark.parametrize("allowed", [("CET",), ("UINTR",), ("CET", "UINTR")])
def test_cpu_state_that_a_policy_allows_is_accepted(world: World, allowed: tuple[str, ...]) -> None:
    bits = sum({"CET": 0x1800, "UINTR": 0x4000}[name] for name in allowed)
    changed = world.change(td={"xfam": (0x602E7 | bits).to_bytes(8, "little")})
    assert changed.demanding("platform", xfam=allowed).contraindicated() == []
    assert "platform.xfam" in str(DEFINITIONS["td-xfam"].hint)


@pytest.mark.parametrize("zeros", [1, 99])
def test_zeros_after_a_gpu_report_are_padding(world: World, zeros: int) -> None:
    assert world.with_gpu(tail=bytes(zeros)).contraindicated() == []


def test_a_gpu_report_that_names_no_firmware_is_accepted_if_the_policy_leaves_it_open(
    world: World,
) -> None:
    older = without_fwid(world).demanding("gpu", firmware_id="any")
    assert older.contraindicated() == []
    assert older.state("gpu-report-fwid").state is CheckState.NOT_DEMANDED
    assert (
        world.demanding("gpu", firmware_id="any").state("gpu-report-fwid").state
        is CheckState.AFFIRMED
    )


def test_a_development_root_is_in_the_result(world: World) -> None:
    result = world.appraise()
    assert result.development_root
    assert any("imitate a TEE" in caution for caution in result.cautions)
    genuine = world.opened("trust_root", "intel").appraise()
    assert (genuine.development_root, genuine.cautions) == (False, ())


def test_zeros_after_the_quote_are_padding(world: World) -> None:
    assert world.change(quote=honest_quote(world) + bytes(70)).contraindicated() == []


def test_mrconfigid_may_be_unset(make_world: Callable[..., World]) -> None:
    world = make_world(VmOptions(gpu_attestation=GPU_BOOT, config_id=False))
    assert world.contraindicated() == []


@pytest.mark.parametrize(
    "options",
    [
        VmOptions(gpu_attestation=GPU_BOOT, event_version=2),
        VmOptions(gpu_attestation=GPU_BOOT, release=Release.V0_5),
        VmOptions(gpu_attestation=GPU_BOOT, release=Release.V0_5, event_version=2),
    ],
)
def test_other_releases_and_event_versions_pass(
    make_world: Callable[..., World], options: VmOptions
) -> None:
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
    "init-scripts": lambda w: w.demanding("app", init_script_sha256="any"),
    "platform-ppid": lambda w: w.demanding("platform", ppid="any"),
    "tls-key": lambda w: w.change(peer=None),
    "gpu-required": lambda w: w.demanding("gpu", required=False),
    "gpu-report-versions": lambda w: w.demanding(
        "gpu", min_driver_version="any", min_vbios_version="any"
    ),
    "sandbox": lambda w: w.opened("sandbox"),
}


ALONG: dict[str, tuple[str, ...]] = {
    "os-measurements": ("os-development",),
    "gpu-required": ("gpu-cc-mode",),
    "gpu-devtools": ("gpu-boot-debug",),
    "gpu-report-versions": ("gpu-boot-versions",),
}
"""What is left open by the same word of the policy."""


@pytest.mark.parametrize("code", OPENINGS)
def test_what_is_left_open_shows_as_not_demanded(world: World, code: str) -> None:
    result = OPENINGS[code](world).appraise()
    left_open = {check.code for check in result.checks if check.state is CheckState.NOT_DEMANDED}
    assert left_open == {code, *ALONG.get(code, ()), *UNENDORSED}
    assert result.status == "pass"


def test_a_vm_without_gpu(make_world: Callable[..., World]) -> None:
    world = make_world(VmOptions())
    assert world.contraindicated() == ["gpu-required", "gpu-report-count"]
    lenient = world.demanding("gpu", required=False).without_reports()
    assert lenient.contraindicated() == []
    assert lenient.state("gpu-boot").state is CheckState.NOT_DEMANDED


@pytest.mark.parametrize("boot", ["", '{"claims": [1]}\n'])
def test_boot_evidence_and_measured_event_belong_together(
    make_world: Callable[..., World], boot: str
) -> None:
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
    for code in (
        "quote-signature",
        "rtmr3-replay",
        "report-data",
        "os-measurements",
        "compose-hash",
        "gpu-boot",
    ):
        assert states[code] is CheckState.NOT_REACHED
    for code in ("nonce", "tls-key", "job-spec-digest", "compose-accepted", "claims-validity"):
        assert states[code] is CheckState.AFFIRMED
    assert result.td is None
    assert result.status == "fail"


def test_chains_without_any_root_are_refused(world: World) -> None:
    """Nothing to compare must not be the same as nothing wrong."""
    quote = honest_quote(world).replace(
        b"-----BEGIN CERTIFICATE-----", b"-----BEGIN  ERTIFICATE-----"
    )
    document = json.loads(world.collateral)
    bare = {
        name: "" if name.endswith("issuer_chain") else value for name, value in document.items()
    }
    changed = world.change(quote=quote, collateral=json.dumps(bare).encode())
    assert changed.contraindicated() == ["quote-format"]
    assert changed.state("root-of-trust").state is CheckState.NOT_REACHED
    assert world.change(collateral=json.dumps(bare).encode()).contraindicated() != []


def test_receipt_evidence_is_not_for_sealing(world: World) -> None:
    document = json.loads(world.evidence().canonical()) | {
        "claims": world.receipt.model_dump(mode="json")
    }
    with pytest.raises(VerificationError, match=r"claims\.purpose") as refused:
        parse_evidence(json.dumps(document).encode())
    assert refused.value.code is ErrorCode.EVIDENCE_INVALID


def test_an_appraisal_is_quick(world: World) -> None:
    """It takes about 30 times as long as parsing its evidence: 5 ms on a machine with nothing else to do."""
    evidence = world.evidence()
    arguments = {
        "collateral": world.collateral,
        "policy": world.policy,
        "nonce": world.nonce,
        "now": world.now,
    }
    text = evidence.canonical()
    appraisal = shortest(
        lambda: verifier.appraise(evidence, **arguments, peer_spki_sha256=world.peer), 10
    )
    assert appraisal < 200 * shortest(lambda: parse_evidence(text), 10)


def test_another_vm_of_the_same_root_needs_its_own_policy(world: World) -> None:
    other = SimulatedVm(
        world.vm.app_compose.replace("demo", "evil"), b"a seed of 32 bytes for appraisals"
    )
    assert set(world.change(vm=other).contraindicated()) >= {"compose-accepted", "app-id"}
