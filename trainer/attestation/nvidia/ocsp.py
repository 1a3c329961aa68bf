"""Revocation of GPU certificates: signed answers of NVIDIA's responder (OCSP, RFC 6960).

Answers are demanded for the certificates between the signer of the report and the root. The signer's own was
issued by the GPU itself, to its firmware: no responder has a record of it, and NVIDIA's verifiers do not request
one. The second certificate is the one that NVIDIA issued to the GPU; its revocation revokes the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from trainer.attestation.nvidia.certificate_chain import MALFORMED, Chain
from trainer.attestation.nvidia.gpu_endorsements import MAX_ANSWER_BYTES
from trainer.attestation.result.attestation_result import CLOCK_SKEW_SECONDS

DEFAULT_VALID_SECONDS: Final = 3600
"""Validity of an answer without nextUpdate; the same as in NVIDIA's own verifier."""

_UNDERSTOOD: Final = (
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.OCSP_NO_CHECK,
)


@dataclass(frozen=True)
class OcspResponse:
    """The answer about one certificate in an OCSP response, not authenticated.

    Attributes:
        response: the response that contains the answer.
        hash_algorithm: the hash of the issuer's name and key.
        certificate_id: those two digests and the certificate's serial number.
        status: good, revoked or unknown.
        begin: Unix time of thisUpdate.
        end: Unix time until which the answer is valid.
    """

    response: ocsp.OCSPResponse
    hash_algorithm: hashes.HashAlgorithm
    certificate_id: tuple[bytes, bytes, int]
    status: ocsp.OCSPCertStatus
    begin: float
    end: float


def parse_answers(der: bytes) -> list[OcspResponse]:
    """Parses one OCSP response; afterwards every part that is used later is known to be readable.

    Raises:
        ValueError: not a response, or an error of the responder.
    """
    if len(der) > MAX_ANSWER_BYTES:
        raise ValueError(
            f"expected at most {MAX_ANSWER_BYTES} bytes of OCSP response, got {len(der)}"
        )
    try:
        response = ocsp.load_der_ocsp_response(der)
        status = response.response_status
        answers = []
        if status is ocsp.OCSPResponseStatus.SUCCESSFUL:
            # `cryptography` parses lazily: reading a part of a malformed response raises, which must happen
            # here.
            for certificate in response.certificates:
                certificate.public_key()
                _ = (certificate.extensions, certificate.subject)
            _ = (
                response.responder_name,
                response.responder_key_hash,
                response.signature_hash_algorithm,
            )
            answers = [_answer(response, single) for single in response.responses]
    except MALFORMED:
        raise ValueError("expected an OCSP response, got something else") from None
    if status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        raise ValueError(f"the responder gave no answer: {status.name.lower()}")
    return answers


def _answer(response: ocsp.OCSPResponse, single: ocsp.OCSPSingleResponse) -> OcspResponse:
    begin, end = single.this_update_utc.timestamp(), single.next_update_utc
    return OcspResponse(
        response=response,
        hash_algorithm=single.hash_algorithm,
        certificate_id=(single.issuer_name_hash, single.issuer_key_hash, single.serial_number),
        status=single.certificate_status,
        begin=begin,
        end=begin + DEFAULT_VALID_SECONDS if end is None else end.timestamp(),
    )


def asked_about(chain: Chain) -> list[tuple[x509.Certificate, x509.Certificate]]:
    """Returns the certificates that a responder has records of, each with its issuer; the GPU's first."""
    return list(pairwise(chain[1:]))


def verify_not_revoked(chain: Chain, answers: Sequence[OcspResponse], *, now: int) -> None:
    """Checks that every certificate of `asked_about` has answers, and that all of its answers are good now.

    One good answer does not outweigh another that says revoked.

    Args:
        chain: a verified chain.
        answers: answers from any source; those about other certificates are ignored.
        now: Unix seconds.

    Raises:
        ValueError: a certificate has no good answer; the message names it and the reason.
    """
    asked = asked_about(chain)
    if not asked:
        raise ValueError("no authority issued a certificate to this GPU")
    for depth, (certificate, issuer) in enumerate(asked, start=1):
        own_answers = [answer for answer in answers if _is_about(answer, certificate, issuer)]
        if not own_answers:
            raise ValueError(f"certificate {depth}: no answer about it")
        for answer in own_answers:
            try:
                _verify_answer(answer, issuer, now)
            except ValueError as error:
                raise ValueError(f"certificate {depth}: {error}") from None


