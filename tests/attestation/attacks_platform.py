"""Attacks on the quote, its certificates and its collateral: name -> (code that must answer, change)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.attestation.tampering import (
    DAY,
    OTHER,
    flipped,
    honest_quote,
    outdated,
    with_document,
    with_qe_identity,
    with_tcb_info,
)

if TYPE_CHECKING:
    from trainer.simulator.appraisal_world import World

ATTACKS: dict[str, tuple[str, Callable[[World], World]]] = {
    "not a quote": ("quote-format", lambda w: w.change(quote=b"\x04\0quote")),
    "an SGX quote": ("quote-format", lambda w: w.change(quote=flipped(w, 4))),
    "another vendor's quoting enclave": ("quote-format", lambda w: w.change(quote=flipped(w, 12))),
    "another kind of certification data": ("quote-format", lambda w: w.change(quote=flipped(w, 636 + 128))),
    "bytes after the quote": ("quote-trailing-bytes", lambda w: w.change(quote=honest_quote(w) + b"\0more")),
    "no collateral": ("collateral-format", lambda w: w.change(collateral=b"")),
    "collateral without a CRL": (
        "collateral-format",
        lambda w: w.change(collateral=json.dumps({**json.loads(w.collateral), "pck_crl": None}).encode()),
    ),
    "a key twice in the collateral": (
        "collateral-format",
        lambda w: w.change(collateral=w.collateral[:-1] + b', "pck_crl": "00"}'),
    ),
    "huge collateral": ("collateral-format", lambda w: w.change(collateral=b" " * (5 << 20) + w.collateral)),
    "TCB info that is no object": ("collateral-format", lambda w: with_document(w, "tcb_info", lambda _: "[]")),
    "a chain of something else": (
        "collateral-format",
        lambda w: with_document(w, "tcb_info_issuer_chain", lambda pem: pem.replace("MII", "AAA")),
    ),
    "a policy that trusts Intel alone": ("root-of-trust", lambda w: w.opened("trust_root", "intel")),
    "a quote by another root": (
        "root-of-trust",
        lambda w: w.change(quote=OTHER.quote(w.vm.td_fields(bytes.fromhex(w.evidence().quote)[568:632]))),
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
    "a CRL cut short": ("collateral-signature", lambda w: with_document(w, "pck_crl", lambda text: text[:-8])),
    "expired collateral": (
        "collateral-validity",
        lambda w: w.change(collateral=json.dumps(w.vm.pki.collateral(w.now - 31 * DAY)).encode()),
    ),
    "collateral from the future": (
        "collateral-validity",
        lambda w: w.change(collateral=json.dumps(w.vm.pki.collateral(w.now + DAY)).encode()),
    ),
    "a revoked platform": ("platform-certificate", lambda w: w.with_collateral(revoked=("pck",))),
    "a revoked platform CA": ("platform-certificate", lambda w: w.with_collateral(revoked=("pck-ca",))),
    "a bit of the TD report": ("quote-signature", lambda w: w.change(quote=flipped(w, 48 + 64))),
    "a bit of the signature": ("quote-signature", lambda w: w.change(quote=flipped(w, 640))),
    "a bit of the QE report": ("quote-signature", lambda w: w.change(quote=flipped(w, 636 + 134 + 64))),
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
        lambda w: w.with_collateral(mutate=lambda tcb, _qe: tcb["tcbLevels"][0]["tcb"].update(pcesvn=99)),
    ),
    "an out-of-date platform": ("tcb-status", lambda w: outdated(w, 1)),
    "an out-of-date quoting enclave": ("tcb-status", lambda w: w.with_collateral(qe_status="OutOfDate")),
    "a revoked TCB": ("tcb-status", lambda w: w.with_collateral(status="Revoked")),
    "longer out of date than allowed": (
        "tcb-grace",
        lambda w: outdated(w, 31).demanding("tcb", accepted_statuses=("UpToDate", "OutOfDate"), grace_days=30),
    ),
    "a refused advisory": ("tcb-advisories", lambda w: w.with_collateral(advisories=("intel-sa-00001",))),
    "an early evaluation": ("tcb-evaluation-number", lambda w: w.demanding("tcb", min_evaluation_number=20)),
    "another module signer": ("tdx-module", lambda w: w.change(td={"mr_signer_seam": b"\1" * 48})),
    "module attributes": ("tdx-module", lambda w: w.change(td={"seam_attributes": b"\1" + bytes(7)})),
    "a module of an unknown version": (
        "tdx-module",
        lambda w: w.change(td={"tee_tcb_svn": b"\6\7\3" + bytes(13)}),
    ),
    "an old module": ("tdx-module", lambda w: w.change(td={"tee_tcb_svn": b"\4\1\3" + bytes(13)})),
}
