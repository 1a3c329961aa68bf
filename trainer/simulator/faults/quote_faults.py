"""Faults of the quote: its header, its signatures, the quoting enclave and the platform's certificates."""

from __future__ import annotations

import dataclasses
import ssl
import struct
from collections.abc import Callable
from typing import Any, Final

from trainer.simulator.certificates import derive_p256_key, raw_signature
from trainer.simulator.fault import Fault, FaultLayer
from trainer.simulator.pki import DevelopmentPki
from trainer.simulator.quote import QuoteParts, field_ranges

_OTHER_SEED: Final = b"the seed of another development root"
_EXPIRED: Final = 1_600_000_000
"""September 2020, in seconds since 1970; all certificates are valid from January 2020."""


def _set_header_fields(**changes: Any) -> Callable[[QuoteParts], QuoteParts]:
    return lambda parts: dataclasses.replace(parts, header=dataclasses.replace(parts.header, **changes))


def _set_enclave_fields(**changes: Any) -> Callable[[QuoteParts], QuoteParts]:
    return lambda parts: dataclasses.replace(parts, qe_report=dataclasses.replace(parts.qe_report, **changes))


def _change_chain(change: Callable[[list[str]], list[str]]) -> Callable[[QuoteParts], QuoteParts]:
    """Returns the change of the list of certificates (PEM, leaf first) in the quote."""
    end = "-----END CERTIFICATE-----\n"

    def changed(parts: QuoteParts) -> QuoteParts:
        certificates = [text + end for text in parts.chain.split(end)[:-1]]
        return dataclasses.replace(parts, chain="".join(change(certificates)))

    return changed


def _replace_root_bytes(old: str, new: str) -> Callable[[QuoteParts], QuoteParts]:
    """Returns the change that replaces bytes, given in hex, in the root certificate, the last of the chain."""

    def changed(certificates: list[str]) -> list[str]:
        der = ssl.PEM_cert_to_DER_cert(certificates[-1]).replace(bytes.fromhex(old), bytes.fromhex(new), 1)
        return [*certificates[:-1], ssl.DER_cert_to_PEM_cert(der)]

    return _change_chain(changed)


