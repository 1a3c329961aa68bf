"""Seals training metrics to the provider in the supervisor: the front transports them as ciphertext.

A loss curve depends on the dataset, so it must not reach the front, which faces the network.
"""

from __future__ import annotations

import base64
import io

from trainer.encoding import canonical_json
from trainer.ipc.worker_messages import Metrics
from trainer.sealing.age import encrypt
from trainer.sealing.bundle import Grant


def seal_metrics(message: Metrics, grant: Grant) -> str:
    """Returns the metrics as RFC 8785 JSON in an age file to the grant's recipients, in base64."""
    sealed = io.BytesIO()
    encrypt(
        io.BytesIO(canonical_json({"step": message.step, **message.values})), sealed, grant.result_recipients()
    )
    return base64.b64encode(sealed.getvalue()).decode()
