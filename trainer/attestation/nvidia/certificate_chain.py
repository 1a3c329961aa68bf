"""The certificate chain of a GPU's report: from the key that signed it to NVIDIA's device identity root."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtensionOID, NameOID

from trainer.attestation.nvidia.spdm_report import FWID_BYTES

NVIDIA_ROOT_SHA256: Final = "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"
"""SHA-256 of the DER certificate `CN=NVIDIA Device Identity CA`, valid since 2021-11-05 without an end."""

MAX_CERTIFICATES: Final = 8

# Extensions under TCG's arc for DICE (2.23.133.5.4): Hopper has the first, Blackwell the second.
_FWID_OID: Final = x509.ObjectIdentifier("2.23.133.5.4.1")
_TCB_INFO_OID: Final = x509.ObjectIdentifier("2.23.133.5.4.1.1")
_TCB_INFO_FWIDS: Final = 0xA6  # field 6 of DiceTcbInfo
# SEQUENCE { OBJECT IDENTIFIER sha384, OCTET STRING of 48 bytes }, up to those bytes
_FWID_HEADER: Final = bytes.fromhex("303d06096086480165030402020430")
_UNDERSTOOD: Final = (ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE)

MALFORMED: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises on malformed certificates; not all are subclasses of ValueError."""

Chain = tuple[x509.Certificate, ...]
"""Certificates, the signer's first, the root last."""


@lru_cache(maxsize=64)
def parse_chain(pem: str) -> Chain:
    """Parses a PEM chain, leaf first; afterwards all keys and extensions are known to be readable.

    Cached, like `was_issued`: a GPU sends the same chain with every report.

    Raises:
        ValueError: not 2 to 8 certificates, or one is malformed.
    """
    try:
        chain = tuple(
            _readable(certificate) for certificate in x509.load_pem_x509_certificates(pem.encode())
        )
    except MALFORMED:
        raise ValueError("expected PEM certificates, got something else") from None
    if not 2 <= len(chain) <= MAX_CERTIFICATES:
        raise ValueError(f"expected 2 to {MAX_CERTIFICATES} certificates, got {len(chain)}")
    return chain


@lru_cache(maxsize=256)
def _readable(certificate: x509.Certificate) -> x509.Certificate:
    """Reads key and extensions, and returns the certificate or an equal one from an earlier call.

    The GPUs of one machine share their upper certificates. Loading a P-384 key takes a tenth of the time of
    verifying a signature.
    """
    certificate.public_key()
    _ = certificate.extensions
    return certificate


def verify_chain(chain: Chain, *, root_sha256: str, now: int) -> None:
    """Checks that each certificate is valid now and issued by the next one, up to the pinned root.

    `ocsp` verifies revocation.

    Args:
        chain: leaf first, root last.
        root_sha256: fingerprint that the last certificate must have.
        now: Unix seconds.

    Raises:
        ValueError: the chain is not valid; the message gives the reason.
    """
    if chain[-1].fingerprint(hashes.SHA256()).hex() != root_sha256:
        raise ValueError("the chain ends in another root")
    # The pinned fingerprint takes the place of a check of the root: below it each certificate is checked against
    # the one above.
    for depth, certificate in enumerate(chain):
        if (
            not certificate.not_valid_before_utc.timestamp()
            <= now
            <= certificate.not_valid_after_utc.timestamp()
        ):
            raise ValueError(f"certificate {depth} is not valid now")
        # RFC 5280: a critical extension that is not understood makes the certificate invalid.
        if any(
            extension.critical and extension.oid not in _UNDERSTOOD
            for extension in certificate.extensions
        ):
            raise ValueError(f"certificate {depth} demands an extension that is unknown here")
    # The leaf may sign and is no authority: a GPU's own certificate may not issue another.
    constraints, usage = _roles(chain[0])
    if constraints is not None and constraints.ca:
        raise ValueError("the signer is a certificate authority")
    if usage is not None and not usage.digital_signature:
        raise ValueError("the signer may not sign")
    for depth in range(1, len(chain)):
        constraints, usage = _roles(chain[depth])
        if (
            constraints is None
            or not constraints.ca
            or (usage is not None and not usage.key_cert_sign)
        ):
            raise ValueError(f"certificate {depth} may not issue certificates")
        # The path length counts the authorities below, without the leaf (RFC 5280, section 4.2.1.9).
        if constraints.path_length is not None and constraints.path_length < depth - 1:
            raise ValueError(f"certificate {depth} has more authorities below it than it may")
        if not was_issued(chain[depth - 1], chain[depth]):
            raise ValueError(f"certificate {depth - 1} was not issued by certificate {depth}")


