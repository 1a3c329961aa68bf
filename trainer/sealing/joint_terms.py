"""The part of a grant that a joint job needs: whose datasets may be beside this one, and who reads about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import AfterValidator, Field, ValidationError

from trainer.attestation.evidence import AgeRecipient
from trainer.errors import ErrorCode, UsageError
from trainer.models import MAX_PROVIDERS, ProviderPublicKey, Strict
from trainer.sealing.age import parse_recipient

MAX_RECIPIENTS: Final = 64


def _require_usable_recipients(recipients: tuple[str, ...]) -> tuple[str, ...]:
    # Checked before training: hours later, the result could not be sealed.
    try:
        recipient_types = {parse_recipient(text).recipient_type for text in recipients}
    except UsageError as error:
        raise ValueError(error.message) from None
    if len(recipient_types) > 1:
        raise ValueError("recipients of different kinds")
    return recipients


RecipientTexts = Annotated[
    tuple[AgeRecipient, ...],
    Field(min_length=1, max_length=MAX_RECIPIENTS),
    AfterValidator(_require_usable_recipients),
]
"""Age recipients of one recipient type."""


class JointTerms(Strict):
    """What a provider demands of a joint job.

    Args:
        accepts: provider keys of the others whose datasets may be trained on beside this one. An operator who
            added providers of its own making could otherwise single one dataset out.
        own_recipients: age recipients of this provider alone: of its receipt, and of the report on its dataset.
    """

    accepts: Annotated[
        tuple[ProviderPublicKey, ...], Field(min_length=1, max_length=MAX_PROVIDERS - 1)
    ]
    own_recipients: RecipientTexts


def make_joint_terms(accepts: Sequence[str], own_recipients: Sequence[str]) -> JointTerms:
    """Returns the terms of a grant for a joint job.

    Raises:
        UsageError: a text is no provider key, or no age recipient.
    """
    try:
        return JointTerms(accepts=tuple(accepts), own_recipients=tuple(own_recipients))
    except ValidationError:
        raise UsageError(
            ErrorCode.USAGE,
            "the providers of a joint job",
            expected="provider keys, as `trainer keygen` prints them: ed25519: and 64 hex digits",
            found=", ".join(accepts) or "none",
        ) from None
