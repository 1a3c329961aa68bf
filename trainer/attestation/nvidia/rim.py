"""NVIDIA's reference values: signed manifests (RIM) of the measurements of a driver and of a VBIOS in a GPU.

A manifest is a SWID tag with an enveloped XML signature:

    SoftwareIdentity
      Meta       product="GH100" colloquialVersion="550.144.03" …
      Payload    Resource type="Measurement" index="7" active="True" size="48" alternatives="2" Hash0="…" Hash1="…"
      Signature  ECDSA P-384 with SHA-384 over all of the document but itself; certificates up to the RIM root

A report's measurement block n is a manifest's measurement n - 1. Sources: TCG RIM Information Model, ISO/IEC
19770-2:2015, W3C XML Signature 1.1, and NVIDIA's published verifiers for how both are compared.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from trainer.attestation.nvidia.certificate_chain import parse_chain, verify_chain
from trainer.attestation.nvidia.gpu_endorsements import MAX_MANIFEST_BYTES
from trainer.attestation.nvidia.spdm_report import GpuReport
from trainer.errors import missing_package

NVIDIA_RIM_ROOT_SHA256: Final = "12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1"
"""SHA-256 of the DER certificate `CN=NVIDIA CoRIM signing Root CA`, valid from 2023-03-16 to 2053-03-08."""

NVDEC0_STATUS: Final = 11
CHIP_SKU: Final = 15
PROJECT: Final = 17
PROJECT_SKU: Final = 18
CHIP_INFO: Final = 35
"""Types of the opaque fields of a report that are read here."""

_NVDEC0_DISABLED: Final = b"\x55"
_NVDEC0_MEASUREMENT: Final = 35  # undefined where that video decoder is disabled

_SWID: Final = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
_SIGNATURE: Final = "{http://www.w3.org/2000/09/xmldsig#}"
_HASH: Final = "{http://www.w3.org/2001/04/xmlenc#sha384}Hash"
_TRANSFORMS: Final = [
    "http://www.w3.org/2000/09/xmldsig#enveloped-signature",
    "http://www.w3.org/2006/12/xml-c14n11",
]
_DECLARATION: Final = re.compile(
    r"""<\?xml version=["']1\.0["']( encoding=["'](utf|UTF)-8["'])? ?\?>\s*"""
)


@dataclass(frozen=True)
class ReferenceIntegrityManifest:
    """The contents of a manifest whose signature was verified.

    Attributes:
        product: the chip, such as `GH100`.
        version: of the driver (`550.144.03`) or the VBIOS (`96.00.5E.00.01`); the two forms differ.
        measurements: accepted values of each active measurement, by index from 0.
    """

    product: str
    version: str
    measurements: Mapping[int, frozenset[bytes]]


def verify_manifest(text: str, *, root_sha256: str, now: int) -> ReferenceIntegrityManifest:
    """Verifies a manifest's signature and reads the contents from the signed part alone.

    Args:
        text: the XML.
        root_sha256: fingerprint of the root that its certificates must end in.
        now: Unix seconds at which the certificates must be valid.

    Raises:
        ValueError: not a manifest, or not signed under this root; the message gives the reason.
        UsageError: the libraries for XML signatures are not installed.
    """
    etree, signxml = _libraries()
    data = _plain_xml(text)
    # The document does not choose how it is verified: one signature directly below the root, ECDSA with SHA-384,
    # over one reference.
    try:
        root = etree.fromstring(data, etree.XMLParser(resolve_entities=False, no_network=True))
        chain = parse_chain(_signing_certificates(root))
        verify_chain(chain, root_sha256=root_sha256, now=now)
        configuration = signxml.SignatureConfiguration(
            location="./",
            expect_references=1,
            signature_methods=frozenset({signxml.SignatureMethod.ECDSA_SHA384}),
            digest_algorithms=frozenset({signxml.DigestAlgorithm.SHA384}),
            verification_time=dt.datetime.fromtimestamp(now, dt.UTC),
        )
        result = signxml.XMLVerifier().verify(data, x509_cert=chain[0], expect_config=configuration)
    except (signxml.exceptions.SignXMLException, etree.LxmlError, TypeError) as error:
        raise ValueError(
            f"not a document with a signature that fits: {type(error).__name__}"
        ) from None
    # `signed_xml` is what the signature covers. Reading from the document instead would allow signature
    # wrapping.
    return _manifest(result.signed_xml)


