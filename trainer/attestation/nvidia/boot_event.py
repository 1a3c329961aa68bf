"""The measured OS's event `gpu-attestation`: it attested the GPUs at boot, and the result has this digest.

The text of the result (`boot_claims`) proves nothing by itself, as its tokens are unsigned. Trust comes from the
OS: it attested the GPUs before any application ran, and extended RTMR3 with the digest of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter

from trainer.attestation.dstack.event_log import Event, payload
from trainer.models import Sha256Hex, Strict, parse_strict

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
    """SHA-256 of the exact text of the guest agent's GpuInfo response, final newline included."""


_EVENT = TypeAdapter(GpuBootEvent)


def gpu_boot_event(events: Sequence[Event]) -> GpuBootEvent | None:
    """Returns the OS's event about GPUs; None where the log has none.

    Raises:
        ValueError: the log has one, but it is malformed.
    """
    text = payload(events, GPU_EVENT)
    return None if text is None else parse_strict(_EVENT, text)
