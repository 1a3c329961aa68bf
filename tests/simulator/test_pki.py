"""The development PKI against dcap-qvl, the verifier that judges real quotes."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import dcap_qvl
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.simulator.certificates import derive_p256_key
from trainer.simulator.pki import DevelopmentPki, PlatformConfiguration
from trainer.simulator.td_report_writer import QE_REPORT_BYTES, TD_REPORT_BYTES, TdFields

Judge = Callable[..., dict[str, Any]]
HEADER_BYTES = 48


@pytest.fixture(scope="module")
def pki() -> DevelopmentPki:
    return DevelopmentPki(b"seed of the PKI tests")


def test_quote_is_accepted_under_its_own_root(pki: DevelopmentPki, judge: Judge) -> None:
    claims = judge(pki.quote(TdFields(report_data=b"\x07" * 64)), pki)
    assert claims["tcb"] == {"status": "UpToDate", "advisory_ids": [], "eval_data_number": 19}
    assert claims["report"]["TD10"]["report_data"] == "07" * 64
    root = x509.load_der_x509_certificate(pki.root_der).public_key()
    assert isinstance(root, ec.EllipticCurvePublicKey)
    point = root.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert bytes(claims["platform"]["root_key_id"]) == hashlib.sha384(point).digest()


def test_quote_is_refused_under_intels_root(pki: DevelopmentPki, judge: Judge) -> None:
    with pytest.raises(ValueError, match="Verification failed"):
        judge(pki.quote(TdFields()), pki, intel=True)


def test_quote_is_refused_under_another_development_root(pki: DevelopmentPki, judge: Judge) -> None:
    other = DevelopmentPki(b"seed of another PKI")
    with pytest.raises(ValueError, match="Verification failed"):
        judge(pki.quote(TdFields()), pki, root=other.root_der)
    with pytest.raises(ValueError, match="Verification failed"):
        judge(pki.quote(TdFields()), other)


def test_every_field_reaches_its_place(pki: DevelopmentPki) -> None:
    values = {
        field.name: bytes([index]) * len(getattr(TdFields(), field.name))
        for index, field in enumerate(fields(TdFields), start=1)
    }
    report = dcap_qvl.Quote.parse(pki.quote(TdFields(**values))).report
    renamed = {"mrtd": "mr_td", **{f"rtmr{index}": f"rt_mr{index}" for index in range(4)}}
    for name, value in values.items():
        assert getattr(report, renamed.get(name, name)) == value, name


def test_field_of_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="rtmr3: expected 48 bytes, got 47"):
        TdFields(rtmr3=bytes(47))


def test_sizes_of_the_reports(pki: DevelopmentPki) -> None:
    assert len(TdFields().pack()) == TD_REPORT_BYTES
    assert len(pki.qe_report.pack()) == QE_REPORT_BYTES


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, HEADER_BYTES + TD_REPORT_BYTES - 1), flip=st.integers(1, 255))
def test_any_changed_byte_of_the_signed_part_is_refused(position: int, flip: int) -> None:
    pki = DevelopmentPki(b"seed of the PKI tests")
    quote = bytearray(pki.quote(TdFields()))
    quote[position] ^= flip
    material = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(pki.collateral(1_790_000_000)))
    policy = dcap_qvl.QuotePolicy.strict(1_790_000_000)
    with pytest.raises(ValueError, match=r".+"):
        dcap_qvl.QuoteVerifier(pki.root_der).verify_with_policy(
            bytes(quote), material, 1_790_000_000, policy
        )


def test_debug_td_is_refused(pki: DevelopmentPki, judge: Judge) -> None:
    with pytest.raises(ValueError, match=r"(?i)debug"):
        judge(pki.quote(TdFields(td_attributes=bytes.fromhex("0100001000000000"))), pki)


@pytest.mark.parametrize(
    "status", ["OutOfDate", "SWHardeningNeeded", "ConfigurationNeeded", "Revoked"]
)
def test_platform_status_is_what_the_collateral_says(
    pki: DevelopmentPki, judge: Judge, now: int, status: str
) -> None:
    collateral = pki.collateral(now, status=status, advisories=["INTEL-SA-00001"])
    with pytest.raises(ValueError, match=status):
        judge(pki.quote(TdFields()), pki, collateral=collateral)


def test_outdated_quoting_enclave_is_refused(pki: DevelopmentPki, judge: Judge, now: int) -> None:
    with pytest.raises(ValueError, match="OutOfDate"):
        judge(pki.quote(TdFields()), pki, collateral=pki.collateral(now, qe_status="OutOfDate"))


def test_quoting_enclave_below_every_level_is_refused(pki: DevelopmentPki, judge: Judge) -> None:
    old = replace(pki.qe_report, isv_svn=1)
    with pytest.raises(ValueError, match=r".+"):
        judge(pki.quote(TdFields(), qe_report=old), pki)


def test_foreign_quoting_enclave_is_refused(pki: DevelopmentPki, judge: Judge) -> None:
    foreign = replace(pki.qe_report, mr_signer=bytes(32))
    with pytest.raises(ValueError, match=r"(?i)mr_?signer"):
        judge(pki.quote(TdFields(), qe_report=foreign), pki)


@pytest.mark.parametrize("which", ["pck", "pck-ca"])
def test_revoked_certificates_are_refused(
    pki: DevelopmentPki, judge: Judge, now: int, which: str
) -> None:
    with pytest.raises(ValueError, match="certificate chain"):
        judge(pki.quote(TdFields()), pki, collateral=pki.collateral(now, revoked=[which]))


def test_expired_collateral_is_refused(pki: DevelopmentPki, judge: Judge, now: int) -> None:
    with pytest.raises(ValueError, match=r"(?i)expired"):
        judge(
            pki.quote(TdFields()),
            pki,
            collateral=pki.collateral(now, valid_seconds=10),
            now=now + 11,
        )


def test_collateral_changed_after_signing_is_refused(
    pki: DevelopmentPki, judge: Judge, now: int
) -> None:
    collateral = pki.collateral(now)
    collateral["tcb_info"] = collateral["tcb_info"].replace("UpToDate", "UpToDatE", 1)
    with pytest.raises(ValueError, match=r".+"):
        judge(pki.quote(TdFields()), pki, collateral=collateral)


def test_mutation_is_signed(pki: DevelopmentPki, judge: Judge, now: int) -> None:
    def raise_number(tcb_info: dict[str, Any], _: dict[str, Any]) -> None:
        tcb_info["tcbEvaluationDataNumber"] = 23

    collateral = pki.collateral(now, mutate=raise_number)
    claims = judge(pki.quote(TdFields()), pki, collateral=collateral)
    assert '"tcbEvaluationDataNumber":23' in collateral["tcb_info"]
    assert claims["tcb"]["eval_data_number"] == 19  # the lower of TCB info's and QE identity's


def test_another_attestation_key_works_if_the_enclave_names_it(
    pki: DevelopmentPki, judge: Judge
) -> None:
    judge(pki.quote(TdFields(), attestation_key=derive_p256_key(b"x" * 32, "another")), pki)


def test_platform_flags_reach_the_certificate(judge: Judge) -> None:
    flags = PlatformConfiguration(dynamic_platform=True, cached_keys=True, smt_enabled=True)
    pki = DevelopmentPki(b"a dynamic platform", configuration=flags)
    with pytest.raises(ValueError, match=r"(?i)dynamic|cached|smt"):
        judge(pki.quote(TdFields()), pki)


def test_same_seed_same_bytes(pki: DevelopmentPki, now: int) -> None:
    again = DevelopmentPki(b"seed of the PKI tests")
    assert again.root_pem == pki.root_pem
    assert again.collateral(now) == pki.collateral(now)
    assert again.quote(TdFields()) == pki.quote(TdFields())


def test_short_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes, got 15"):
        DevelopmentPki(bytes(15))


def test_every_certificate_says_what_it_is(pki: DevelopmentPki, now: int) -> None:
    collateral = pki.collateral(now)
    chain = dcap_qvl.Quote.parse(pki.quote(TdFields())).cert_chain_pem_bytes()
    assert chain is not None
    pems = (
        chain.rstrip(b"\0")
        + (collateral["tcb_info_issuer_chain"] + collateral["pck_crl_issuer_chain"]).encode()
    )
    certificates = x509.load_pem_x509_certificates(pems)
    assert len(certificates) == 7
    for certificate in certificates:
        name = certificate.subject.rfc4514_string()
        assert "DEVELOPMENT" in name
        assert "NOT INTEL" in name