def _libraries() -> tuple[Any, Any]:
    """Imports the XML libraries, which are installed only where a policy demands reference values."""
    try:
        import signxml  # noqa: PLC0415 -- see above
        from lxml import etree  # noqa: PLC0415
    except ImportError as error:
        purpose = "a policy that demands GPUs' reference values"
        raise missing_package(error.name, "gpu-reference", purpose) from None
    return etree, signxml


def _plain_xml(text: str) -> bytes:
    """Refuses what manifests do not need and parsers treat differently: DTDs, entities, comments, instructions."""
    if len(text) > MAX_MANIFEST_BYTES:
        raise ValueError(f"expected at most {MAX_MANIFEST_BYTES} bytes, got {len(text)}")
    plain = _DECLARATION.sub("", text, count=1) if _DECLARATION.match(text) else text
    if "<!" in plain or "<?" in plain:
        raise ValueError("expected elements only, got a declaration, comment or instruction")
    return plain.encode()


def _signing_certificates(root: Any) -> str:
    """Returns the certificates of the document's only signature in PEM, the signer's first.

    The signature must cover the complete document except itself. It does not cover the certificates.
    """
    if root.tag != f"{_SWID}SoftwareIdentity":
        raise ValueError("the document's root is not SoftwareIdentity")
    signatures = list(root.iter(f"{_SIGNATURE}Signature"))
    if len(signatures) != 1 or signatures[0].getparent() is not root:
        raise ValueError("expected one signature, directly below the root")
    references = [reference.get("URI") for reference in root.iter(f"{_SIGNATURE}Reference")]
    if references != [""]:  # the empty URI refers to the complete document
        raise ValueError(
            f"expected one signed reference, to the complete document, got {references}"
        )
    transforms = [transform.get("Algorithm") for transform in root.iter(f"{_SIGNATURE}Transform")]
    if transforms != _TRANSFORMS:
        raise ValueError(f"expected the transforms {_TRANSFORMS}, got {transforms}")
    encoded = (
        "\n".join((each.text or "").split())
        for each in signatures[0].iter(f"{_SIGNATURE}X509Certificate")
    )
    return "".join(
        f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n" for text in encoded
    )


def _manifest(signed: Any) -> ReferenceIntegrityManifest:
    found = {name: signed.findall(f"{_SWID}{name}") for name in ("Meta", "Payload")}
    for name, elements in found.items():
        if len(elements) != 1:
            raise ValueError(f"expected one element {name}, got {len(elements)}")
    (meta,), (payload,) = found.values()
    read: dict[int, frozenset[bytes] | None] = {}
    for resource in payload.findall(f"{_SWID}Resource[@type='Measurement']"):
        index = _number(resource, "index")
        if index in read:
            raise ValueError(f"measurement {index} occurs twice")
        read[index] = _accepted(resource, index)
    measurements = {index: values for index, values in read.items() if values is not None}
    if not measurements:
        raise ValueError("the manifest has no active measurement")
    product, version = meta.get("product", ""), meta.get("colloquialVersion", "")
    return ReferenceIntegrityManifest(product, version, MappingProxyType(measurements))


