"""Attacks on the quote, its certificates and its collateral: name -> (code that must answer, change)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.attestation.tampering import (
    DAY,
    OTHER,
    certificates_of,
    flipped,
    honest_quote,
    other_revocation_list,
    outdated,
    with_certificates_in_collateral,
    with_chain,
    with_document,
    with_qe_identity,
    with_tcb_info,
)

if TYPE_CHECKING:
    from trainer.simulator.appraisal_world import World


def in_order(world: World, *places: int) -> World:
    """The honest quote with these of its certificates, in this order."""
    certificates = certificates_of(world)
    return with_chain(world, *(certificates[place] for place in places))


def hiding(world: World, at: int, stray: bytes) -> World:
    """The honest quote with bytes before the certificate `at`."""
    certificates = certificates_of(world)
    return with_chain(world, *certificates[:at], stray, *certificates[at:])


def signer_of_tcb_info(world: World) -> bytes:
    """A genuine certificate under the same root, which has nothing to do with the quote."""
    chain: str = json.loads(world.collateral)["tcb_info_issuer_chain"]
    end = "-----END CERTIFICATE-----\n"
    return (chain[: chain.index(end)] + end).encode()


def unsigned_certificate(chain: str) -> str:
    """The chain with one bit of the first certificate's signature changed; it stays readable."""
    first, *others = x509.load_pem_x509_certificates(chain.encode())
    der = bytearray(first.public_bytes(Encoding.DER))
    der[-1] ^= 1
    certificates = (x509.load_der_x509_certificate(bytes(der)), *others)
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in certificates)


def reworded(world: World, old: bytes, new: bytes) -> World:
    """The honest certificates in another PEM form."""
    return with_chain(world, b"".join(certificates_of(world)).replace(old, new, 1))


