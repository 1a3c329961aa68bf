"""Faults of the quote: its header, its signatures, the quoting enclave and the platform's certificates."""

from __future__ import annotations

import dataclasses
import functools
import ssl
import struct
from collections.abc import Callable
from typing import Any, Final

from trainer.simulator.certificates import derive_p256_key, raw_signature
from trainer.simulator.fault import Fault, FaultLayer, flip_middle_bit
from trainer.simulator.pki import DevelopmentPki
from trainer.simulator.quote import QuoteParts, field_ranges

_OTHER_SEED: Final = b"the seed of another development root"
_EXPIRED: Final = 1_600_000_000
"""September 2020, in seconds since 1970; all certificates are valid from January 2020."""


_parts_fault: Final = functools.partial(Fault, FaultLayer.PARTS)
"""Makes a fault whose quote has valid signatures over false parts."""


def _set_part_fields(part: str, **changes: Any) -> Callable[[QuoteParts], QuoteParts]:
    return lambda parts: dataclasses.replace(
        parts, **{part: dataclasses.replace(getattr(parts, part), **changes)}
    )


def _change_chain(change: Callable[[list[str]], list[str]]) -> Callable[[QuoteParts], QuoteParts]:
    """Returns the change of the list of certificates (PEM, leaf first) in the quote."""
    end = "-----END CERTIFICATE-----\n"

    def changed(parts: QuoteParts) -> QuoteParts:
        certificates = [text + end for text in parts.chain.split(end)[:-1]]
        return dataclasses.replace(parts, chain="".join(change(certificates)))

    return changed


def _replace_bytes(pem: str, old: str, new: str) -> str:
    """Returns a certificate with the first occurrence of some bytes replaced; both are given in hex."""
    der = ssl.PEM_cert_to_DER_cert(pem).replace(bytes.fromhex(old), bytes.fromhex(new), 1)
    return ssl.DER_cert_to_PEM_cert(der)


