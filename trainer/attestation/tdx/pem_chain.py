"""Certificate chains in PEM, as quotes and collateral bring them along: read, and nothing verified.

A chain has one form here: each certificate as RFC 7468 writes it (lines of 64 characters, all ended alike), and
nothing before, between or after them but the end of the last line. PEM readers skip what they do not know, so
that anything could hide there in a quote, and another reader could take it for part of what was signed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

MALFORMED: Final = (TypeError, UnsupportedAlgorithm, x509.InvalidVersion)
"""What `cryptography` raises on malformed certificates and CRLs, besides ValueError."""


@dataclass(frozen=True)
class PemChain:
    """A chain that was read but not verified.

    Attributes:
        certificates: in the order of the text.
        stray: number of bytes that belong to no certificate; at least 1 if the text is not in the one form.
    """

    certificates: tuple[x509.Certificate, ...]
    stray: int

    @property
    def roots(self) -> tuple[bytes, ...]:
        """Key ids of the self-issued certificates."""
        return tuple(root_key_id(each) for each in self.certificates if each.issuer == each.subject)

    @property
    def is_linked(self) -> bool:
        """Whether each certificate names the next one as its issuer, up to a single self-issued one at the end."""
        issued = [each for each in self.certificates if each.issuer != each.subject]
        pairs = itertools.pairwise(self.certificates)
        return len(self.certificates) == len(issued) + 1 and all(
            one.issuer == two.subject for one, two in pairs
        )

    @cached_property
    def is_signed(self) -> bool:
        """Whether each certificate's key signed the one before it, and the last one's key itself; no dates."""
        issuers = (*self.certificates[1:], *self.certificates[-1:])
        try:
            for certificate, issuer in zip(self.certificates, issuers, strict=True):
                certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, *MALFORMED):
            return False
        return True


def root_key_id(certificate: x509.Certificate) -> bytes:
    """Returns the SHA-384 of a root's EC public key point (0x04‖X‖Y): Intel's `root_key_id`.

    Raises:
        ValueError: not an EC key.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("the root's key is not an EC key")  # noqa: TRY004 -- wrong content, not a wrong type here
    return hashlib.sha384(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).digest()


@lru_cache(maxsize=64)
def read_pem_chain(pem: bytes) -> PemChain:
    """Reads the certificates of a PEM text; zero bytes after it are ignored, and an empty text has none.

    Cached: Intel's chains are the same in every quote and collateral.

    Raises:
        ValueError: there is something, and no certificate in it can be read.
    """
    text = pem.rstrip(b"\0")
    if not text:
        return PemChain((), 0)
    try:
        certificates = tuple(x509.load_pem_x509_certificates(text))
        chain = PemChain(certificates, _stray_bytes(pem, certificates))
        _ = chain.roots  # reads their keys, which may be malformed as well
    except MALFORMED as error:
        raise ValueError(f"a certificate that cannot be read: {type(error).__name__}") from None
    return chain


def _stray_bytes(pem: bytes, certificates: Sequence[x509.Certificate]) -> int:
    """Compares a PEM text, and the zeros after it, with its certificates as they are written anew."""
    written = b"".join(each.public_bytes(Encoding.PEM) for each in certificates)
    forms = (written, written.replace(b"\n", b"\r\n"))
    # Zeros come after a complete last line; without zeros, its end may be missing.
    if pem.rstrip(b"\0") in forms or pem in {form.rstrip(b"\r\n") for form in forms}:
        return 0
    return max(1, len(pem) - len(written))
