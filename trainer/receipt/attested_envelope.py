"""A statement as a job gives it out by itself: the signed envelope, and the evidence over it."""

from __future__ import annotations

from typing import Final

from pydantic import TypeAdapter

from trainer.attestation.evidence import StatementEvidence
from trainer.encoding import canonical_json
from trainer.models import Strict
from trainer.receipt.dsse import Envelope
from trainer.receipt.statement import parse_receipt_json


class AttestedEnvelope(Strict):
    """A DSSE envelope, and evidence whose quote covers its payload and the key that signed it."""

    envelope: Envelope
    evidence: StatementEvidence

    def canonical(self) -> bytes:
        """Returns the document as canonical JSON (RFC 8785), the form in which it is sent."""
        return canonical_json(self.model_dump(mode="json"))


_ADAPTER: Final = TypeAdapter(AttestedEnvelope)


def parse_attested_envelope(data: bytes, *, what: str) -> AttestedEnvelope:
    """Parses what a job gives out; verifies nothing.

    Args:
        data: the document.
        what: its name in errors.

    Raises:
        VerificationError: RECEIPT_INVALID; the message names the field, never its content.
    """
    return parse_receipt_json(_ADAPTER, data, what=what)