def _change_field(name: str, change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Returns the change of the bytes of one field in the signed quote."""

    def changed(quote: bytes) -> bytes:
        place = field_ranges(quote)[name]
        return quote[: place.start] + change(quote[place.start : place.stop]) + quote[place.stop :]

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


def _platform_fault(name: str, code: str, description: str, **changes: Any) -> Fault:
    return Fault(
        FaultLayer.PKI, name, code, description, lambda given: given | {"platform": changes}
    )


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
    _parts_fault(
        "header-version",
        "quote-format",
        "a quote of version 3",
        _set_part_fields("header", version=3),
    ),
    _parts_fault(
        "header-key-type",
        "quote-format",
        "an attestation key on P-384",
        _set_part_fields("header", attestation_key_type=3),
    ),
    _parts_fault(
        "header-tee-type",
        "quote-format",
        "a quote of an SGX enclave",
        _set_part_fields("header", tee_type=0),
    ),
    _parts_fault(
        "header-vendor",
        "quote-format",
        "another vendor's enclave",
        _set_part_fields("header", qe_vendor_id=bytes(16)),
    ),
)

_SIGNED: Final = tuple(
    Fault(
        FaultLayer.QUOTE,
        f"forged-{name}",
        "quote-signature",
        f"one bit of the quote's {name} changed after it was signed",
        _change_field(region, flip_middle_bit),
    )
    for region, name in _FORGED_REGIONS.items()
)

_SHAPE: Final = (
    Fault(
        FaultLayer.QUOTE,
        "quote-cut-short",
        "quote-format",
        "a quote without its end",
        lambda q: q[:-9],
    ),
    Fault(
        FaultLayer.QUOTE,
        "quote-header-only",
        "quote-format",
        "a header and nothing more",
        lambda q: q[:48],
    ),
    Fault(
        FaultLayer.QUOTE,
        "certification-kind",
        "quote-format",
        "certification data of another kind",
        _change_field("certification_type", lambda _: struct.pack("<H", 5)),
    ),
    Fault(
        FaultLayer.QUOTE,
        "chain-kind",
        "platform-certificate",
        "a platform named by its id in place of its certificates",
        _change_field("chain_type", lambda _: struct.pack("<H", 1)),
    ),
    Fault(
        FaultLayer.QUOTE,
        "bytes-after-quote",
        "quote-trailing-bytes",
        "bytes after the quote",
        lambda quote: quote + b"\0stray",
    ),
    Fault(
        FaultLayer.QUOTE,
        "bytes-between-parts",
        "quote-trailing-bytes",
        "bytes inside the quote that belong to no part",
        _append_counted_bytes,
    ),
    Fault(
        FaultLayer.QUOTE,
        "signature-of-another-key",
        "quote-signature",
        "the report signed by a key that the quoting enclave does not name",
        _sign_with_other_key,
    ),
)

_ENCLAVE: Final = (
    _parts_fault(
        "qe-binding",
        "quote-signature",
        "a quoting enclave that names another attestation key",
        _set_part_fields("qe_report", report_data=bytes(64)),
    ),
    _parts_fault(
        "qe-signer",
        "quoting-enclave",
        "an enclave of another signer",
        _set_part_fields("qe_report", mr_signer=bytes(32)),
    ),
    _parts_fault(
        "qe-product",
        "quoting-enclave",
        "another enclave of the same signer",
        _set_part_fields("qe_report", isv_prod_id=1),
    ),
    _parts_fault(
        "qe-version",
        "quoting-enclave",
        "an enclave older than any known",
        _set_part_fields("qe_report", isv_svn=5),
    ),
    _parts_fault(
        "qe-misc-select",
        "quoting-enclave",
        "an enclave with more state",
        _set_part_fields("qe_report", misc_select=1),
    ),
    _parts_fault(
        "qe-debug",
        "quoting-enclave",
        "a quoting enclave in debug mode",
        _set_part_fields("qe_report", attributes=bytes.fromhex("1300000000000000e700000000000000")),
    ),
)

_CERTIFICATES: Final = (
    _parts_fault(
        "chain-empty", "platform-certificate", "no certificates", _change_chain(lambda _: [])
    ),
    _parts_fault(
        "chain-without-leaf",
        "platform-certificate",
        "no platform certificate",
        _change_chain(lambda c: c[1:]),
    ),
    _parts_fault(
        "chain-without-ca",
        "platform-certificate",
        "no platform CA",
        _change_chain(lambda c: [c[0], c[2]]),
    ),
    _parts_fault(
        "chain-reversed", "platform-certificate", "the root first", _change_chain(lambda c: c[::-1])
    ),
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
        _change_chain(lambda c: [*c[:-1], _replace_bytes(c[-1], "a003020102", "a00302010a")]),
    ),
    _parts_fault(
        "root-key-kind",
        "quote-format",
        "a root key of a kind that does not exist",
        _change_chain(
            lambda c: [*c[:-1], _replace_bytes(c[-1], "06072a8648ce3d0201", "06072b8648ce3d0201")]
        ),
    ),
    Fault(
        FaultLayer.PKI,
        "another-root",
        "root-of-trust",
        "quotes and collateral by a root that nobody named",
        lambda given: given | {"seed": _OTHER_SEED},
    ),
    Fault(
        FaultLayer.PKI,
        "pck-expired",
        "platform-certificate",
        "a platform certificate that ran out",
        lambda given: given | {"pck_end": _EXPIRED},
    ),
    _platform_fault("pck-ppid", "platform-ppid", "a machine that nobody listed", ppid=bytes(16)),
    _platform_fault("pck-fmspc", "tcb-level", "a platform of another model", fmspc=bytes(6)),
    _platform_fault("pck-pce-id", "tcb-level", "another provisioning enclave", pce_id=b"\1\0"),
    _platform_fault("pck-pce-svn", "tcb-level", "an older provisioning enclave", pce_svn=10),
    _platform_fault(
        "pck-cpu-svn", "tcb-level", "microcode older than any known", cpu_svn=bytes(16)
    ),
)

QUOTE_FAULTS: Final = (*_HEADER, *_SHAPE, *_SIGNED, *_ENCLAVE, *_CERTIFICATES)
