"""Entry point of the fetch process, `python -m trainer.fetch`: one order on stdin, one report on stdout.

The supervisor may open no socket, so this process brings the base model in. It confines itself before it connects
to the hub, and ends after its report.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trainer.errors import TrainerError
from trainer.fetch.base_model import HUB_VARIABLES, STAGING, fetch_model
from trainer.ipc.channel import stdio_channel
from trainer.ipc.fetch_messages import FROM_FETCH, TO_FETCH, Fetched, FetchFailed
from trainer.sandbox.confine import confine


def main() -> int:
    """Carries out the order that comes on stdin; returns the exit status."""
    channel = stdio_channel(TO_FETCH, FROM_FETCH)
    if (order := channel.receive()) is None:
        return 1  # the supervisor ended before it sent an order
    # Before the first connection: what the hub answers is hostile input.
    if order.plan is not None:
        confine(order.plan)
    into = Path(order.into)
    os.environ.update(HUB_VARIABLES, HF_HOME=str(into / STAGING))
    try:
        fetch_model(order.model, Path(order.base_dir), into, hub_token=order.hub_token)
    except TrainerError as error:
        channel.send(FetchFailed.of(error))
    else:
        channel.send(Fetched())
    return 0


if __name__ == "__main__":
    sys.exit(main())
