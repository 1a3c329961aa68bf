"""Quotes and collateral at byte level: what is read, what is left over, what dcap-qvl's words mean here."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.attestation.tdx.collateral import module_identity, module_level, parse_collateral
from trainer.attestation.tdx.pem_chain import read_pem_chain
from trainer.attestation.tdx.quote_checks import COLLATERAL_VALIDITY, QUOTE_SIGNATURE, refused_check
from trainer.attestation.tdx.quote_verification import QuoteRefused, parse_quote, verify_quote
from trainer.attestation.tdx.td_report import XFAM_KNOWN, attribute_names, xfam_acceptable
from trainer.simulator.pki import DevelopmentPki, TdFields

World = Any  # conftest.World

NOW = 1_790_000_000
PKI = DevelopmentPki(b"a seed of 32 bytes for raw quotes")
QUOTE = PKI.quote(TdFields())
SIGNATURE_AT = 632
CERTIFICATION_AT = SIGNATURE_AT + 4 + 128
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
CHAIN_AT = CERTIFICATION_AT + 6 + 384 + 64 + 2 + 32


def sgx_quote() -> bytes:
    header = struct.pack("<HHI", 3, 2, 0) + QUOTE[8:48]
    signature = bytes(128 + 384 + 64) + struct.pack("<HHI", 0, 5, 0)
    return header + bytes(384) + struct.pack("<I", len(signature)) + signature


def test_all_fields_are_read_from_their_places() -> None:
    values = {
        name: bytes([index]) * len(value)
        for index, (name, value) in enumerate(vars(TdFields()).items())
    }
    report = parse_quote(PKI.quote(TdFields(**values))).report
    assert {name: getattr(report, name) for name in values} == values
    assert report.mr_service_td is None


def test_an_sgx_quote_is_none_of_ours() -> None:
    with pytest.raises(ValueError, match="SGX quote"):
        parse_quote(sgx_quote())


def stretched(at: int, stray: bytes, *lengths_at: int) -> bytes:
    """The quote with `stray` put in at `at`, and the length fields around it made to fit."""
    quote = bytearray(QUOTE[:at] + stray + QUOTE[at:])
    for place in lengths_at:
        (length,) = struct.unpack_from("<I", quote, place)
        struct.pack_into("<I", quote, place, length + len(stray))
    return bytes(quote)


@pytest.mark.parametrize(
    ("quote", "slack"),
    [
        (QUOTE, 0),
        (QUOTE + bytes(100), 0),
        (QUOTE + b"\0\0\1", 3),
        (stretched(len(QUOTE), b"stray", SIGNATURE_AT), 5),
        (stretched(len(QUOTE), b"stray", SIGNATURE_AT, CERTIFICATION_AT + 2), 5),
    ],
)
def test_bytes_that_belong_to_nothing_are_counted(quote: bytes, slack: int) -> None:
    assert parse_quote(quote).slack == slack


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.integers(0, 8 * CHAIN_AT - 1))
def test_no_bit_before_the_certificates_can_change(world: World, bit: int) -> None:
    quote = bytearray(bytes.fromhex(world.evidence().quote))
    quote[bit // 8] ^= 1 << bit % 8
    assert world.change(quote=bytes(quote)).appraise().status == "fail"


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    st.binary(min_size=1, max_size=700),
    st.binary(max_size=100),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_whatever_is_shown_there_is_a_verdict(
    world: World, quote: bytes, collateral: bytes, text: str
) -> None:
    shown = world.change(quote=quote, collateral=collateral).showing(
        event_log=text, vm_config=text, app_compose=text
    )
    assert shown.appraise().status == "fail"


@settings(
    max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.data())
def test_a_quote_cut_or_stirred_anywhere_still_gets_a_verdict(
    world: World, data: st.DataObject
) -> None:
    quote = bytes.fromhex(world.evidence().quote)
    cut = data.draw(st.integers(1, len(quote) - 1))
    stirred = quote[:cut] + data.draw(st.binary(max_size=20)) + quote[cut + 1 :]
    assert world.change(quote=quote[:cut]).appraise().status == "fail"
    world.change(quote=stirred).appraise()


def test_certificates_that_are_not_self_issued_are_no_roots() -> None:
    chain = PKI.collateral(NOW)["tcb_info_issuer_chain"]
    leaf = chain[: chain.index("-----END") + len("-----END CERTIFICATE-----\n")]
    assert read_pem_chain(leaf.encode()).roots == ()
    assert len(read_pem_chain(chain.encode() + b"\0").roots) == 1
    assert read_pem_chain(b"").roots == ()


@pytest.mark.parametrize("line_end", ["\n", "\r\n", ""])
def test_a_chain_may_end_its_lines_either_way_and_the_last_one_not_at_all(line_end: str) -> None:
    chain = PKI.collateral(NOW)["tcb_info_issuer_chain"]
    text = chain.replace("\n", line_end) if line_end else chain.removesuffix("\n")
    read = read_pem_chain(text.encode())
    assert (read.stray, read.is_linked, len(read.certificates)) == (0, True, 2)


@pytest.mark.parametrize(
    "of", [DevelopmentPki(b"a machine of somebody else's"), None], ids=["another's", "its own"]
)
def test_certificates_in_the_collateral_do_not_count(
    world: World, of: DevelopmentPki | None
) -> None:
    foreign = (of or world.vm.pki).parts(TdFields(), 4).chain
    collateral = json.loads(world.collateral) | {"pck_certificate_chain": foreign}
    assert world.change(collateral=json.dumps(collateral).encode()).contraindicated() == []


def test_modules_are_found_by_their_major_version() -> None:
    tcb_info = json.loads(PKI.collateral(NOW)["tcb_info"])
    first = parse_quote(PKI.quote(TdFields())).report
    unversioned = parse_quote(PKI.quote(TdFields(tee_tcb_svn=b"\6\0\3" + bytes(13)))).report
    other = parse_quote(PKI.quote(TdFields(tee_tcb_svn=b"\6\2\3" + bytes(13)))).report
    assert module_identity(tcb_info, first) == tcb_info["tdxModuleIdentities"][0]
    assert module_identity(tcb_info, unversioned) == tcb_info["tdxModule"]
    assert module_identity(tcb_info, other) is None
    assert module_identity({}, first) is None
    assert module_identity({}, unversioned) is None
    assert module_level(tcb_info, first) == tcb_info["tdxModuleIdentities"][0]["tcbLevels"][0]
    assert module_level(tcb_info, unversioned) is None
    assert module_level(tcb_info, other) is None


def test_a_module_without_version_is_judged_by_the_general_entry(world: World) -> None:
    assert world.change(td={"tee_tcb_svn": b"\6\0\3" + bytes(13)}).contraindicated() == []
    foreign = world.change(td={"tee_tcb_svn": b"\6\0\3" + bytes(13), "mr_signer_seam": b"\1" * 48})
    assert foreign.contraindicated() == ["tdx-module"]


def test_a_message_that_nobody_knows_is_still_a_refusal() -> None:
    assert refused_check("Something new") is QUOTE_SIGNATURE


def test_a_refusal_carries_the_words_of_dcap_qvl() -> None:
    collateral = parse_collateral(json.dumps(PKI.collateral(NOW)).encode())
    with pytest.raises(QuoteRefused) as refused:
        verify_quote(parse_quote(QUOTE), collateral, root_der=PKI.root_der, now=NOW - 86400)
    assert refused_check(refused.value.reason) is COLLATERAL_VALIDITY
    assert "in the future" in refused.value.reason


@pytest.mark.parametrize(
    ("attributes", "names"),
    [
        (bytes(8), "none"),
        (b"\1\0\0\x10\0\0\0\0", "DEBUG, SEPT_VE_DISABLE"),
        (b"\0\0\0\xf0\0\0\0\x80", "SEPT_VE_DISABLE, MIGRATABLE, PKS, KL, PERFMON"),
        (b"\2\0\0\0\0\0\0\0", "reserved bit 1"),
    ],
)
def test_attributes_are_named(attributes: bytes, names: str) -> None:
    assert attribute_names(attributes) == names


@pytest.mark.parametrize("bit", range(64))
def test_only_known_cpu_state_is_acceptable(bit: int) -> None:
    known = bit in {0, 1, 2, 5, 6, 7, 9, 17, 18}
    assert xfam_acceptable((3 | 1 << bit).to_bytes(8, "little"), XFAM_KNOWN) is known
    if bit < 2:
        assert not xfam_acceptable((0x602E7 ^ 1 << bit).to_bytes(8, "little"), XFAM_KNOWN)
