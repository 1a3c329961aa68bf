"""The event in which the measured OS says that it attested the GPUs at boot, and which text is the outcome.

What stands in the text (`gpu_boot`) proves nothing by itself, as its tokens are unsigned. Trust comes from the OS:
it attested the GPUs before anything else ran, and put the text's digest into RTMR3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import ConfigDict, Field

from trainer.attestation.dstack.event_log import Event, payload
from trainer.encoding import parse_json
from trainer.models import Sha256Hex, Strict

GPU_EVENT = "gpu-attestation"


class GpuBootEvent(Strict):
    """Payload of dstack's `gpu-attestation` event. Later releases may add keys."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    version: Annotated[int, Field(ge=1)]
    provider: Annotated[str, Field(max_length=64)]
    devices: Annotated[int, Field(ge=0)]
    cc_mode: Annotated[str, Field(max_length=64)]
    devtools: bool
    evidence_sha256: Sha256Hex
    """SHA-256 of the exact text of the guest agent's GpuInfo answer, final newline included."""


def gpu_boot_event(events: Sequence[Event]) -> GpuBootEvent | None:
    """The GPU event as the OS measured it; None where there is none.

    Raises:
        ValueError: there is one, but not of its form.
    """
    text = payload(events, GPU_EVENT)
    if text is None:
        return None
    parse_json(text)
    return GpuBootEvent.model_validate_json(text)