def _is_about(
    answer: OcspResponse, certificate: x509.Certificate, issuer: x509.Certificate
) -> bool:
    # An answer names its certificate by hashes of the issuer's name and key, and by serial number. A request for
    # the certificate, built with the same hash, has the same three.
    try:
        asked = (
            ocsp.OCSPRequestBuilder()
            .add_certificate(certificate, issuer, answer.hash_algorithm)
            .build()
        )
    except MALFORMED:  # a hash algorithm that OCSP does not use
        return False
    return answer.certificate_id == (
        asked.issuer_name_hash,
        asked.issuer_key_hash,
        asked.serial_number,
    )


def _verify_answer(answer: OcspResponse, issuer: x509.Certificate, now: int) -> None:
    # The signature comes first: the status of an unauthenticated answer means nothing.
    response, signer = answer.response, _responder(answer.response, issuer, now)
    key, algorithm = signer.public_key(), response.signature_hash_algorithm
    strong = isinstance(algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512)
    if algorithm is None or not strong or not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("expected a signature of the kind ECDSA with SHA-256 or better")
    try:
        key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))
    except InvalidSignature:
        raise ValueError("the responder did not sign the answer") from None
    if answer.status is not ocsp.OCSPCertStatus.GOOD:
        raise ValueError(f"the responder says {answer.status.name.lower()}")
    # An old answer may be from before the revocation, so it counts only until its nextUpdate.
    if not answer.begin - CLOCK_SKEW_SECONDS <= now <= answer.end:
        raise ValueError("the answer is not in date")


def _responder(response: ocsp.OCSPResponse, issuer: x509.Certificate, now: int) -> x509.Certificate:
    """Returns the certificate that the response must be signed with: the issuer's, or that of its delegate."""
    if _is_named(issuer, response):
        return issuer
    delegates = [
        certificate for certificate in response.certificates if _is_named(certificate, response)
    ]
    if len(delegates) != 1:
        raise ValueError(f"expected the responder's certificate, got {len(delegates)}")
    # A delegate is certified by the same authority, for this use (RFC 6960, section 4.2.2.2).
    delegate = delegates[0]
    try:
        delegate.verify_directly_issued_by(issuer)
    except (*MALFORMED, InvalidSignature):
        raise ValueError("the responder was not certified by the certificate's issuer") from None
    if (
        not delegate.not_valid_before_utc.timestamp()
        <= now
        <= delegate.not_valid_after_utc.timestamp()
    ):
        raise ValueError("the responder's certificate is not valid now")
    if any(
        extension.critical and extension.oid not in _UNDERSTOOD for extension in delegate.extensions
    ):
        raise ValueError("the responder's certificate demands an extension that is unknown here")
    values = [extension.value for extension in delegate.extensions]
    # Without this usage any certificate of the same issuer, such as another GPU's, could answer.
    if not any(
        isinstance(value, x509.ExtendedKeyUsage) and ExtendedKeyUsageOID.OCSP_SIGNING in value
        for value in values
    ):
        raise ValueError("the responder may not answer: its certificate is for something else")
    if any(isinstance(value, x509.KeyUsage) and not value.digital_signature for value in values):
        raise ValueError("the responder may not sign")
    return delegate


def _is_named(certificate: x509.Certificate, response: ocsp.OCSPResponse) -> bool:
    # ResponderID has one of two forms: the subject's name, or the SHA-1 of the key.
    if response.responder_name is not None:
        return certificate.subject == response.responder_name
    return (
        x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest
        == response.responder_key_hash
    )
