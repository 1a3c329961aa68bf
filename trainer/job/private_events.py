"""Seals training metrics to the provider in the supervisor: the front transports them as ciphertext.

A loss curve depends on the dataset, so it must not reach the front, which faces the network. Number, size and time
of the events are public: every event has the same size, with as many metrics as fit.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Final

from pydantic import JsonValue

from trainer.encoding import canonical_json
from trainer.ipc.worker_messages import Metrics
from trainer.sealing.age import encrypt
from trainer.sealing.bundle import Grant

EVENT_BYTES: Final = 4096
"""Size of an event before it is encrypted; JSON permits the spaces that fill it up."""

MAX_EVENT_METRICS: Final = 64
"""Metrics that wait for the next event at most; all of them are in the result."""


def seal_metrics(metrics: Sequence[Metrics], grant: Grant) -> str:
    """Returns an age file to the grant's recipients, in base64, with the latest metrics that fit into an event.

    It holds `EVENT_BYTES`: a list of objects as RFC 8785 JSON, the oldest first, then spaces.
    """
    chosen: list[JsonValue] = []
    size = len(b"[]")
    for message in reversed(metrics):
        entry: JsonValue = {"step": message.step, **message.values}
        size += len(canonical_json(entry)) + bool(chosen)
        if size > EVENT_BYTES:
            break
        chosen.insert(0, entry)
    sealed = io.BytesIO()
    encrypt(
        io.BytesIO(canonical_json(chosen).ljust(EVENT_BYTES)), sealed, grant.result_recipients()
    )
    return base64.b64encode(sealed.getvalue()).decode()
