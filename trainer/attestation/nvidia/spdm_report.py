"""One GPU's signed attestation report: SPDM 1.1 GET_MEASUREMENTS as NVIDIA Hopper and Blackwell answer it.

    request    11 e0 01 ff ‖ nonce (32) ‖ slot (1)
    response   11 60 param1 param2 ‖ blocks (1) ‖ record length (3) ‖ record ‖ nonce (32)
               ‖ opaque length (2) ‖ opaque data ‖ ECDSA P-384 signature r ‖ s (96), over all before it

Drivers may return a report with the rest of its buffer: zeros may follow the signature, and nothing else.

Integers are little-endian. Sources: DMTF DSP0274 1.1, and NVIDIA's published verifier for the opaque fields.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

GPU_NONCE_DOMAIN: Final = b"confidential-trainer/gpu-nonce/v1"
GPU_NONCE_BYTES: Final = 32
MAX_REPORT_BYTES: Final = 0x2000
"""Size of NVML's buffer for a report."""
SIGNATURE_BYTES: Final = 96
FWID_BYTES: Final = 48
VBIOS_BYTES: Final = 8

DRIVER_VERSION: Final = 3
VBIOS_VERSION: Final = 6
FWID: Final = 20
"""Types of the opaque fields that are read here."""

_REQUEST: Final = (
    b"\x11\xe0\x01\xff"  # version 1.1, GET_MEASUREMENTS, signature requested, all measurements
)
_RESPONSE: Final = b"\x11\x60"  # version 1.1, MEASUREMENTS
_DMTF: Final = 1  # the only measurement specification of SPDM 1.1


@dataclass(frozen=True)
class GpuReport:
    """A parsed report, not authenticated until its signature and its signer's certificate chain are verified.

    Attributes:
        nonce: the 32 bytes of the request's nonce.
        measurements: raw value of each measurement block, by index.
        opaque: raw value of each opaque field, by type.
        driver_version: such as `550.90.07`.
        vbios_version: such as `96.00.9F.00.01`.
        fwid: SHA-384 of the firmware that holds the signing key, 48 bytes; None in reports of older firmware.
        signed: the bytes that the signature covers: everything before it.
        signature: r ‖ s, 48 bytes each, big-endian.
    """

    nonce: bytes
    measurements: Mapping[int, bytes]
    opaque: Mapping[int, bytes]
    driver_version: str
    vbios_version: str
    fwid: bytes | None
    signed: bytes
    signature: bytes


def gpu_nonce(nonce: str) -> bytes:
    """Returns the 32 bytes that a GPU signs for a provider's nonce: SHA-256(domain ‖ 0x00 ‖ nonce in binary).

    The domain keeps the operator from presenting a report that a GPU made for another protocol's nonce.

    Raises:
        ValueError: `nonce` is not 64 lower-case hex digits.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", nonce):
        raise ValueError("nonce: expected 64 lower-case hex digits")
    return hashlib.sha256(GPU_NONCE_DOMAIN + b"\0" + bytes.fromhex(nonce)).digest()


class _Reader:
    """Reads bytes in order and raises ValueError where too few are left."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._what, self._at = data, what, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise ValueError(f"{self._what}: expected {size} more bytes, got {self.left}")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def constant(self, value: bytes, name: str) -> None:
        found = self.take(len(value))
        if found != value:
            raise ValueError(f"{name}: expected {value.hex()}, got {found.hex()}")

    def end(self) -> None:
        if self.left:
            raise ValueError(f"{self._what}: {self.left} bytes too many")