def _accepted(resource: Any, index: int) -> frozenset[bytes] | None:
    """Returns the values that an active measurement may have; None for one that is not active."""
    active = resource.get("active")
    if active not in ("True", "False"):
        raise ValueError(f"measurement {index}: expected True or False for active, got {active}")
    size, alternatives = _number(resource, "size"), _number(resource, "alternatives")
    values = [bytes.fromhex(resource.get(f"{_HASH}{place}", "")) for place in range(alternatives)]
    if not values or any(len(value) != size or not value for value in values):
        raise ValueError(f"measurement {index}: expected {alternatives} values of {size} bytes")
    return frozenset(values) if active == "True" else None


def _number(resource: Any, name: str) -> int:
    text = resource.get(name, "")
    if not re.fullmatch(r"[0-9]{1,3}", text):
        raise ValueError(f"expected a number of up to 3 digits for {name}")
    return int(text)


def compare_measurements(
    report: GpuReport, model: str, manifests: Sequence[ReferenceIntegrityManifest]
) -> None:
    """Checks that a GPU's measurements are those that NVIDIA published for its driver and its VBIOS.

    Blocks of the report that are active in neither manifest are ignored, as in NVIDIA's verifiers.

    Args:
        report: the GPU's report, verified.
        model: the model that its chain certifies; the first word is the chip.
        manifests: verified manifests; exactly one must be of this driver, and one of this VBIOS.

    Raises:
        ValueError: a manifest is missing, or a measurement differs.
    """
    chip = model.partition(" ")[0]
    driver = _manifest_of(manifests, chip, report.driver_version, "driver")
    vbios = _manifest_of(manifests, chip, report.vbios_version, "VBIOS")
    if twice := sorted(driver.keys() & vbios.keys()):
        raise ValueError(f"both manifests have measurement {', '.join(map(str, twice))}")
    expected = {**driver, **vbios}
    # NVIDIA's verifiers skip this measurement, too, where the report says that the decoder is off.
    if report.opaque.get(NVDEC0_STATUS) == _NVDEC0_DISABLED:
        expected.pop(_NVDEC0_MEASUREMENT, None)
    # Indices of manifests start at 0, those of blocks at 1. A block that is missing is None, which no manifest
    # accepts.
    wrong = [
        index
        for index in sorted(expected)
        if report.measurements.get(index + 1) not in expected[index]
    ]
    if wrong:
        raise ValueError(f"measurement {', '.join(map(str, wrong))} is not NVIDIA's")


def _manifest_of(
    manifests: Sequence[ReferenceIntegrityManifest], chip: str, version: str, what: str
) -> Mapping[int, frozenset[bytes]]:
    # The product matters: NVIDIA's service has a Hopper manifest for a Blackwell GPU's driver version too.
    matching = [
        manifest
        for manifest in manifests
        if manifest.product == chip and manifest.version.upper() == version.upper()
    ]
    if len(matching) != 1:
        raise ValueError(
            f"expected one manifest of {what} {version} on {chip}, got {len(matching)}"
        )
    return matching[0].measurements


def manifest_ids(report: GpuReport, model: str) -> tuple[str, str]:
    """Returns the names of the manifests of a report's driver and VBIOS in NVIDIA's RIM service.

    Raises:
        ValueError: the report lacks a field that the names need.
    """
    chip = model.partition(" ")[0]
    if chip == "GH100":
        driver = f"NV_GPU_DRIVER_GH100_{report.driver_version}"
    else:
        driver = f"NV_GPU_CC_DRIVER_{_word(report, CHIP_INFO, chip)}_{report.driver_version}"
    board = [_word(report, kind) for kind in (PROJECT, PROJECT_SKU, CHIP_SKU)]
    vbios = "_".join(["NV_GPU_VBIOS", *board, report.vbios_version.replace(".", "").upper()])
    return driver, vbios


def _word(report: GpuReport, kind: int, instead: str = "") -> str:
    text = report.opaque.get(kind, instead.encode()).rstrip(b"\0").decode("latin-1").upper()
    if not re.fullmatch(r"[A-Z0-9]{1,16}", text):
        raise ValueError(f"opaque field {kind}: expected letters and digits")
    return text
