"""The SGX extension of a PCK certificate, in DER.

The extension is a SEQUENCE of entries, each a SEQUENCE of an object identifier below `SGX_EXTENSION_OID` and a
value.

Source: Intel SGX PCK Certificate and Certificate Revocation List Profile Specification 1.5, section 1.3.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat import asn1

SGX_EXTENSION_OID: Final = "1.2.840.113741.1.13.1"

_SEQUENCE: Final = 0x30
_ENUMERATED: Final = 0x0A
_SHORT_LENGTH: Final = 0x80


@dataclass(frozen=True)
class PlatformConfiguration:
    """Flags of a multi-package platform: packages may be added, keys are cached, SMT is on."""

    dynamic_platform: bool = False
    cached_keys: bool = False
    smt_enabled: bool = False


@dataclass(frozen=True)
class SgxExtension:
    """Contents of the extension: the identity of a platform and its security versions."""

    ppid: bytes
    """16 bytes."""
    cpu_svn: bytes
    """16 bytes, one security version a byte."""
    pce_svn: int
    pce_id: bytes
    """2 bytes."""
    fmspc: bytes
    """6 bytes."""
    platform_instance_id: bytes
    """16 bytes."""
    configuration: PlatformConfiguration = PlatformConfiguration()
    sgx_type: int = 1
    """0 standard, 1 scalable, 2 scalable with integrity."""

    def to_der(self) -> bytes:
        """Returns the value of the X.509 extension `1.2.840.113741.1.13.1`."""
        # Entries 1 to 16 of the TCB are the components of CPUSVN, 17 is PCESVN, and 18 repeats CPUSVN as 16 bytes.
        tcb = [asn1.encode_der(svn) for svn in (*self.cpu_svn, self.pce_svn)] + [
            asn1.encode_der(self.cpu_svn)
        ]
        flags = (
            self.configuration.dynamic_platform,
            self.configuration.cached_keys,
            self.configuration.smt_enabled,
        )
        return _numbered_entries(
            "",
            [
                asn1.encode_der(self.ppid),
                _numbered_entries(".2", tcb),
                asn1.encode_der(self.pce_id),
                asn1.encode_der(self.fmspc),
                _tag_length_value(_ENUMERATED, bytes([self.sgx_type])),
                asn1.encode_der(self.platform_instance_id),
                _numbered_entries(".7", [asn1.encode_der(flag) for flag in flags]),
            ],
        )


def _numbered_entries(parent: str, values: Iterable[bytes]) -> bytes:
    """Returns the SEQUENCE of entries whose object identifiers end with `parent` and their number, from 1."""
    entries = b""
    for number, value in enumerate(values, start=1):
        oid = x509.ObjectIdentifier(f"{SGX_EXTENSION_OID}{parent}.{number}")
        entries += _tag_length_value(_SEQUENCE, asn1.encode_der(oid) + value)
    # A value comes already encoded, since the entries 2 and 7 are sequences of entries themselves.
    return _tag_length_value(_SEQUENCE, entries)


def _tag_length_value(tag: int, value: bytes) -> bytes:
    """Returns a DER element: tag, length (X.690 8.1.3: one byte below 128, else its own size first), value."""
    if len(value) < _SHORT_LENGTH:
        return bytes([tag, len(value)]) + value
    length = len(value).to_bytes((len(value).bit_length() + 7) // 8, "big")
    return bytes([tag, _SHORT_LENGTH | len(length)]) + length + value
