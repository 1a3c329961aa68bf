"""NVIDIA's endorsements of GPUs besides their certificates: reference values (RIM) and revocation answers (OCSP).

An appraisal gets them as an argument and fetches nothing. They come from the policy, or were fetched before and
are kept in the record, so that the appraisal can be repeated without a network.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from trainer.models import Strict

MAX_MANIFESTS: Final = 32
"""Two for each of 16 GPUs: of the driver and of the VBIOS."""
MAX_MANIFEST_BYTES: Final = 96 << 10
"""NVIDIA's manifests have about 20 KiB."""
MAX_ANSWERS: Final = 128
"""One for each certificate in the chains of 16 GPUs."""
MAX_ANSWER_BYTES: Final = 8 << 10
"""One OCSP response with its responder's certificate: 1 to 2 KiB."""


def _is_base64(text: str) -> str:
    base64.b64decode(text, validate=True)
    return text


ManifestText = Annotated[str, Field(pattern=r"^[\t\n\r -~]*$", max_length=MAX_MANIFEST_BYTES)]
"""XML of one reference integrity manifest."""

AnswerText = Annotated[
    str, Field(max_length=(MAX_ANSWER_BYTES + 2) // 3 * 4), AfterValidator(_is_base64)
]
"""One OCSP response: base64 of its DER form."""


@dataclass(frozen=True)
class GpuEndorsements:
    """Endorsements as an appraisal uses them; it verifies the signatures of each.

    Attributes:
        reference_values: XML of reference integrity manifests.
        revocation: OCSP responses, DER.
    """

    reference_values: tuple[str, ...] = ()
    revocation: tuple[bytes, ...] = ()


NO_ENDORSEMENTS: Final = GpuEndorsements()


class GpuEndorsementsDocument(Strict):
    """Endorsements as JSON values, for a record."""

    reference_values: Annotated[tuple[ManifestText, ...], Field(max_length=MAX_MANIFESTS)] = ()
    revocation: Annotated[tuple[AnswerText, ...], Field(max_length=MAX_ANSWERS)] = ()

    @classmethod
    def of(cls, endorsements: GpuEndorsements) -> GpuEndorsementsDocument:
        """Makes the document form of `endorsements`.

        Raises:
            ValueError: they are larger or more than the limits of this module.
        """
        answers = tuple(base64.b64encode(der).decode() for der in endorsements.revocation)
        return cls(reference_values=endorsements.reference_values, revocation=answers)

    def endorsements(self) -> GpuEndorsements:
        """Returns the endorsements in the document."""
        answers = tuple(base64.b64decode(text) for text in self.revocation)
        return GpuEndorsements(self.reference_values, answers)