def _flip_field_bit(region: str) -> Callable[[bytes], bytes]:
    """Returns the change of one bit in the middle of a field of the signed quote."""

    def changed(quote: bytes) -> bytes:
        place = field_ranges(quote)[region]
        data = bytearray(quote)
        data[place[len(place) // 2]] ^= 1
        return bytes(data)

    return changed


def _replace_number(region: str, value: int) -> Callable[[bytes], bytes]:
    def changed(quote: bytes) -> bytes:
        place = field_ranges(quote)[region]
        return quote[: place.start] + value.to_bytes(len(place), "little") + quote[place.stop :]

    return changed


def _sign_with_other_key(quote: bytes) -> bytes:
    """Replaces the signature by one of a key that the quoting enclave's report does not name."""
    places = field_ranges(quote)
    place, end = places["signature"], places["signature_size"].start
    forged = raw_signature(derive_p256_key(_OTHER_SEED, "forger"), quote[:end])
    return quote[: place.start] + forged + quote[place.stop :]


def _append_counted_bytes(quote: bytes) -> bytes:
    """Appends bytes after the certification data and includes them in the size of the signature data.

    A parser that trusts the outer size and ignores the rest would accept unsigned bytes in a quote.
    """
    place = field_ranges(quote)["signature_size"]
    (size,) = struct.unpack("<I", quote[place.start : place.stop])
    return quote[: place.start] + struct.pack("<I", size + 5) + quote[place.stop :] + b"stray"


def _parts_fault(name: str, code: str, description: str, change: Callable[[QuoteParts], QuoteParts]) -> Fault:
    return Fault(name, code, description, FaultLayer.PARTS, change)


def _platform_fault(name: str, code: str, description: str, **changes: Any) -> Fault:
    return Fault(name, code, description, FaultLayer.PKI, lambda given: given | {"platform": changes})


_FORGED_REGIONS: Final = {
    "reserved": "header-reserved",
    "user_data": "header-user-data",
    "tee_tcb_svn": "tee-tcb-svn",
    "mr_signer_seam": "mr-signer-seam",
    "seam_attributes": "seam-attributes",
    "signature": "signature",
    "attestation_key": "attestation-key",
    "qe_cpu_svn": "qe-cpu-svn",
    "qe_misc_select": "qe-misc-select",
    "qe_reserved_1": "qe-reserved-1",
    "qe_attributes": "qe-attributes",
    "qe_mr_enclave": "qe-mr-enclave",
    "qe_reserved_2": "qe-reserved-2",
    "qe_mr_signer": "qe-mr-signer",
    "qe_reserved_3": "qe-reserved-3",
    "qe_isv_prod_id": "qe-isv-prod-id",
    "qe_isv_svn": "qe-isv-svn",
    "qe_reserved_4": "qe-reserved-4",
    "qe_report_data": "qe-report-data",
    "qe_signature": "qe-signature",
    "qe_authentication": "qe-authentication",
}
"""Fields that only a signature protects, or that are read after the signature is verified."""

_HEADER: Final = (
    _parts_fault("header-version", "quote-format", "a quote of version 3", _set_header_fields(version=3)),
    _parts_fault(
        "header-key-type",
        "quote-format",
        "an attestation key on P-384",
        _set_header_fields(attestation_key_type=3),
    ),
    _parts_fault("header-tee-type", "quote-format", "a quote of an SGX enclave", _set_header_fields(tee_type=0)),
    _parts_fault(
        "header-vendor", "quote-format", "another vendor's enclave", _set_header_fields(qe_vendor_id=bytes(16))
    ),
)

_SIGNED: Final = tuple(
    Fault(
        f"forged-{name}",
        "quote-signature",
        f"one bit of the quote's {name} changed after it was signed",
        FaultLayer.QUOTE,
        _flip_field_bit(region),
    )
    for region, name in _FORGED_REGIONS.items()
)

_SHAPE: Final = (
    Fault("quote-cut-short", "quote-format", "a quote without its end", FaultLayer.QUOTE, lambda q: q[:-9]),
    Fault("quote-header-only", "quote-format", "a header and nothing more", FaultLayer.QUOTE, lambda q: q[:48]),
    Fault(
        "certification-kind",
        "quote-format",
        "certification data of another kind",
        FaultLayer.QUOTE,
        _replace_number("certification_type", 5),
    ),
    Fault(
        "chain-kind",
        "platform-certificate",
        "a platform named by its id in place of its certificates",
        FaultLayer.QUOTE,
        _replace_number("chain_type", 1),
    ),
    Fault(
        "bytes-after-quote",
        "quote-trailing-bytes",
        "bytes after the quote",
        FaultLayer.QUOTE,
        lambda quote: quote + b"\0stray",
    ),
    Fault(
        "bytes-between-parts",
        "quote-trailing-bytes",
        "bytes inside the quote that belong to no part",
        FaultLayer.QUOTE,
        _append_counted_bytes,
    ),
    Fault(
        "signature-of-another-key",
        "quote-signature",
        "the report signed by a key that the quoting enclave does not name",
        FaultLayer.QUOTE,
        _sign_with_other_key,
    ),
)

_ENCLAVE: Final = (
    _parts_fault(
        "qe-binding",
        "quote-signature",
        "a quoting enclave that names another attestation key",
        _set_enclave_fields(report_data=bytes(64)),
    ),
    _parts_fault(
        "qe-signer", "quoting-enclave", "an enclave of another signer", _set_enclave_fields(mr_signer=bytes(32))
    ),
    _parts_fault(
        "qe-product", "quoting-enclave", "another enclave of the same signer", _set_enclave_fields(isv_prod_id=1)
    ),
    _parts_fault(
        "qe-version", "quoting-enclave", "an enclave older than any known", _set_enclave_fields(isv_svn=5)
    ),
    _parts_fault(
        "qe-misc-select", "quoting-enclave", "an enclave with more state", _set_enclave_fields(misc_select=1)
    ),
    _parts_fault(
        "qe-debug",
        "quoting-enclave",
        "a quoting enclave in debug mode",
        _set_enclave_fields(attributes=bytes.fromhex("1300000000000000e700000000000000")),
    ),
)

_CERTIFICATES: Final = (
    _parts_fault("chain-empty", "platform-certificate", "no certificates", _change_chain(lambda _: [])),
    _parts_fault(
        "chain-without-leaf", "platform-certificate", "no platform certificate", _change_chain(lambda c: c[1:])
    ),
    _parts_fault(
        "chain-without-ca", "platform-certificate", "no platform CA", _change_chain(lambda c: [c[0], c[2]])
    ),
    _parts_fault("chain-reversed", "platform-certificate", "the root first", _change_chain(lambda c: c[::-1])),
    _parts_fault(
        "chain-foreign-root",
        "root-of-trust",
        "another root at the chain's end",
        _change_chain(lambda c: [*c[:-1], DevelopmentPki(_OTHER_SEED).root_pem]),
    ),
    _parts_fault(
        "root-x509-version",
        "quote-format",
        "a root certificate of X.509 version 11",
        _replace_root_bytes("a003020102", "a00302010a"),
    ),
    _parts_fault(
        "root-key-kind",
        "quote-format",
        "a root key of a kind that does not exist",
        _replace_root_bytes("06072a8648ce3d0201", "06072b8648ce3d0201"),
    ),
    Fault(
        "another-root",
        "root-of-trust",
        "quotes and collateral by a root that nobody named",
        FaultLayer.PKI,
        lambda given: given | {"seed": _OTHER_SEED},
    ),
    Fault(
        "pck-expired",
        "platform-certificate",
        "a platform certificate that ran out",
        FaultLayer.PKI,
        lambda given: given | {"pck_end": _EXPIRED},
    ),
    _platform_fault("pck-fmspc", "tcb-level", "a platform of another model", fmspc=bytes(6)),
    _platform_fault("pck-pce-id", "tcb-level", "another provisioning enclave", pce_id=b"\1\0"),
    _platform_fault("pck-pce-svn", "tcb-level", "an older provisioning enclave", pce_svn=10),
    _platform_fault("pck-cpu-svn", "tcb-level", "microcode older than any known", cpu_svn=bytes(16)),
)

QUOTE_FAULTS: Final = (*_HEADER, *_SHAPE, *_SIGNED, *_ENCLAVE, *_CERTIFICATES)
