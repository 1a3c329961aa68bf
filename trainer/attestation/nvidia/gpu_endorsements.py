"""What NVIDIA vouches for besides a GPU's key: reference values (RIM) and revocation answers (OCSP), as data.

An appraisal takes them as an argument, so that it stays pure: from the policy where it holds files, or fetched
beforehand and kept with the result, so that the same appraisal can be made again without a network.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from trainer.models import Strict

MAX_MANIFESTS: Final = 32
"""A driver's and a VBIOS's for each of 16 GPUs."""
MAX_MANIFEST_BYTES: Final = 96 << 10
"""NVIDIA's have about 20 KiB."""
MAX_ANSWERS: Final = 128
"""One for each certificate in the chains of 16 GPUs."""
MAX_ANSWER_BYTES: Final = 8 << 10
"""One OCSP response with its responder's certificate: 1 to 2 KiB."""


def _is_base64(text: str) -> str:
    base64.b64decode(text, validate=True)
    return text


ManifestText = Annotated[str, Field(pattern=r"^[\t\n\r -~]*$", max_length=MAX_MANIFEST_BYTES)]
"""XML of one reference integrity manifest."""

AnswerText = Annotated[str, Field(max_length=(MAX_ANSWER_BYTES + 2) // 3 * 4), AfterValidator(_is_base64)]
"""One OCSP response: base64 of its DER form."""


@dataclass(frozen=True)
class GpuEndorsements:
    """What an appraisal of fresh GPU reports is made with. None of it is believed unless its signatures hold.

    Attributes:
        reference_values: XML of reference integrity manifests.
        revocation: OCSP responses, DER.
    """

    reference_values: tuple[str, ...] = ()
    revocation: tuple[bytes, ...] = ()


NO_ENDORSEMENTS: Final = GpuEndorsements()


class GpuEndorsementsDocument(Strict):
    """The same as JSON values, for a file that keeps them."""

    reference_values: Annotated[tuple[ManifestText, ...], Field(max_length=MAX_MANIFESTS)] = ()
    revocation: Annotated[tuple[AnswerText, ...], Field(max_length=MAX_ANSWERS)] = ()

    @classmethod
    def of(cls, endorsements: GpuEndorsements) -> GpuEndorsementsDocument:
        """The document form of `endorsements`.

        Raises:
            ValueError: they are larger or more than what `exchange.gpu_endorsements` fetches.
        """
        answers = tuple(base64.b64encode(each).decode() for each in endorsements.revocation)
        return cls(reference_values=endorsements.reference_values, revocation=answers)

    def endorsements(self) -> GpuEndorsements:
        """What the document stands for."""
        answers = tuple(base64.b64decode(each) for each in self.revocation)
        return GpuEndorsements(self.reference_values, answers)
