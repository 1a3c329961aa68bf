"""Metrics on their way to the provider: sealed here, so that the front carries what it cannot read."""

from __future__ import annotations

import base64
import io

from trainer.encoding import canonical_json
from trainer.ipc.worker_messages import Metrics
from trainer.sealing.age import encrypt
from trainer.sealing.bundle import Grant


def seal_metrics(message: Metrics, grant: Grant) -> str:
    """An age file of the metrics' RFC 8785 JSON to the grant's recipients, in base64."""
    sealed = io.BytesIO()
    encrypt(
        io.BytesIO(canonical_json({"step": message.step, **message.values})), sealed, grant.result_recipients()
    )
    return base64.b64encode(sealed.getvalue()).decode()
