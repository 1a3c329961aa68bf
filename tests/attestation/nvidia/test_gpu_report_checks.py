"""Fresh GPU reports: NVIDIA's own vector, strict parsing, and chains in which one thing is wrong."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st

from trainer.attestation.catalogue import DATASET_CHECKS
from trainer.attestation.checks import CheckState, Ledger
from trainer.attestation.evidence import FreshGpuEvidence
from trainer.attestation.nvidia.certificate_chain import (
    NVIDIA_ROOT_SHA256,
    certified_fwid,
    parse_chain,
    verify_chain,
)
from trainer.attestation.nvidia.gpu_report_checks import RELAY_LIMIT, judge_gpu_reports
from trainer.attestation.nvidia.report_judgement import GpuReportContext
from trainer.attestation.nvidia.spdm_report import (
    MAX_REPORT_BYTES,
    GpuReport,
    gpu_nonce,
    parse_gpu_report,
    verify_signature,
)
from trainer.attestation.policy import GpuSection

World = Any  # conftest.World
Bench = Any  # conftest.GpuBench

MID_JULY_2025 = 1_752_600_000
YEAR_2021 = 1_610_000_000  # the GPU's own certificate is valid already, its provisioner's is not
REAL_NONCE = bytes.fromhex("931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb")
OPEN = GpuSection(
    required=False,
    boot="any",
    fresh="any",
    count="any",
    models="any",
    min_driver_version="any",
    min_vbios_version="any",
    devtools="any",
    firmware_id="required",
    reference_values="any",
    revocation="any",
)


# NVIDIA's own sample of a Hopper GPU


@pytest.fixture
def hopper(vectors: Path) -> FreshGpuEvidence:
    folder = vectors / "gpu"
    return FreshGpuEvidence(
        report=(folder / "hopperAttestationReport.txt").read_text().strip().lower(),
        certificate_chain=(folder / "hopperCertChain.txt").read_text(),
    )


def judged(
    evidence: FreshGpuEvidence,
    *,
    nonce: bytes = REAL_NONCE,
    now: int = MID_JULY_2025,
    root: str = NVIDIA_ROOT_SHA256,
) -> dict[str, CheckState]:
    ledger = Ledger(DATASET_CHECKS)
    judge_gpu_reports(ledger, [evidence], OPEN, GpuReportContext(nonce, now, root))
    return {
        check.code: check.state for check in ledger.checks() if check.code.startswith("gpu-report-")
    }


def contraindicated(states: dict[str, CheckState]) -> list[str]:
    return [code for code, state in states.items() if state is CheckState.CONTRAINDICATED]


def test_nvidias_hopper_report_passes_under_nvidias_root(hopper: FreshGpuEvidence) -> None:
    states = judged(hopper)
    for name in ("versions", "models", "measurements", "revocation"):
        assert states.pop(f"gpu-report-{name}") is CheckState.NOT_DEMANDED
    assert set(states.values()) == {CheckState.AFFIRMED}
    assert len(states) == 6


def test_nvidias_hopper_report_says_what_it_runs(hopper: FreshGpuEvidence) -> None:
    report = parse_gpu_report(bytes.fromhex(hopper.report))
    assert (report.nonce, report.driver_version) == (REAL_NONCE, "550.90.07")
    assert report.vbios_version == "96.00.9F.00.01"
    assert [len(value) for value in report.measurements.values()] == [48] * 64
    assert certified_fwid(parse_chain(hopper.certificate_chain)[0]) == report.fwid


def test_the_pinned_root_is_nvidias(vectors: Path) -> None:
    root = x509.load_pem_x509_certificate(
        (vectors / "gpu" / "verifier_device_root.pem").read_bytes()
    )
    assert root.fingerprint(hashes.SHA256()).hex() == NVIDIA_ROOT_SHA256


@pytest.mark.parametrize("now", [YEAR_2021, 0])
def test_nvidias_report_is_refused_before_its_certificates_begin(
    hopper: FreshGpuEvidence, now: int
) -> None:
    assert contraindicated(judged(hopper, now=now)) == ["gpu-report-chain"]


def test_nvidias_report_is_refused_for_another_nonce_or_root(hopper: FreshGpuEvidence) -> None:
    assert contraindicated(judged(hopper, nonce=bytes(32))) == ["gpu-report-nonce"]
    assert contraindicated(judged(hopper, root="00" * 32)) == ["gpu-report-chain"]


@pytest.mark.parametrize("at", [36 + 8 + 10, 2000, 3300, -97, -96, -1])
def test_a_changed_byte_of_nvidias_report_is_refused(hopper: FreshGpuEvidence, at: int) -> None:
    data = bytearray(bytes.fromhex(hopper.report))
    data[at] ^= 1
    assert contraindicated(judged(hopper.model_copy(update={"report": data.hex()}))) != []


# the appraisal


def test_a_report_that_nobody_asked_for_is_verified_all_the_same(world: World) -> None:
    left_open = {
        "fresh": "any",
        "count": "any",
        "min_driver_version": "any",
        "min_vbios_version": "any",
    }
    opened = world.demanding("gpu", **left_open)
    assert opened.contraindicated() == []
    assert opened.state("gpu-report-signature").state is CheckState.AFFIRMED
    assert opened.with_gpu(nonce=bytes(32)).contraindicated() == ["gpu-report-nonce"]


def test_without_reports_nothing_is_demanded_of_them(world: World) -> None:
    states = {check.code: check.state for check in world.without_reports().appraise().checks}
    reports = {code: state for code, state in states.items() if code.startswith("gpu-report-")}
    assert len(reports) == 10
    assert set(reports.values()) == {CheckState.NOT_DEMANDED}
    assert world.without_reports().contraindicated() == []


def test_missing_reports_leave_nothing_affirmed(world: World) -> None:
    result = world.answering().appraise()
    states = {
        check.code: check.state for check in result.checks if check.code.startswith("gpu-report-")
    }
    assert states.pop("gpu-report-count") is CheckState.CONTRAINDICATED
    assert set(states.values()) == {CheckState.NOT_REACHED}
    assert result.status == "fail"


def test_under_nvidias_root_a_gpu_of_the_tests_is_refused(world: World) -> None:
    assert world.change(gpu_root_sha256=NVIDIA_ROOT_SHA256).contraindicated() == [
        "gpu-report-chain"
    ]


def test_several_gpus_pass_and_one_bad_one_is_named(world: World, gpus: Bench) -> None:
    ca = replace(gpus.ca, scalar=3002)
    other = gpus.answer(replace(gpus.leaf, scalar=3001), ca, gpus.root)
    two = world.answering(*world.gpu.fresh, other).demanding("gpu", boot="any", count=2)
    assert two.contraindicated() == []
    bad = gpus.answer(replace(gpus.leaf, scalar=3001), ca, gpus.root, nonce=bytes(32))
    refused = world.answering(*world.gpu.fresh, bad).demanding("gpu", boot="any", count=2)
    assert refused.contraindicated() == ["gpu-report-nonce"]
    assert "report 1: expected" in (refused.state("gpu-report-nonce").found or "")


def test_the_relay_limit_is_said_with_the_signature(world: World) -> None:
    assert world.state("gpu-report-signature").detail == RELAY_LIMIT


@pytest.mark.parametrize(
    ("driver", "least", "reached"),
    [
        (b"550.90.07", "550.90.07", True),
        (b"550.90.07", "550.90.7", True),
        (b"570.86", "550.90.07", True),
        (b"1000.1", "999.9", True),
        (b"550.90", "550.90.00", True),
        (b"550.90", "550.90.01", False),
        (b"99.99", "550.90", False),
    ],
)
def test_driver_versions_compare_as_numbers(
    world: World, gpus: Bench, driver: bytes, least: str, reached: bool
) -> None:
    answered = world.with_gpu(opaque={**gpus.opaque, 3: driver})
    changed = answered.demanding(
        "gpu", boot="any", min_driver_version=least, min_vbios_version="any"
    )
    assert changed.contraindicated() == ([] if reached else ["gpu-report-versions"])


@pytest.mark.parametrize(
    ("least", "reached"),
    [
        ("96.00.9f.00.01", True),
        ("96.00.9E.FF.FF", True),
        ("96.00.9F.00.02", False),
        ("9A.00.00.00.00", False),
    ],
)
def test_vbios_versions_compare_as_hex(world: World, least: str, reached: bool) -> None:
    changed = world.demanding("gpu", boot="any", min_driver_version="any", min_vbios_version=least)
    assert changed.contraindicated() == ([] if reached else ["gpu-report-versions"])


# parsing


def test_the_honest_report_is_read(gpus: Bench) -> None:
    report = parse_gpu_report(gpus.report(nonce=b"\3" * 32))
    assert (report.nonce, report.fwid, set(report.measurements)) == (b"\3" * 32, gpus.fwid, {1, 2})
    assert report.opaque == gpus.opaque
    verify_signature(report, gpus.leaf.key.public_key())


def without(opaque: dict[int, bytes], kind: int) -> dict[int, bytes]:
    return {each: value for each, value in opaque.items() if each != kind}


MALFORMED: dict[str, tuple[str, Callable[[Bench], bytes]]] = {
    "nothing": ("expected 4 more bytes, got 0", lambda g: b""),
    "too long": ("at most 8192", lambda g: bytes(MAX_REPORT_BYTES + 1)),
    "another request": ("the request", lambda g: g.report(request=b"\x11\xe0\x00\xff")),
    "a later SPDM": ("the response", lambda g: g.report(header=b"\x12\x60\0\0")),
    "an error for an answer": ("the response", lambda g: g.report(header=b"\x11\x7f\0\0")),
    "an answer for another slot": ("slot", lambda g: g.report(slot=1)),
    "a request for another slot": ("slot", lambda g: g.report(header=b"\x11\x60\0\1")),
    "a measurement twice": (
        "measurement 1 occurs twice",
        lambda g: g.report(blocks=(g.block(1),) * 2),
    ),
    "another specification": ("DMTF", lambda g: g.report(blocks=(b"\1\2" + g.block(1)[2:],))),
    "a block longer than its value": (
        "1 bytes too many",
        lambda g: g.report(blocks=(b"\1\1\x05\0\0\1\0!!",)),
    ),
    "a value longer than its block": (
        "measurement 1: expected",
        lambda g: g.report(blocks=(b"\1\1\4\0\0\2\0!",)),
    ),
    "a block longer than the record": (
        "measurement record",
        lambda g: g.report(blocks=(b"\1\1\x05\0\0\1\0!",)),
    ),
    "bytes after the measurements": (
        "the measurement record: 1 bytes too many",
        lambda g: g.report(blocks=(g.block(1), g.block(2) + b"!")),
    ),
    "an opaque field twice": (
        "opaque field 20 occurs twice",
        lambda g: g.report(opaque_bytes=g.tlv(g.opaque) + g.tlv({20: bytes(48)})),
    ),
    "half an opaque field": (
        "the opaque data",
        lambda g: g.report(opaque_bytes=g.tlv(g.opaque) + b"\7"),
    ),
    "no driver version": ("driver version", lambda g: g.report(opaque=without(g.opaque, 3))),
    "no VBIOS version": ("VBIOS version", lambda g: g.report(opaque=without(g.opaque, 6))),
    "a short firmware id": (
        "expected 48 bytes",
        lambda g: g.report(opaque={**g.opaque, 20: bytes(32)}),
    ),
    "a long VBIOS version": (
        "expected 8 bytes",
        lambda g: g.report(opaque={**g.opaque, 6: bytes(9)}),
    ),
    "a driver version in words": (
        "driver version",
        lambda g: g.report(opaque={**g.opaque, 3: b"latest\0"}),
    ),
    "a driver version cut by a zero": (
        "driver version",
        lambda g: g.report(opaque={**g.opaque, 3: b"550.9\0x\0"}),
    ),
    "no signature": ("the report: expected 96", lambda g: g.report()[:-96]),
    "bytes after the signature": ("bytes other than zero", lambda g: g.report(tail=b"\0!")),
    "bytes before zeros after the signature": (
        "bytes other than zero",
        lambda g: g.report(tail=b"!\0"),
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_report_is_refused_by_name(gpus: Bench, name: str) -> None:
    words, make = MALFORMED[name]
    with pytest.raises(ValueError, match=words):
        parse_gpu_report(make(gpus))


def test_a_report_cut_anywhere_is_refused(gpus: Bench) -> None:
    whole = gpus.report()
    for size in range(len(whole)):
        with pytest.raises(ValueError, match="expected"):
            parse_gpu_report(whole[:size])


def parsed_or_refused(data: bytes) -> GpuReport | None:
    try:
        return parse_gpu_report(data)
    except ValueError:
        return None


@given(st.binary(max_size=600))
def test_any_bytes_are_a_report_or_refused(data: bytes) -> None:
    for begin in (b"", b"\x11\xe0\x01\xff" + bytes(33) + b"\x11\x60\0\0"):
        report = parsed_or_refused(begin + data)
        assert report is None or report.signed + report.signature == begin + data


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    st.integers(0, 10_000),
)
def test_a_mangled_report_is_a_report_or_refused(edits: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(mangle_me())
    for at, value in edits:
        data[at % len(data)] = value
    mangled = bytes(data[: cut % (2 * len(data)) or len(data)])
    report = parsed_or_refused(mangled)
    assert report is None or report.signed + report.signature == mangled


def mangle_me() -> bytes:
    """A whole report without a true signature; the parser does not look at it."""
    opaque = b"\3\0\x09\x00550.90.07\6\0\x08\0" + bytes(8) + b"\x14\0\x30\0" + bytes(48)
    block = b"\1\1\x33\0\0\x30\0" + bytes(48)
    asked = b"\x11\xe0\x01\xff" + bytes(33)
    answer = b"\x11\x60\0\0\1" + len(block).to_bytes(3, "little") + block + bytes(32)
    return asked + answer + len(opaque).to_bytes(2, "little") + opaque + bytes(96)


def test_what_is_mangled_is_a_report() -> None:
    assert parse_gpu_report(mangle_me()).driver_version == "550.90.07"


def test_a_key_of_another_kind_signs_no_report(gpus: Bench) -> None:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    with pytest.raises(ValueError, match="P-384"):
        verify_signature(parse_gpu_report(gpus.report()), key)


# certificate chains


def test_the_honest_chain_holds(gpus: Bench, world: World) -> None:
    chain = parse_chain(gpus.chain(gpus.leaf, gpus.ca, gpus.root))
    verify_chain(chain, root_sha256=gpus.root_sha256, now=world.now)
    assert certified_fwid(chain[0]) == gpus.fwid


UNKNOWN_CRITICAL = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"), True)

CHAINS: dict[str, tuple[str, Callable[[Bench], str]]] = {
    "no certificate": ("PEM certificates", lambda g: ""),
    "the root alone": ("expected 2 to 8", lambda g: g.chain(g.root)),
    "nine certificates": ("expected 2 to 8", lambda g: g.chain(g.leaf, *[g.ca] * 7, g.root)),
    "a broken certificate": ("PEM", lambda g: g.chain(g.leaf, g.ca, g.root).replace("MII", "MIA")),
    "the root left out": ("another root", lambda g: g.chain(g.leaf, g.ca)),
    "a root that is not the pinned one": (
        "another root",
        lambda g: g.chain(g.leaf, g.ca, replace(g.root, scalar=9001)),
    ),
    "an authority left out": (
        "not issued by",
        lambda g: g.leaf.issued_by(g.ca) + g.root.issued_by(g.root),
    ),
    "the wrong order": (
        "the chain ends in another root",
        lambda g: g.root.issued_by(g.root) + g.ca.issued_by(g.root) + g.leaf.issued_by(g.ca),
    ),
    "an authority with another key": (
        "certificate 0 was not issued",
        lambda g: (
            g.leaf.issued_by(replace(g.ca, scalar=9002))
            + g.ca.issued_by(g.root)
            + g.root.issued_by(g.root)
        ),
    ),
    "an authority of another name": (
        "certificate 0 was not issued",
        lambda g: (
            g.leaf.issued_by(replace(g.ca, name="other"))
            + g.ca.issued_by(g.root)
            + g.root.issued_by(g.root)
        ),
    ),
    "an expired authority": (
        "certificate 1 is not valid now",
        lambda g: g.chain(g.leaf, replace(g.ca, end=g.ca.begin + 1), g.root),
    ),
    "a leaf from the future": (
        "certificate 0 is not valid now",
        lambda g: g.chain(replace(g.leaf, begin=g.leaf.end - 1), g.ca, g.root),
    ),
    "an authority without constraints": (
        "certificate 1 may not issue",
        lambda g: g.chain(
            g.leaf, replace(g.ca, extensions=(g.key_usage("key_cert_sign"),)), g.root
        ),
    ),
    "an authority that is none": (
        "certificate 1 may not issue",
        lambda g: g.chain(g.leaf, replace(g.ca, extensions=(g.constraints(False),)), g.root),
    ),
    "an authority that may not sign certificates": (
        "certificate 1 may not issue",
        lambda g: g.chain(
            g.leaf, replace(g.ca, extensions=(g.constraints(True), g.key_usage("crl_sign"))), g.root
        ),
    ),
    "more authorities than allowed": (
        "certificate 2 has more authorities below it",
        lambda g: g.chain(
            g.leaf,
            g.ca,
            replace(g.ca, scalar=9003, extensions=(g.constraints(True, 0),), name="upper"),
            g.root,
        ),
    ),
    "an authority for a leaf": (
        "signer is a certificate authority",
        lambda g: g.chain(g.ca, g.ca, g.root),
    ),
    "a leaf that may not sign": (
        "may not sign",
        lambda g: g.chain(
            replace(g.leaf, extensions=(g.key_usage("key_agreement"), g.fwid_extension())),
            g.ca,
            g.root,
        ),
    ),
    "an unknown demand": (
        "certificate 0 demands an extension",
        lambda g: g.chain(replace(g.leaf, extensions=(UNKNOWN_CRITICAL,)), g.ca, g.root),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_with_one_fault_is_refused(gpus: Bench, world: World, name: str) -> None:
    words, make = CHAINS[name]
    with pytest.raises(ValueError, match=words):
        verify_chain(parse_chain(make(gpus)), root_sha256=gpus.root_sha256, now=world.now)


def test_roles_that_are_not_restricted_are_allowed(gpus: Bench, world: World) -> None:
    leaf = replace(gpus.leaf, extensions=(gpus.constraints(False), gpus.fwid_extension()))
    authority = replace(gpus.ca, extensions=(gpus.constraints(True, 0),))
    verify_chain(
        parse_chain(gpus.chain(leaf, authority, gpus.root)),
        root_sha256=gpus.root_sha256,
        now=world.now,
    )


@pytest.mark.parametrize("value", [b"", bytes(48), bytes(15 + 48), b"\x30" + bytes(40)])
def test_a_firmware_id_of_another_form_is_none(gpus: Bench, value: bytes) -> None:
    leaf = replace(gpus.leaf, extensions=(gpus.fwid_extension(value),))
    with pytest.raises(ValueError, match="no firmware id"):
        certified_fwid(parse_chain(gpus.chain(leaf, gpus.ca, gpus.root))[0])


def tcb_info(content: bytes) -> tuple[x509.ExtensionType, bool]:
    """The extension that Blackwell GPUs have instead: DiceTcbInfo with `content` in it."""
    value = b"\x30\x81" + bytes([len(content)]) + content
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1.1"), value), False


def listed(*fwids: bytes) -> bytes:
    entries = b"".join(bytes.fromhex("303d06096086480165030402020430") + fwid for fwid in fwids)
    return b"\xa6" + bytes([len(entries)]) + entries


def blackwell(gpus: Bench, extension: tuple[x509.ExtensionType, bool]) -> x509.Certificate:
    leaf = replace(gpus.leaf, extensions=(gpus.key_usage("digital_signature"), extension))
    return parse_chain(gpus.chain(leaf, gpus.ca, gpus.root))[0]


def test_a_blackwell_gpus_firmware_id_is_the_first_that_is_listed(
    gpus: Bench, world: World
) -> None:
    extension = tcb_info(b"\x80\x06NVIDIA" + listed(gpus.fwid, bytes(48)) + b"\x89\1\0")
    assert certified_fwid(blackwell(gpus, extension)) == gpus.fwid
    leaf = replace(gpus.leaf, extensions=(gpus.key_usage("digital_signature"), extension))
    assert world.with_gpu(leaf, gpus.ca, gpus.root).contraindicated() == []
    other = replace(
        leaf,
        extensions=(gpus.key_usage("digital_signature"), tcb_info(listed(bytes(48), gpus.fwid))),
    )
    assert world.with_gpu(other, gpus.ca, gpus.root).contraindicated() == ["gpu-report-fwid"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\1x",
        listed(),
        listed(b"\1" * 40),
        b"\x86\0",
        b"\xa6",
        b"\xa6\x80",
        b"\xa6\x05abc",
        b"\xa6\x82\1",
    ],
)
def test_a_blackwell_gpus_firmware_id_of_another_form_is_none(gpus: Bench, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"firmware id|DER elements"):
        certified_fwid(blackwell(gpus, tcb_info(content)))


@given(st.text(max_size=200), st.binary(max_size=200))
def test_any_text_is_a_chain_or_refused(text: str, der: bytes) -> None:
    wrapped = f"-----BEGIN CERTIFICATE-----\n{base64.b64encode(der).decode()}\n-----END CERTIFICATE-----\n"
    for pem in (text, wrapped * 2):
        with pytest.raises(ValueError, match="certificates"):
            parse_chain(pem)


def test_the_gpus_nonce_is_not_the_providers() -> None:
    nonce = "5b" * 32
    message = b"confidential-trainer/gpu-nonce/v1\0" + bytes.fromhex(nonce)
    assert gpu_nonce(nonce) == hashlib.sha256(message).digest()


@pytest.mark.parametrize("nonce", ["", "00" * 31, "AB" * 32, "zz" * 32])
def test_a_nonce_of_another_form_is_refused(nonce: str) -> None:
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        gpu_nonce(nonce)
