"""Metrics on their way to the provider: sealed here, so that the front carries what it cannot read."""

from __future__ import annotations

import base64
import io

from trainer.encoding import canonical_json
from trainer.sealing.age import encrypt
from trainer.sealing.bundle import Grant
from trainer.worker.protocol import Metrics


def seal_metrics(message: Metrics, grant: Grant) -> str:
    """An age file of the metrics' RFC 8785 JSON to the grant's recipients, in base64."""
    sealed = io.BytesIO()
    encrypt(
        io.BytesIO(canonical_json({"step": message.step, **message.values})), sealed, grant.result_recipients()
    )
    return base64.b64encode(sealed.getvalue()).decode()