@lru_cache(maxsize=256)
def was_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Returns whether names match and the signature is valid. Cached: GPUs of one machine share upper issuers."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*MALFORMED, InvalidSignature):
        return False
    return True


def _roles(
    certificate: x509.Certificate,
) -> tuple[x509.BasicConstraints | None, x509.KeyUsage | None]:
    values = [extension.value for extension in certificate.extensions]
    constraints = next(
        (value for value in values if isinstance(value, x509.BasicConstraints)), None
    )
    return constraints, next((value for value in values if isinstance(value, x509.KeyUsage)), None)


def certified_fwid(leaf: x509.Certificate) -> bytes:
    """Returns the firmware id that the leaf was issued for: a SHA-384 in its TCG DICE extension.

    In Hopper's extension it is at the end. Blackwell has a DiceTcbInfo, whose field 6 lists it first.

    Raises:
        ValueError: the leaf has no such extension, or it is malformed.
    """
    values: dict[x509.ObjectIdentifier, bytes] = {
        each.oid: each.value.public_bytes() for each in leaf.extensions
    }
    raw = values.get(_FWID_OID, b"")[-len(_FWID_HEADER) - FWID_BYTES :]
    if _TCB_INFO_OID in values:
        # DiceTcbInfo is a SEQUENCE. The tag of its field 6 replaces the header of the list of firmware ids.
        listed = _fields(next(iter(_fields(values[_TCB_INFO_OID]).values()), b"")).get(
            _TCB_INFO_FWIDS, b""
        )
        raw = listed[: len(_FWID_HEADER) + FWID_BYTES]
    if raw[:-FWID_BYTES] != _FWID_HEADER:
        raise ValueError("the certificate names no firmware id")
    return raw[-FWID_BYTES:]


def _fields(der: bytes) -> dict[int, bytes]:
    """Returns the contents of consecutive DER elements by tag; the first of several with one tag."""
    contents: dict[int, bytes] = {}
    while der:
        tag, size, begin = der[0], int.from_bytes(der[1:2]), 2
        if size > 0x80:  # long form: the low 7 bits give the number of length bytes
            begin += size - 0x80
            size = int.from_bytes(der[2:begin])
        if len(der) < begin + size or size == 0x80:
            raise ValueError("expected DER elements in the certificate's extension")
        contents.setdefault(tag, der[begin : begin + size])
        der = der[begin + size :]
    return contents


def certified_model(chain: Chain) -> str:
    """Returns the GPU's model, such as `GH100 A01 GSP BROM`: the name in NVIDIA's certificate for this GPU.

    That is the second certificate of the chain. The GPU itself issued the first, to the firmware that signs
    reports, so a name in the first is only the firmware's.

    Raises:
        ValueError: the certificate has no such name, or several.
    """
    names = chain[1].subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise ValueError(f"the GPU's certificate: expected one name, got {len(names)}")
    return str(names[0].value)


def different_keys(certificates: Sequence[x509.Certificate]) -> int:
    """Returns how many different keys the certificates certify."""
    keys: list[PublicKeyTypes] = []
    for certificate in certificates:
        key = certificate.public_key()
        if key not in keys:  # compares points; serialising each key for a set would take longer
            keys.append(key)
    return len(keys)
