"""Reference integrity manifests (RIM) as NVIDIA publishes them, signed under a development root.

Format: a SWID tag (ISO/IEC 19770-2) with an enveloped XML signature. Needs `lxml` and `signxml`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from lxml import etree
from signxml.algorithms import CanonicalizationMethod, DigestAlgorithm, SignatureMethod
from signxml.signer import XMLSigner

from trainer.simulator.gpu_evidence import GpuCertificate, GpuEvidenceMaker

SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
HASH: Final = "http://www.w3.org/2001/04/xmlenc#sha384"
DRIVER_VERSION: Final = "550.90.07"
VBIOS_VERSION: Final = "96.00.9f.00.01"
MEASURED: Final = b"\7" * 48
"""What the honest GPU measures in blocks 1 and 2."""
NOT_MEASURED: Final = b"\6" * 48


def measurement_resource(
    index: int, *values: bytes, active: str = "True", size: int = 48, count: int | None = None
) -> str:
    """Returns the XML element of measurement `index`, with its permitted values."""
    given = " ".join(f'h:Hash{place}="{value.hex()}"' for place, value in enumerate(values))
    alternatives = len(values) if count is None else count
    return (
        f'<Resource type="Measurement" index="{index}" active="{active}" size="{size}" '
        f'alternatives="{alternatives}" {given}/>'
    )


def manifest_document(version: str, *resources: str, product: str = "GH100", meta: int = 1) -> str:
    """Returns an unsigned manifest for a driver or VBIOS `version`, with `meta` elements that name it."""
    return (
        f'<SoftwareIdentity xmlns="{SWID}" xmlns:h="{HASH}" tagId="t" name="{product}">'
        + f'<Meta colloquialVersion="{version}" edition="GPU" product="{product}"/>' * meta
        + f"<Payload>{''.join(resources)}</Payload></SoftwareIdentity>"
    )


DRIVER_XML: Final = manifest_document(
    DRIVER_VERSION,
    measurement_resource(0, NOT_MEASURED, MEASURED),
    measurement_resource(1, bytes(48), active="False"),
)
VBIOS_XML: Final = manifest_document(
    VBIOS_VERSION.upper(),
    measurement_resource(0, bytes(48), active="False"),
    measurement_resource(1, MEASURED),
)


def manifest_authorities(
    makers: GpuEvidenceMaker, **changes: Any
) -> tuple[GpuCertificate, GpuCertificate, GpuCertificate]:
    """Returns signer, authority and root of the honest manifests; `changes` are the signer's."""
    signer = makers.certificate(
        "NOT NVIDIA - test RIM signer", 2003, (makers.key_usage("digital_signature"),)
    )
    authority = makers.certificate("NOT NVIDIA - test RIM authority", 2002, makers.ca_extensions)
    root = makers.certificate("NOT NVIDIA - test RIM root", 2001, makers.ca_extensions)
    return replace(signer, **changes), authority, root


def manifest_root_sha256(makers: GpuEvidenceMaker) -> str:
    """Returns the fingerprint of the root of the honest manifests, in hex."""
    root = manifest_authorities(makers)[2]
    return (
        x509.load_pem_x509_certificate(root.issued_by(root).encode())
        .fingerprint(hashes.SHA256())
        .hex()
    )


def sign_manifest(
    makers: GpuEvidenceMaker,
    xml: str,
    *chain: GpuCertificate,
    key: ec.EllipticCurvePrivateKey | None = None,
    uri: str | None = None,
    weak: str = "",
) -> str:
    """Returns `xml` with a signature by the first certificate of `chain`, or by `key` under the same certificates.

    Args:
        makers: makes the chain's certificates.
        xml: the manifest.
        chain: signer first; the honest authorities if empty.
        key: signs in place of the signer's own key.
        uri: the `Id` of the only element that is signed; the document if None.
        weak: "signature" or "digest": uses SHA-256 there.
    """
    chain = chain or manifest_authorities(makers)
    signer = XMLSigner(
        signature_algorithm=SignatureMethod.ECDSA_SHA256
        if weak == "signature"
        else SignatureMethod.ECDSA_SHA384,
        digest_algorithm=DigestAlgorithm.SHA256 if weak == "digest" else DigestAlgorithm.SHA384,
        c14n_algorithm=CanonicalizationMethod.CANONICAL_XML_1_1,
    )
    pems = [f"-----BEGIN{part}" for part in makers.chain(*chain).split("-----BEGIN") if part]
    return xml_text(
        signer.sign(etree.fromstring(xml), key=key or chain[0].key, cert=pems, reference_uri=uri)
    )


def xml_text(root: Any) -> str:
    """Returns an element as text."""
    return str(etree.tostring(root).decode())


@cache
def honest_manifests(makers: GpuEvidenceMaker) -> tuple[str, str]:
    """Returns the signed manifests of the honest GPU's driver and VBIOS."""
    return sign_manifest(makers, DRIVER_XML), sign_manifest(makers, VBIOS_XML)
