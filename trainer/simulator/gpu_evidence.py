"""GPU evidence under a development root: SPDM reports and certificate chains, each part changeable.

Formats: those that `trainer.attestation.nvidia.spdm_report` and `certificate_chain` read.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from trainer.attestation.evidence import FreshGpuEvidence
from trainer.attestation.nvidia.spdm_report import gpu_nonce
from trainer.simulator.nvattest import SimulatedGpu, nvattest_result

NOW = 1_790_000_000
NONCE = "01" * 32
GPU_BOOT = nvattest_result([SimulatedGpu()], "5b" * 32)
"""Result of the OS's verification of one honest GPU at boot."""

FWID = b"\x0f" * 48
FWID_OID = x509.ObjectIdentifier("2.23.133.5.4.1")
FWID_HEADER = bytes.fromhex("303d06096086480165030402020430")
LEAF_USE = ("digital_signature",)
CA_USE = ("key_cert_sign", "crl_sign")
USES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
Extensions = tuple[tuple[x509.ExtensionType, bool], ...]


def key_usage(*uses: str) -> tuple[x509.ExtensionType, bool]:
    """Returns a critical KeyUsage extension that permits `uses`."""
    return x509.KeyUsage(**{use: use in uses for use in USES}), True


def constraints(ca: bool, path_length: int | None = None) -> tuple[x509.ExtensionType, bool]:
    """Returns a critical BasicConstraints extension."""
    return x509.BasicConstraints(ca=ca, path_length=path_length), True


def fwid_extension(value: bytes = FWID_HEADER + FWID) -> tuple[x509.ExtensionType, bool]:
    """Returns the extension that holds the firmware digest (TCG DICE TcbInfo)."""
    return x509.UnrecognizedExtension(FWID_OID, value), False


CA: Extensions = (constraints(True), key_usage(*CA_USE))
LEAF: Extensions = (key_usage(*LEAF_USE), fwid_extension())


@dataclass(frozen=True)
class GpuCertificate:
    """One certificate of a chain to be made: everything that a test may change."""

    name: str
    scalar: int
    extensions: Extensions = CA
    begin: int = NOW - 86400
    end: int = NOW + 86400
    curve: ec.EllipticCurve = field(default_factory=ec.SECP384R1)

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """The private key that this certificate certifies."""
        return ec.derive_private_key(self.scalar, self.curve)

    def issued_by(self, issuer: GpuCertificate) -> str:
        """Returns this certificate in PEM, signed by `issuer`."""
        builder = x509.CertificateBuilder(
            subject_name=x509.Name.from_rfc4514_string(f"CN={self.name}"),
            issuer_name=x509.Name.from_rfc4514_string(f"CN={issuer.name}"),
            public_key=self.key.public_key(),
            serial_number=self.scalar,
            not_valid_before=dt.datetime.fromtimestamp(self.begin, dt.UTC),
            not_valid_after=dt.datetime.fromtimestamp(self.end, dt.UTC),
        )
        for extension, critical in self.extensions:
            builder = builder.add_extension(extension, critical)
        signed = builder.sign(issuer.key, hashes.SHA384(), ecdsa_deterministic=True)
        return signed.public_bytes(Encoding.PEM).decode()


GPU_ROOT = GpuCertificate("NOT NVIDIA - test root", 1001)
GPU_CA = GpuCertificate("GH100 - NOT NVIDIA - test GPU", 1002)
GPU_LEAF = GpuCertificate("NOT NVIDIA - test GPU's firmware", 1003, LEAF)


def chain_pem(*certificates: GpuCertificate) -> str:
    """Returns a chain in PEM, leaf first; the last certificate is self-signed."""
    issuers = (*certificates[1:], certificates[-1])
    return "".join(
        each.issued_by(issuer) for each, issuer in zip(certificates, issuers, strict=True)
    )