ATTACKS: dict[str, tuple[str, Callable[[World], World]]] = {
    "a machine that nobody listed": (
        "platform-ppid",
        lambda w: w.demanding("platform", ppid=("00" * 16,)),
    ),
    "not a quote": ("quote-format", lambda w: w.change(quote=b"\x04\0quote")),
    "an SGX quote": ("quote-format", lambda w: w.change(quote=flipped(w, 4))),
    "another vendor's quoting enclave": ("quote-format", lambda w: w.change(quote=flipped(w, 12))),
    "another kind of certification data": (
        "quote-format",
        lambda w: w.change(quote=flipped(w, 636 + 128)),
    ),
    "bytes after the quote": (
        "quote-trailing-bytes",
        lambda w: w.change(quote=honest_quote(w) + b"\0more"),
    ),
    "bytes before the certificates": ("quote-trailing-bytes", lambda w: hiding(w, 0, b"more\n")),
    "bytes between the certificates": ("quote-trailing-bytes", lambda w: hiding(w, 1, b"more\n")),
    "bytes before the last certificate": ("quote-trailing-bytes", lambda w: hiding(w, 2, b"\n")),
    "bytes after the certificates": ("quote-trailing-bytes", lambda w: hiding(w, 3, b"more")),
    "a zero, then bytes after the certificates": (
        "quote-trailing-bytes",
        lambda w: hiding(w, 3, b"\0more"),
    ),
    "a zero in place of the last line's end": (
        "quote-trailing-bytes",
        lambda w: with_chain(w, b"".join(certificates_of(w))[:-1] + b"\0"),
    ),
    "a header in a certificate's PEM": (
        "quote-trailing-bytes",
        lambda w: reworded(w, b"CERTIFICATE-----\n", b"CERTIFICATE-----\nmore: hidden\n\n"),
    ),
    "line ends of two kinds": ("quote-trailing-bytes", lambda w: reworded(w, b"\n", b"\r\n")),
    "blanks after a line of base64": (
        "quote-trailing-bytes",
        lambda w: reworded(w, b"\nMII", b" \nMII"),
    ),
    "certificates that no reader can decode": (
        "quote-format",
        lambda w: reworded(w, b"\nMII", b"\nAAA"),
    ),
    "no collateral": ("collateral-format", lambda w: w.change(collateral=b"")),
    "collateral without a CRL": (
        "collateral-format",
        lambda w: w.change(
            collateral=json.dumps({**json.loads(w.collateral), "pck_crl": None}).encode()
        ),
    ),
    "a key twice in the collateral": (
        "collateral-format",
        lambda w: w.change(collateral=w.collateral[:-1] + b', "pck_crl": "00"}'),
    ),
    "huge collateral": (
        "collateral-format",
        lambda w: w.change(collateral=b" " * (5 << 20) + w.collateral),
    ),
    "TCB info that is no object": (
        "collateral-format",
        lambda w: with_document(w, "tcb_info", lambda _: "[]"),
    ),
    "a chain of something else": (
        "collateral-format",
        lambda w: with_document(w, "tcb_info_issuer_chain", lambda pem: pem.replace("MII", "AAA")),
    ),
    "a policy that trusts Intel alone": (
        "root-of-trust",
        lambda w: w.opened("trust_root", "intel"),
    ),
    "a quote by another root": (
        "root-of-trust",
        lambda w: w.change(
            quote=OTHER.quote(w.vm.td_fields(bytes.fromhex(w.evidence().quote)[568:632]))
        ),
    ),
    "collateral by another root": (
        "root-of-trust",
        lambda w: w.change(collateral=json.dumps(OTHER.collateral(w.now)).encode()),
    ),
    "TCB info changed": (
        "collateral-signature",
        lambda w: with_document(w, "tcb_info", lambda text: text.replace("UpToDate", "Revoked")),
    ),
    "QE identity changed": (
        "collateral-signature",
        lambda w: with_document(w, "qe_identity", lambda text: text.replace("UpToDate", "Revoked")),
    ),
    "a CRL cut short": (
        "collateral-signature",
        lambda w: with_document(w, "pck_crl", lambda text: text[:-8]),
    ),
    "an expired CRL of platforms": (
        "collateral-validity",
        lambda w: other_revocation_list(w, "pck_crl", -31),
    ),
    "an expired CRL of the root": (
        "collateral-validity",
        lambda w: other_revocation_list(w, "root_ca_crl", -31),
    ),
    "a CRL of platforms from the future": (
        "collateral-validity",
        lambda w: other_revocation_list(w, "pck_crl", 2),
    ),
    "a CRL of the root from the future": (
        "collateral-validity",
        lambda w: other_revocation_list(w, "root_ca_crl", 2),
    ),
    "a certificate beside the CRL that nobody signed": (
        "collateral-signature",
        lambda w: with_document(w, "pck_crl_issuer_chain", unsigned_certificate),
    ),
    "a CRL of a version that does not exist": (
        "collateral-signature",
        lambda w: with_document(w, "pck_crl", lambda crl: crl.replace("020101", "020102", 1)),
    ),
    "a CRL of the root of a version that does not exist": (
        "collateral-signature",
        lambda w: with_document(w, "root_ca_crl", lambda crl: crl.replace("020101", "020107", 1)),
    ),
    "a CRL of a month that does not exist": (
        "collateral-signature",
        lambda w: with_document(
            w, "pck_crl", lambda crl: re.sub("(170d.{4})....", r"\g<1>3939", crl, count=1)
        ),
    ),
    "bytes after a CRL": (
        "collateral-signature",
        lambda w: with_document(w, "pck_crl", lambda crl: crl + "00"),
    ),
    "bytes after a chain of the collateral": (
        "collateral-format",
        lambda w: with_document(w, "tcb_info_issuer_chain", lambda pem: pem + "more"),
    ),
    "bytes inside a chain of the collateral": (
        "collateral-format",
        lambda w: with_document(
            w, "qe_identity_issuer_chain", lambda pem: pem.replace("-----\n-----", "-----\n\n-----")
        ),
    ),
    "expired collateral": (
        "collateral-validity",
        lambda w: w.change(collateral=json.dumps(w.vm.pki.collateral(w.now - 31 * DAY)).encode()),
    ),
    "collateral from the future": (
        "collateral-validity",
        lambda w: w.change(collateral=json.dumps(w.vm.pki.collateral(w.now + DAY)).encode()),
    ),
    "certification data without certificates": (
        "platform-certificate",
        lambda w: with_chain(w, kind=3),
    ),
    "certificates called another kind of certification data": (
        "platform-certificate",
        lambda w: with_chain(w, *certificates_of(w), kind=3),
    ),
    "no certificates in the quote": ("platform-certificate", with_chain),
    "no certificates in the quote, but in the collateral": (
        "platform-certificate",
        lambda w: with_chain(with_certificates_in_collateral(w)),
    ),
    "the issuer's certificate first": ("platform-certificate", lambda w: in_order(w, 1, 0, 2)),
    "the issuer's certificate first, and the right order in the collateral": (
        "platform-certificate",
        lambda w: in_order(with_certificates_in_collateral(w), 1, 0, 2),
    ),
    "the root's certificate second": ("platform-certificate", lambda w: in_order(w, 0, 2, 1)),
    "no certificate of the root": ("platform-certificate", lambda w: in_order(w, 0, 1)),
    "no certificate of the issuer": ("platform-certificate", lambda w: in_order(w, 0, 2)),
    "a certificate twice": ("platform-certificate", lambda w: in_order(w, 0, 1, 1, 2)),
    "the root twice": ("platform-certificate", lambda w: in_order(w, 0, 1, 2, 2)),
    "a certificate that has nothing to do with the platform": (
        "platform-certificate",
        lambda w: with_chain(w, *certificates_of(w), signer_of_tcb_info(w)),
    ),
    "a revoked platform": ("platform-certificate", lambda w: w.with_collateral(revoked=("pck",))),
    "a revoked platform CA": (
        "platform-certificate",
        lambda w: w.with_collateral(revoked=("pck-ca",)),
    ),
    "a bit of the TD report": ("quote-signature", lambda w: w.change(quote=flipped(w, 48 + 64))),
    "a bit of the signature": ("quote-signature", lambda w: w.change(quote=flipped(w, 640))),
    "a bit of the QE report": (
        "quote-signature",
        lambda w: w.change(quote=flipped(w, 636 + 134 + 64)),
    ),
    "a bit of the QE authentication data": (
        "quote-signature",
        lambda w: w.change(quote=flipped(w, 636 + 134 + 448 + 2)),
    ),
    "another QE signer": ("quoting-enclave", lambda w: with_qe_identity(w, mrsigner="00" * 32)),
    "another QE product": ("quoting-enclave", lambda w: with_qe_identity(w, isvprodid=9)),
    "an identity of another enclave": ("quoting-enclave", lambda w: with_qe_identity(w, id="QE")),
    "TCB info of another platform": ("tcb-level", lambda w: with_tcb_info(w, fmspc="000000000000")),
    "an unknown TCB": (
        "tcb-level",
        lambda w: w.with_collateral(
            mutate=lambda tcb, _qe: tcb["tcbLevels"][0]["tcb"].update(pcesvn=99)
        ),
    ),
    "an out-of-date platform": ("tcb-status", lambda w: outdated(w, 1)),
    "an out-of-date quoting enclave": (
        "tcb-status",
        lambda w: w.with_collateral(qe_status="OutOfDate"),
    ),
    "a revoked TCB": ("tcb-status", lambda w: w.with_collateral(status="Revoked")),
    "longer out of date than allowed": (
        "tcb-grace",
        lambda w: outdated(w, 31).demanding(
            "tcb", accepted_statuses=("UpToDate", "OutOfDate"), grace_days=30
        ),
    ),
    "a refused advisory": (
        "tcb-advisories",
        lambda w: w.with_collateral(advisories=("intel-sa-00001",)),
    ),
    "an early evaluation": (
        "tcb-evaluation-number",
        lambda w: w.demanding("tcb", min_evaluation_number=20),
    ),
    "another module signer": ("tdx-module", lambda w: w.change(td={"mr_signer_seam": b"\1" * 48})),
    "module attributes": (
        "tdx-module",
        lambda w: w.change(td={"seam_attributes": b"\1" + bytes(7)}),
    ),
    "a module of an unknown version": (
        "tdx-module",
        lambda w: w.change(td={"tee_tcb_svn": b"\6\7\3" + bytes(13)}),
    ),
    "an old module": ("tdx-module", lambda w: w.change(td={"tee_tcb_svn": b"\4\1\3" + bytes(13)})),
}
