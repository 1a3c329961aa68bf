"""The documents of an attestation: the job's claims, and the evidence that binds them to a measured VM.

Every text and list has a maximum size, which is checked before anything inside is parsed: evidence is input from
the network that nothing has authenticated yet.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from trainer.encoding import canonical_json
from trainer.errors import ErrorCode, VerificationError
from trainer.models import Nonce, Sha256Hex, Strict, UnixTime, parse_strict

MAX_EVIDENCE_BYTES: Final = 16 << 20
MAX_GPUS: Final = 16

# The alphabet of Bech32 data lacks 1, b, i and o.
AgeRecipient = Annotated[str, Field(pattern=r"^age1(pq1)?[02-9ac-hj-np-z]+$", min_length=54, max_length=2408)]
"""An age recipient in its text form (`age1…` or `age1pq1…`)."""

# A P-256 SubjectPublicKeyInfo has 91 bytes; the bounds leave room for keys that the check of the key then
# refuses.
DerHex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$", min_length=64, max_length=1200)]


class Recipients(Strict):
    """The two age recipients that a dataset can be sealed to.

    The identity of `derived` comes from the TEE's key service and survives a restart with the same job spec. The
    identity of `instance` is random and exists only in the memory of this VM: a later version of the same app,
    which obtains the same derived keys, cannot open what is sealed to it.
    """

    derived: AgeRecipient
    instance: AgeRecipient


class DatasetClaims(Strict):
    """The job's claims before a dataset is uploaded; `report_data` of the quote is their digest."""

    version: Literal[1]
    purpose: Literal["dataset"]
    nonce: Nonce
    job_spec_sha256: Sha256Hex
    recipients: Recipients
    receipt_key: DerHex
    """DER SubjectPublicKeyInfo (EC P-256) that will sign the receipt, in hex."""
    tls_spki_sha256: Sha256Hex | None
    """SHA-256 of the DER SubjectPublicKeyInfo of the front's TLS key; None where the exchange goes as files."""
    gpu_evidence_sha256: Sha256Hex | None
    """SHA-256 of the canonical JSON of `Evidence.gpu`; None where there is no GPU evidence."""
    sandbox: Annotated[dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")], bool], Field(max_length=64)]
    software: Annotated[dict[str, Annotated[str, Field(max_length=128)]], Field(max_length=64)]
    issued_at: UnixTime
    expires_at: UnixTime


class ReceiptClaims(Strict):
    """The job's claims when it delivers the result: this VM made exactly this statement."""

    version: Literal[1]
    purpose: Literal["receipt"]
    job_spec_sha256: Sha256Hex
    statement_sha256: Sha256Hex
    """SHA-256 of the DSSE payload of `receipt.json`."""
    issued_at: UnixTime


Claims = Annotated[DatasetClaims | ReceiptClaims, Field(discriminator="purpose")]


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


class DerivedKey(Strict):
    """A derived key's public half with dstack's signature chain, which shows that the key service derived it."""

    path: Annotated[str, Field(max_length=512)]
    purpose: Annotated[str, Field(max_length=128)]
    public_key: Annotated[str, Field(pattern=r"^0[23][0-9a-f]{64}$")]
    """Compressed SEC1 secp256k1 point, in hex."""
    signature_chain: Annotated[tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{130}$")], ...], Field(max_length=4)]
    """65-byte signatures r‖s‖recovery id, in hex: first of the app key, then of the key service's root."""
    possession: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")] | None = None
    """Signature r‖s of this key over nonce and recipients, in hex; only on the key that has no other use."""


class Evidence(Strict):
    """Everything that a verifier needs, with the exact bytes of every measured text."""

    claims: Claims
    quote: Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$", max_length=1 << 17)]
    event_log: Annotated[str, Field(max_length=4 << 20)]
    vm_config: Annotated[str, Field(max_length=1 << 20)]
    app_compose: Annotated[str, Field(max_length=1 << 20)]
    compose_hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    gpu: GpuEvidence = GpuEvidence()
    key_chain: Annotated[tuple[DerivedKey, ...], Field(max_length=4)] = ()

    def canonical(self) -> bytes:
        """Returns the document as canonical JSON (RFC 8785), the form in which it is sent."""
        return canonical_json(self.model_dump(mode="json"))


_EVIDENCE: Final = TypeAdapter(Evidence)


def parse_evidence(data: bytes) -> Evidence:
    """Parses the bytes of an evidence document.

    Raises:
        VerificationError: too large, not JSON, or not of this form; the message names the field, never its
            content.
    """
    if len(data) > MAX_EVIDENCE_BYTES:
        raise VerificationError(
            ErrorCode.EVIDENCE_INVALID,
            "the evidence is too large",
            expected=f"at most {MAX_EVIDENCE_BYTES} bytes",
            found=len(data),
        )
    try:
        return parse_strict(_EVIDENCE, data)
    except ValueError as error:
        raise VerificationError(ErrorCode.EVIDENCE_INVALID, f"evidence: {error}") from None