@cache
def gpu_root_sha256() -> str:
    """Returns the fingerprint of the development root, in hex."""
    root = x509.load_pem_x509_certificate(GPU_ROOT.issued_by(GPU_ROOT).encode())
    return root.fingerprint(hashes.SHA256()).hex()


def tlv(fields: Mapping[int, bytes]) -> bytes:
    """Returns opaque fields as type (2 bytes), length (2 bytes) and value, little-endian."""
    return b"".join(
        kind.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value
        for kind, value in fields.items()
    )


def block(index: int, value: bytes = b"\7" * 48) -> bytes:
    """Returns one measurement block of an SPDM report (DSP0274)."""
    size = len(value)
    return (
        bytes([index, 1])
        + (size + 3).to_bytes(2, "little")
        + b"\0"
        + size.to_bytes(2, "little")
        + value
    )


OPAQUE = {3: b"550.90.07\0", 6: bytes.fromhex("009f009601000000"), 20: FWID, 1: b"x"}


def gpu_report(
    *,
    nonce: bytes | None = None,
    request: bytes = b"\x11\xe0\x01\xff",
    slot: int = 0,
    header: bytes = b"\x11\x60\0\0",
    blocks: tuple[bytes, ...] = (block(1), block(2)),
    opaque: Mapping[int, bytes] = OPAQUE,
    opaque_bytes: bytes | None = None,
    key: ec.EllipticCurvePrivateKey = GPU_LEAF.key,
    tail: bytes = b"",
) -> bytes:
    """Returns an SPDM 1.1 report (DSP0274, GET_MEASUREMENTS) with its signature; each argument changes one part.

    Request (version, code, two parameters) ‖ nonce (32 bytes) ‖ slot ‖ response ‖ signature r ‖ s (96 bytes).
    """
    record = b"".join(blocks)
    fields = tlv(opaque) if opaque_bytes is None else opaque_bytes
    asked = request + (gpu_nonce(NONCE) if nonce is None else nonce) + bytes([slot])
    body = header + bytes([len(blocks)]) + len(record).to_bytes(3, "little") + record + b"\5" * 32
    # SPDM signs the transcript: request and response, so that an old response fits no new nonce.
    signed = asked + body + len(fields).to_bytes(2, "little") + fields
    r, s = decode_dss_signature(
        key.sign(signed, ec.ECDSA(hashes.SHA384(), deterministic_signing=True))
    )
    return signed + r.to_bytes(48, "big") + s.to_bytes(48, "big") + tail


def gpu_answer(*chain: GpuCertificate, **changes: Any) -> FreshGpuEvidence:
    """Returns report and chain of the honest GPU with `changes`, signed by the key of the chain's leaf."""
    certificates = chain or (GPU_LEAF, GPU_CA, GPU_ROOT)
    key = certificates[0].key if isinstance(certificates[0].curve, ec.SECP384R1) else GPU_LEAF.key
    return FreshGpuEvidence(
        report=gpu_report(**{"key": key, **changes}).hex(),
        certificate_chain=chain_pem(*certificates),
    )


@dataclass(frozen=True)
class GpuEvidenceMaker:
    """Makers and honest parts of GPU evidence, as the fixture `gpus` hands them to tests."""

    root, ca, leaf = GPU_ROOT, GPU_CA, GPU_LEAF
    certificate = GpuCertificate
    ca_extensions, leaf_extensions = CA, LEAF
    fwid, opaque = FWID, OPAQUE
    key_usage = staticmethod(key_usage)
    constraints = staticmethod(constraints)
    fwid_extension = staticmethod(fwid_extension)
    fwid_header = FWID_HEADER
    answer = staticmethod(gpu_answer)
    report = staticmethod(gpu_report)
    chain = staticmethod(chain_pem)
    block = staticmethod(block)
    tlv = staticmethod(tlv)

    @property
    def root_sha256(self) -> str:
        """Fingerprint of the test root."""
        return gpu_root_sha256()