def parse_gpu_report(data: bytes) -> GpuReport:
    """Parses a request with its response; every byte must belong to a field, but for zeros at the end.

    Raises:
        ValueError: malformed, or a field occurs twice or is missing; the message names it.
    """
    if len(data) > MAX_REPORT_BYTES:
        raise ValueError(f"the report: expected at most {MAX_REPORT_BYTES} bytes, got {len(data)}")
    reader = _Reader(data, "the report")
    reader.constant(_REQUEST, "the request")
    nonce = reader.take(GPU_NONCE_BYTES)
    slot = reader.number(1)
    reader.constant(_RESPONSE, "the response")
    reader.take(1)  # param1: number of measurements; only answers to other requests have one
    # param2, low 4 bits: the certificate slot whose key signed.
    if reader.number(1) & 0x0F != slot:
        raise ValueError("the response is for another certificate slot than the request")
    blocks = reader.number(1)
    measurements = _measurements(reader.take(reader.number(3)), blocks)
    reader.take(GPU_NONCE_BYTES)  # the responder's own; it only makes the signature unique
    opaque = _opaque(reader.take(reader.number(2)))
    signed = data[: len(data) - reader.left]
    signature = reader.take(SIGNATURE_BYTES)
    # Nobody signed what follows: it must have no content.
    if any(reader.take(reader.left)):
        raise ValueError("the report: bytes other than zero after the signature")
    driver_version = _field(opaque, DRIVER_VERSION, "driver version").rstrip(b"\0")
    if not re.fullmatch(rb"[0-9]{1,4}(\.[0-9]{1,4}){1,3}", driver_version):
        raise ValueError("the driver version: expected numbers with dots between them")
    # NVIDIA prints a VBIOS version as bytes 3, 2, 1 and 0, then byte 4.
    vbios = _field(opaque, VBIOS_VERSION, "VBIOS version", VBIOS_BYTES)
    vbios_version = ".".join(f"{byte:02X}" for byte in (*reversed(vbios[:4]), vbios[4]))
    return GpuReport(
        nonce=nonce,
        measurements=MappingProxyType(measurements),
        opaque=MappingProxyType(opaque),
        driver_version=driver_version.decode("ascii"),
        vbios_version=vbios_version,
        fwid=_field(opaque, FWID, "firmware id", FWID_BYTES) if FWID in opaque else None,
        signed=signed,
        signature=signature,
    )


def _measurements(record: bytes, blocks: int) -> dict[int, bytes]:
    """Parses blocks of index (1), specification (1), size (2), value type (1), value size (2), value."""
    reader = _Reader(record, "the measurement record")
    found: dict[int, bytes] = {}
    for _ in range(blocks):
        index = reader.number(1)
        if index in found:
            raise ValueError(f"measurement {index} occurs twice")
        if reader.number(1) != _DMTF:
            raise ValueError(f"measurement {index} is not of the DMTF form")
        block = _Reader(reader.take(reader.number(2)), f"measurement {index}")
        block.take(1)  # value type; a manifest does not state it
        found[index] = block.take(block.number(2))
        block.end()
    reader.end()
    return found


def _opaque(data: bytes) -> dict[int, bytes]:
    """Parses fields of type (2), size (2), value."""
    reader = _Reader(data, "the opaque data")
    found: dict[int, bytes] = {}
    while reader.left:
        kind = reader.number(2)
        if kind in found:
            raise ValueError(f"opaque field {kind} occurs twice")
        found[kind] = reader.take(reader.number(2))
    return found


def _field(opaque: Mapping[int, bytes], kind: int, name: str, size: int | None = None) -> bytes:
    value = opaque.get(kind)
    if value is None:
        raise ValueError(f"the {name}: expected opaque field {kind}, got none")
    if size is not None and len(value) != size:
        raise ValueError(f"the {name}: expected {size} bytes, got {len(value)}")
    return value


def verify_signature(report: GpuReport, key: PublicKeyTypes) -> None:
    """Checks that `key`, on P-384, signed the report (ECDSA with SHA-384).

    Raises:
        ValueError: it did not, or the key is not on P-384.
    """
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("the signer's key is not on P-384")  # noqa: TRY004 - a fault of the evidence, not of the caller
    # SPDM concatenates r and s; `cryptography` takes the DER form.
    half = SIGNATURE_BYTES // 2
    r, s = (
        int.from_bytes(part, "big") for part in (report.signature[:half], report.signature[half:])
    )
    try:
        key.verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise ValueError("the signature does not fit the report") from None
