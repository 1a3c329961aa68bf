"""The documents of an attestation: the job's claims, and the evidence that binds them to a measured VM.

Every text and list has a maximum size, which is checked before anything inside is parsed: evidence is input from
the network that nothing has authenticated yet.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field, TypeAdapter

from trainer.encoding import canonical_json
from trainer.errors import ErrorCode, VerificationError
from trainer.models import Nonce, One, Sha256Hex, Strict, UnixTime, parse_strict

MAX_EVIDENCE_BYTES: Final = 16 << 20
MAX_STATEMENT_EVIDENCE_BYTES: Final = 1 << 18
MAX_GPUS: Final = 16

_Parsed = TypeVar("_Parsed")

# The alphabet of Bech32 data lacks 1, b, i and o.
AgeRecipient = Annotated[
    str, Field(pattern=r"^age1(pq1)?[02-9ac-hj-np-z]+$", min_length=54, max_length=2408)
]
"""An age recipient in its text form (`age1…` or `age1pq1…`)."""

# A P-256 SubjectPublicKeyInfo has 91 bytes; the bounds leave room for keys that the check of the key then
# refuses.
DerHex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$", min_length=64, max_length=1200)]
"""DER SubjectPublicKeyInfo in hex."""

Point = Annotated[str, Field(pattern=r"^0[23][0-9a-f]{64}$")]
"""Compressed SEC1 point of secp256k1, in hex."""

RecoverableSignature = Annotated[str, Field(pattern=r"^[0-9a-f]{130}$")]
"""65 bytes r‖s‖recovery id, in hex."""

QuoteHex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$", max_length=1 << 17)]
"""A TDX quote, in hex."""


class Recipients(Strict):
    """The two age recipients that a dataset can be sealed to.

    The identity of `derived` comes from the TEE's key service and survives a restart with the same job spec. The
    identity of `instance` is random and exists only in the memory of this VM: a later version of the same app,
    which obtains the same derived keys, cannot open what is sealed to it.
    """

    derived: AgeRecipient
    instance: AgeRecipient


class DerivedKeys(Strict):
    """Public halves of the keys that the key provider derived for this job.

    `recipient` belongs to the secret that the derived recipient is made of; `possession` signs the claims, and
    nothing else.
    """

    recipient: Point
    possession: Point


class DatasetClaims(Strict):
    """The job's claims before a dataset is uploaded; `report_data` of the quote is their digest."""

    version: One
    purpose: Literal["dataset"]
    nonce: Nonce
    job_spec_sha256: Sha256Hex
    recipients: Recipients
    derived_keys: DerivedKeys
    receipt_key: DerHex
    """The key (EC P-256) that signs receipt and deletion statement; random, in this VM's memory only."""
    tls_key: DerHex | None
    """The front's TLS key; None where the exchange goes as files."""
    gpu_evidence_sha256: Sha256Hex | None
    """SHA-256 of the canonical JSON of `Evidence.gpu`; None where there is no GPU evidence."""
    sandbox: Annotated[
        dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")], bool], Field(max_length=64)
    ]
    software: Annotated[dict[str, Annotated[str, Field(max_length=128)]], Field(max_length=64)]
    issued_at: UnixTime
    expires_at: UnixTime


StatementPurpose = Literal["receipt", "deletion", "privacy", "provenance"]


class StatementClaims(Strict):
    """The job's claims about a statement that it signed: this VM made exactly this one, with this key."""

    version: One
    purpose: StatementPurpose
    job_spec_sha256: Sha256Hex
    statement_sha256: Sha256Hex
    """SHA-256 of the DSSE payload."""
    receipt_key: DerHex
    """The key that signed the envelope; after a restart another than in the claims before sealing."""
    issued_at: UnixTime


class FreshGpuEvidence(Strict):
    """One GPU's signed attestation report, requested by the job for the provider's nonce."""

    report: Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$", max_length=1 << 16)]
    """SPDM measurements request and response, in hex."""
    certificate_chain: Annotated[str, Field(max_length=1 << 16)]
    """PEM, leaf first."""


class GpuEvidence(Strict):
    """GPU evidence: collected by the measured OS at boot, and by the job for this request."""

    boot: Annotated[str, Field(max_length=4 << 20)] = ""
    """Exact text of the guest agent's GpuInfo response; empty where it has none."""
    fresh: Annotated[tuple[FreshGpuEvidence, ...], Field(max_length=MAX_GPUS)] = ()


class KeyChain(Strict):
    """Signatures that show that a key service derived the keys which the claims name under `derived_keys`."""

    app: RecoverableSignature
    """By the key service's root over the app's key and id."""
    recipient: RecoverableSignature
    """By the app's key over the derived key of this name, and its purpose; likewise the next."""
    possession: RecoverableSignature


class Evidence(Strict):
    """Everything that a verifier needs, with the exact bytes of every measured text."""

    claims: DatasetClaims
    quote: QuoteHex
    possession: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
    """Signature r‖s over the claims by the possession key that they name, in hex."""
    event_log: Annotated[str, Field(max_length=4 << 20)]
    vm_config: Annotated[str, Field(max_length=1 << 20)]
    app_compose: Annotated[str, Field(max_length=1 << 20)]
    compose_hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    gpu: GpuEvidence = GpuEvidence()
    key_chain: KeyChain | None = None
    """None where the VM has no key service."""

    def canonical(self) -> bytes:
        """Returns the document as canonical JSON (RFC 8785), the form in which it is sent."""
        return canonical_json(self.model_dump(mode="json"))


class StatementEvidence(Strict):
    """What shows which VM made a statement. What the quote measures was shown before sealing: it is compared."""

    claims: StatementClaims
    quote: QuoteHex

    def canonical(self) -> bytes:
        """Returns the document as canonical JSON (RFC 8785), the form in which it is sent."""
        return canonical_json(self.model_dump(mode="json"))


_EVIDENCE: Final = TypeAdapter(Evidence)
_STATEMENT_EVIDENCE: Final = TypeAdapter(StatementEvidence)


def parse_evidence(data: bytes) -> Evidence:
    """Parses the bytes of an evidence document.

    Raises:
        VerificationError: too large, not JSON, or not of this form; the message names the field, never its
            content.
    """
    return _parse(_EVIDENCE, data, MAX_EVIDENCE_BYTES)


def parse_statement_evidence(data: bytes) -> StatementEvidence:
    """Parses the bytes of evidence over a statement.

    Raises:
        VerificationError: as `parse_evidence`.
    """
    return _parse(_STATEMENT_EVIDENCE, data, MAX_STATEMENT_EVIDENCE_BYTES)


def _parse(adapter: TypeAdapter[_Parsed], data: bytes, limit: int) -> _Parsed:
    if len(data) > limit:
        raise VerificationError(
            ErrorCode.EVIDENCE_INVALID,
            "the evidence is too large",
            expected=f"at most {limit} bytes",
            found=len(data),
        )
    try:
        return parse_strict(adapter, data)
    except ValueError as error:
        raise VerificationError(ErrorCode.EVIDENCE_INVALID, f"evidence: {error}") from None
