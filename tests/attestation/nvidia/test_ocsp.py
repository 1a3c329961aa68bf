"""Revocation of GPUs' certificates: answers of a responder that the tests' own authorities certified."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from trainer.attestation.checks import CheckState
from trainer.attestation.nvidia.certificate_chain import parse_chain
from trainer.attestation.nvidia.gpu_endorsements import MAX_ANSWER_BYTES, GpuEndorsements
from trainer.attestation.nvidia.gpu_report_checks import NOT_LOOKED_AT
from trainer.attestation.nvidia.ocsp import (
    OcspResponse,
    asked_about,
    parse_answers,
    verify_not_revoked,
)
from trainer.attestation.policy import RevocationAnswers, ServiceUrl
from trainer.simulator.gpu_evidence import NOW
from trainer.simulator.ocsp_replies import (
    OCSP_SIGNING,
    OcspReply,
    delegated_responder,
    load_certificate,
    ocsp_reply,
    utc_time,
)

World = Any  # conftest.World
Bench = Any  # conftest.GpuBench
Make = Callable[[Bench], OcspReply]

GOOD, REVOKED, UNKNOWN = (
    ocsp.OCSPCertStatus.GOOD,
    ocsp.OCSPCertStatus.REVOKED,
    ocsp.OCSPCertStatus.UNKNOWN,
)
CODE = "gpu-report-revocation"
SERVICE = ServiceUrl(url="https://ocsp.invalid")
FOR_TLS = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
UNKNOWN_CRITICAL = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"), True)


def showing(world: World, *responses: bytes) -> World:
    return world.change(endorsements=GpuEndorsements(revocation=responses))


def prepared(world: World) -> World:
    """The honest world with the honest answer, which its policy demands."""
    demanding = world.demanding("gpu", revocation=SERVICE)
    return showing(demanding, ocsp_reply(world.bench).der())


@pytest.fixture
def endorsed(world: World) -> World:
    return prepared(world)


def answered(make: Make) -> Callable[[World], World]:
    return lambda w: showing(w, make(w.bench).der())


def delegated(**changes: Any) -> Callable[[World], World]:
    """With a responder that was certified otherwise."""
    return answered(lambda g: ocsp_reply(g, responder=delegated_responder(g, **changes)))


def two_gpus(w: World) -> World:
    """A second GPU, about which nobody was asked."""
    g = w.bench
    other = g.answer(replace(g.leaf, scalar=1103), replace(g.ca, scalar=1102), g.root)
    return w.answering(*w.gpu.fresh, other).demanding("gpu", boot="any", count=2)


def without_authority(w: World) -> World:
    """A GPU whose key the root certified itself, as it never does."""
    g = w.bench
    return w.demanding("gpu", models="any").with_gpu(g.leaf, g.root)


ATTACKS: dict[str, tuple[str, Callable[[World], World]]] = {
    "no answer": (CODE, showing),
    "revoked": (CODE, answered(lambda g: ocsp_reply(g, status=REVOKED))),
    "unknown to the responder": (CODE, answered(lambda g: ocsp_reply(g, status=UNKNOWN))),
    "an answer about another certificate": (
        CODE,
        answered(lambda g: ocsp_reply(g, subject=replace(g.ca, scalar=1102))),
    ),
    "an answer about a certificate of another authority": (
        CODE,
        answered(lambda g: ocsp_reply(g, issuer=replace(g.root, name="another root"))),
    ),
    "an answer about a certificate of another key": (
        CODE,
        answered(lambda g: ocsp_reply(g, issuer=replace(g.root, scalar=1101))),
    ),
    "a stale answer": (CODE, answered(lambda g: ocsp_reply(g, begin=NOW - 90_000, end=NOW - 1))),
    "an answer from the future": (CODE, answered(lambda g: ocsp_reply(g, begin=NOW + 301))),
    "an old answer without an end": (
        CODE,
        answered(lambda g: ocsp_reply(g, begin=NOW - 3601, end=None)),
    ),
    "a refusal to answer": (
        CODE,
        lambda w: showing(
            w,
            ocsp.OCSPResponseBuilder.build_unsuccessful(
                ocsp.OCSPResponseStatus.UNAUTHORIZED
            ).public_bytes(Encoding.DER),
        ),
    ),
    "no response at all": (CODE, lambda w: showing(w, b"<html>")),
    "a changed answer": (
        CODE,
        lambda w: showing(
            w, ocsp_reply(w.bench).der().replace(b"\x80\x00\x18", b"\x82\x00\x18", 1)
        ),
    ),
    "signed by another key": (
        CODE,
        answered(
            lambda g: ocsp_reply(
                g, responder=delegated_responder(g, scalar=3099), attached=delegated_responder(g)
            )
        ),
    ),
    "signed by the GPU itself": (
        CODE,
        answered(lambda g: ocsp_reply(g, responder=g.ca, certifier=g.root)),
    ),
    "a responder that nobody knows": (CODE, answered(lambda g: ocsp_reply(g, shown=False))),
    "a responder that certified itself": (
        CODE,
        answered(lambda g: ocsp_reply(g, certifier=delegated_responder(g))),
    ),
    "a responder of another authority": (
        CODE,
        answered(lambda g: ocsp_reply(g, certifier=replace(g.root, scalar=1101))),
    ),
    "a responder certified by the GPU": (CODE, answered(lambda g: ocsp_reply(g, certifier=g.ca))),
    "a certificate for something else": (
        CODE,
        lambda w: delegated(extensions=(FOR_TLS, w.bench.key_usage("digital_signature")))(w),
    ),
    "a certificate for nothing particular": (
        CODE,
        lambda w: delegated(extensions=(w.bench.key_usage("digital_signature"),))(w),
    ),
    "a responder that may not sign": (
        CODE,
        lambda w: delegated(extensions=(OCSP_SIGNING, w.bench.key_usage("key_agreement")))(w),
    ),
    "a responder whose certificate ran out": (CODE, delegated(end=NOW - 1)),
    "a responder from the future": (CODE, delegated(begin=NOW + 1)),
    "a responder with an unknown demand": (
        CODE,
        delegated(extensions=(OCSP_SIGNING, UNKNOWN_CRITICAL)),
    ),
    "signed with SHA-224": (
        CODE,
        answered(lambda g: ocsp_reply(g, signature_hash=hashes.SHA224())),
    ),
    "one answer good, one revoked": (
        CODE,
        lambda w: showing(w, ocsp_reply(w.bench).der(), ocsp_reply(w.bench, status=REVOKED).der()),
    ),
    "a second GPU that nobody was asked about": (CODE, two_gpus),
    "a GPU that no authority stands behind": (CODE, without_authority),
}


def test_the_honest_world_holds(endorsed: World) -> None:
    assert endorsed.contraindicated() == []
    assert endorsed.state(CODE).state is CheckState.AFFIRMED
    assert endorsed.state("gpu-report-chain").detail is None


HONEST: dict[str, Make] = {
    "by the issuer itself": lambda g: ocsp_reply(g, responder=None),
    "named by key": lambda g: ocsp_reply(g, encoding=ocsp.OCSPResponderEncoding.HASH),
    "by the issuer, named by key": lambda g: ocsp_reply(
        g, responder=None, encoding=ocsp.OCSPResponderEncoding.HASH
    ),
    "asked about with SHA-1": lambda g: ocsp_reply(g, hash_algorithm=hashes.SHA1()),
    "signed with SHA-256": lambda g: ocsp_reply(g, signature_hash=hashes.SHA256()),
    "a fresh one without an end": lambda g: ocsp_reply(g, begin=NOW - 3600, end=None),
    "from a clock that is ahead": lambda g: ocsp_reply(g, begin=NOW + 300),
    "from a responder without restrictions of use": lambda g: ocsp_reply(
        g, responder=delegated_responder(g, extensions=(OCSP_SIGNING, (x509.OCSPNoCheck(), False)))
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_other_honest_answers_hold_too(endorsed: World, name: str) -> None:
    assert answered(HONEST[name])(endorsed).contraindicated() == []


def test_what_is_not_demanded_is_left_open_and_said(world: World) -> None:
    assert world.state(CODE).state is CheckState.NOT_DEMANDED
    assert world.state("gpu-report-chain").detail == NOT_LOOKED_AT
    assert showing(world, ocsp_reply(world.bench, status=REVOKED).der()).contraindicated() == []


def test_the_policys_own_files_count_and_nothing_else(endorsed: World) -> None:
    def own(*responses: bytes) -> World:
        texts = tuple(base64.b64encode(each).decode() for each in responses)
        return endorsed.demanding("gpu", revocation=RevocationAnswers(responses=texts))

    g = endorsed.bench
    assert showing(own(ocsp_reply(g).der())).contraindicated() == []
    assert own(ocsp_reply(g, status=REVOKED).der()).contraindicated() == [CODE]


def test_what_is_wrong_is_said(endorsed: World) -> None:
    revoked = ATTACKS["revoked"][1](endorsed)
    assert revoked.state(CODE).found == "report 0: certificate 1: the responder says revoked"
    refused = ATTACKS["a refusal to answer"][1](endorsed)
    assert refused.state(CODE).found == "report 0: certificate 1: no answer about it"
    assert refused.state(CODE).detail == "response 0: the responder gave no answer: unauthorized"


# a chain as long as NVIDIA's


def long_chain(g: Bench) -> tuple[Any, ...]:
    upper = replace(g.ca, name="NOT NVIDIA - test identity", scalar=1012)
    middle = replace(g.ca, name="NOT NVIDIA - test provisioner", scalar=1011)
    return g.leaf, g.ca, middle, upper, g.root


def answers(g: Bench, *, without: int | None = None) -> list[OcspResponse]:
    chain = long_chain(g)
    asked = [
        (each, chain[place + 1])
        for place, each in enumerate(chain[:-1])
        if place not in (0, without)
    ]
    replies = [
        OcspReply(subject, issuer, delegated_responder(g), issuer) for subject, issuer in asked
    ]
    return [answer for each in replies for answer in parse_answers(each.der())]


def test_every_certificate_between_signer_and_root_needs_an_answer(gpus: Bench) -> None:
    chain = parse_chain(gpus.chain(*long_chain(gpus)))
    assert [certificate for certificate, _ in asked_about(chain)] == list(chain[1:4])
    verify_not_revoked(chain, answers(gpus), now=NOW)
    for depth in (1, 2, 3):
        with pytest.raises(ValueError, match=f"certificate {depth}: no answer"):
            verify_not_revoked(chain, answers(gpus, without=depth), now=NOW)


# keys and hashes of other kinds


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)),
    ],
    ids=["rsa", "ed25519"],
)
def test_a_responder_with_a_key_of_another_kind_is_refused(gpus: Bench, key: Any) -> None:
    chain = parse_chain(gpus.chain(gpus.leaf, gpus.ca, gpus.root))
    issuer = load_certificate(gpus.root, gpus.root)
    certificate = (
        x509.CertificateBuilder(
            subject_name=x509.Name.from_rfc4514_string("CN=other"),
            issuer_name=issuer.subject,
            public_key=key.public_key(),
            serial_number=9,
            not_valid_before=utc_time(NOW - 10),
            not_valid_after=utc_time(NOW + 10),
        )
        .add_extension(*OCSP_SIGNING)
        .sign(gpus.root.key, hashes.SHA384())
    )
    builder = ocsp.OCSPResponseBuilder().add_response(
        chain[1],
        chain[2],
        hashes.SHA384(),
        GOOD,
        utc_time(NOW - 10),
        utc_time(NOW + 10),
        None,
        None,
    )
    named = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, certificate).certificates(
        [certificate]
    )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA384()
    response = named.sign(key, algorithm).public_bytes(Encoding.DER)
    with pytest.raises(ValueError, match="ECDSA"):
        verify_not_revoked(chain, parse_answers(response), now=NOW)


def test_an_answer_hashed_in_a_way_that_ocsp_does_not_know_is_about_nothing(gpus: Bench) -> None:
    chain = parse_chain(gpus.chain(gpus.leaf, gpus.ca, gpus.root))
    (honest,) = parse_answers(ocsp_reply(gpus).der())
    with pytest.raises(ValueError, match="no answer about it"):
        verify_not_revoked(chain, [replace(honest, hash_algorithm=hashes.MD5())], now=NOW)


# parsing


@pytest.mark.parametrize("der", [b"", b"0", b"\x30\x03\x0a\x01\x00", bytes(MAX_ANSWER_BYTES + 1)])
def test_what_is_no_response_is_refused(der: bytes) -> None:
    with pytest.raises(ValueError, match="OCSP response"):
        parse_answers(der)


def parsed_or_refused(der: bytes) -> list[OcspResponse]:
    try:
        return parse_answers(der)
    except ValueError:
        return []


@given(st.binary(max_size=400))
def test_any_bytes_are_a_response_or_refused(der: bytes) -> None:
    assert parsed_or_refused(der) == []


# A mangled certificate may be one that a later release of the library refuses, and this one warns of.
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_mangled_response_is_itself_or_refused(gpus: Bench) -> None:
    whole, chain = ocsp_reply(gpus).der(), parse_chain(gpus.chain(gpus.leaf, gpus.ca, gpus.root))
    (honest,) = parse_answers(whole)

    @given(
        st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4),
        st.integers(0, 10_000),
    )
    def mangle(edits: list[tuple[int, int]], cut: int) -> None:
        data = bytearray(whole)
        for place, value in edits:
            data[place % len(data)] = value
        found = parsed_or_refused(bytes(data[: cut % (2 * len(data)) or None]))
        try:
            verify_not_revoked(chain, found, now=NOW)
        except ValueError:
            return
        (answer,) = found
        assert (answer.certificate_id, answer.begin, answer.end) == (
            honest.certificate_id,
            honest.begin,
            honest.end,
        )

    mangle()
