"""Real evidence that nobody on this project made: Intel's quote, dstack's event log and OS, dstack's key chain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest
from coincurve import PrivateKey

from trainer.attestation.catalogue import STATEMENT_CHECKS
from trainer.attestation.checks import CheckState, Ledger
from trainer.attestation.dstack.event_log import (
    digest_problem,
    extend,
    key_provider,
    order_problem,
    parse_event_log,
    payload,
    replay,
)
from trainer.attestation.dstack.key_chain import recover_root_key
from trainer.attestation.dstack.os_image import recompute
from trainer.attestation.policy import OsSection
from trainer.attestation.tdx.collateral import INTEL_ROOT_KEY_ID, parse_collateral
from trainer.attestation.tdx.quote_checks import QUOTE_CHECKS, judge_quote
from trainer.attestation.tdx.quote_verification import parse_quote, verify_quote

World = Any  # conftest.World

QUOTE_CODES = [definition.code for definition in QUOTE_CHECKS]
MID_JULY_2025 = 1_752_600_000
REAL_SEAM = "5b38e33a6487958b72c3c12a938eaa5e3fd4510c51aeeab58c7d5ecee41d7c436489d6c8e4f92f160b7cad34207b00c1"
REAL_APP_ID = "5bb4ff9a3837357f19dc176407a5709c62eb6c56"  # of dstack's guest agent fixture, whose keys these are


def read(vectors: Path, name: str) -> bytes:
    return (vectors / "tdx" / name).read_bytes()


def getquote(vectors: Path) -> dict[str, str]:
    answer: dict[str, str] = json.loads(read(vectors, "dstack-0.6.0-getquote.json"))
    return answer


def judged(vectors: Path, world: World, now: int, **more: str) -> dict[str, CheckState]:
    ledger = Ledger(STATEMENT_CHECKS)
    policy = (
        world.opened("trust_root", "intel")
        .demanding("tcb", min_evaluation_number=17, mr_seam=(REAL_SEAM,))
        .policy
    )
    quote, collateral = (
        read(vectors, "tdx_quote.bin"),
        json.loads(read(vectors, "tdx_quote_collateral.json")),
    )
    judge_quote(ledger, quote.hex(), json.dumps(collateral | more).encode(), policy, now)
    return {check.code: check.state for check in ledger.checks() if check.code in QUOTE_CODES}


def test_intels_quote_passes_every_check_under_intels_root(vectors: Path, world: World) -> None:
    states = judged(vectors, world, MID_JULY_2025)
    assert set(states.values()) == {CheckState.AFFIRMED}
    assert list(states) == QUOTE_CODES


def test_intels_quote_passes_beside_the_certificates_of_another_machine(
    vectors: Path, world: World
) -> None:
    other = dcap_qvl.Quote.parse(bytes.fromhex(getquote(vectors)["quote"])).cert_chain_pem_bytes()
    assert other is not None
    assert other not in read(vectors, "tdx_quote.bin")
    states = judged(vectors, world, MID_JULY_2025, pck_certificate_chain=other.decode())
    assert set(states.values()) == {CheckState.AFFIRMED}


def test_intels_quote_is_refused_after_its_collateral_ran_out(vectors: Path, world: World) -> None:
    states = judged(vectors, world, MID_JULY_2025 + 30 * 86400)
    assert [code for code, state in states.items() if state is CheckState.CONTRAINDICATED] == [
        "collateral-validity"
    ]


def test_intels_quote_is_refused_under_a_development_root(vectors: Path, world: World) -> None:
    evidence = read(vectors, "tdx_quote.bin").hex()
    ledger, open_seam = Ledger(STATEMENT_CHECKS), world.demanding("tcb", mr_seam="any").policy
    judge_quote(
        ledger, evidence, read(vectors, "tdx_quote_collateral.json"), open_seam, MID_JULY_2025
    )
    failed = [check.code for check in ledger.checks() if check.state is CheckState.CONTRAINDICATED]
    assert failed == ["root-of-trust"]


def test_the_root_is_intels(vectors: Path) -> None:
    quote = parse_quote(read(vectors, "tdx_quote.bin"))
    collateral = parse_collateral(read(vectors, "tdx_quote_collateral.json"))
    assert set(quote.chain.roots) == set(collateral.roots) == {INTEL_ROOT_KEY_ID}
    verified = verify_quote(quote, collateral, root_der=None, now=MID_JULY_2025)
    assert verified.root_key_id == INTEL_ROOT_KEY_ID
    assert (verified.status, verified.evaluation_number) == ("UpToDate", 17)
    assert verified.valid_from < MID_JULY_2025 < verified.valid_until


def test_the_real_event_log_replays_into_every_register(vectors: Path) -> None:
    answer = getquote(vectors)
    events = parse_event_log(answer["event_log"])
    report = parse_quote(bytes.fromhex(answer["quote"])).report
    for index in range(3):
        assert (
            extend([event.digest for event in events if event.imr == index])
            == report.registers[1 + index]
        )
    assert replay(events) == report.rtmr3
    assert (order_problem(events), digest_problem(events)) == (None, None)
    provider = key_provider(events)
    assert provider is not None
    assert provider.name == "kms"


def test_the_real_mrconfigid_binds_the_measured_compose_hash(vectors: Path) -> None:
    answer = getquote(vectors)
    events = parse_event_log(answer["event_log"])
    report = parse_quote(bytes.fromhex(answer["quote"])).report
    assert report.mr_config_id == b"\1" + (payload(events, "compose-hash") or b"") + bytes(15)


def test_the_real_os_is_recomputed_from_its_image(vectors: Path, world: World) -> None:
    answer = getquote(vectors)
    events = parse_event_log(answer["event_log"])
    report = parse_quote(bytes.fromhex(answer["quote"])).report
    image = json.loads(answer["vm_config"])["os_image_hash"]
    found = {name: getattr(report, name).hex() for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2")}
    assert recompute(answer["vm_config"], events, {image}).model_dump() == found


def os_check(vectors: Path, world: World, image: str, **changes: str) -> Any:
    """The OS check over the real evidence; the rest of the world is another one."""
    answer = getquote(vectors) | changes
    changed = world.opened("os", OsSection(image_sha256=(image,))).showing(
        quote=answer["quote"], event_log=answer["event_log"], vm_config=answer["vm_config"]
    )
    return changed.state("os-measurements")


def test_the_real_os_is_accepted_by_its_image_hash(vectors: Path, world: World) -> None:
    image = json.loads(getquote(vectors)["vm_config"])["os_image_hash"]
    assert os_check(vectors, world, image).state is CheckState.AFFIRMED


def test_another_image_hash_is_refused(vectors: Path, world: World) -> None:
    check = os_check(vectors, world, "00" * 32)
    assert check.state is CheckState.CONTRAINDICATED
    assert "not an accepted one" in check.detail


@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({"memory_size": 4 << 30}, "rtmr0"),
        ({"qemu_version": "9.2.0"}, "mrtd"),
    ],
)
def test_a_false_vm_shape_gives_other_registers(
    vectors: Path, world: World, changes: dict[str, object], other: str
) -> None:
    config = json.loads(getquote(vectors)["vm_config"])
    check = os_check(
        vectors, world, config["os_image_hash"], vm_config=json.dumps(config | changes)
    )
    assert check.state is CheckState.CONTRAINDICATED
    assert check.detail.endswith(other)


def test_a_false_acpi_digest_gives_another_register(vectors: Path, world: World) -> None:
    answer = getquote(vectors)
    log = json.loads(answer["event_log"])
    next(event for event in log if event["event"] == "acpi-rsdp")["digest"] = "00" * 48
    image = json.loads(answer["vm_config"])["os_image_hash"]
    check = os_check(vectors, world, image, event_log=json.dumps(log))
    assert check.state is CheckState.CONTRAINDICATED
    assert check.detail.endswith("rtmr0")


def test_the_key_service_root_is_recovered(vectors: Path) -> None:
    keys = json.loads((vectors / "kms" / "appkeys.json").read_text())
    app_key = PrivateKey(bytes.fromhex(keys["k256_key"])).public_key.format()
    root = recover_root_key(
        bytes.fromhex(keys["k256_signature"]), bytes.fromhex(REAL_APP_ID), app_key
    )
    assert root.hex() == "0321529e458424ab1f710a3a57ec4dad2fb195ddca572f7469242ba6c7563085b6"
    assert recover_root_key(bytes.fromhex(keys["k256_signature"]), bytes(20), app_key) != root
