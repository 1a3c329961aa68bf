"""Entry point of the sync process, `python -m trainer.store_sync`: one order on stdin, one report on stdout.

It confines itself before it connects, carries until stdin closes, and then sends what is left.
"""

from __future__ import annotations

import select
import sys
import time
from pathlib import Path
from typing import Final

from trainer.errors import TrainerError
from trainer.exchange.spool import SpoolDirectory
from trainer.exchange.store_registry import open_store
from trainer.ipc.channel import STDIN, stdio_channel
from trainer.ipc.store_sync_messages import FROM_SYNC, TO_SYNC, SyncFailed, SyncOrder, SyncReady
from trainer.logs import limited_handler, log_error, private
from trainer.sandbox.confine import confine
from trainer.store_sync.mirror import Mirror, is_refusal

_LOOK_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 30.0


def main() -> int:
    """Carries out the order that comes on stdin; returns the exit status."""
    private.addHandler(limited_handler(sys.stderr))
    channel = stdio_channel(TO_SYNC, FROM_SYNC)
    if (order := channel.receive()) is None:
        return 1  # the supervisor ended before it sent an order
    if order.plan is not None:
        confine(order.plan)
    try:
        mirror = _begin(order)
    except TrainerError as error:
        channel.send(SyncFailed.of(error))
        return 1
    channel.send(SyncReady())
    _carry(mirror)
    return 0


def _begin(order: SyncOrder) -> Mirror:
    """Returns the mirror, once the store has answered; waits for one that does not answer."""
    store = open_store(order.store, order.variables)
    mirror = Mirror(store, SpoolDirectory(Path(order.spool)), order.max_upload_bytes)
    pause = _LOOK_SECONDS
    while True:
        try:
            mirror.begin()
        except TrainerError as error:
            if is_refusal(error) or _is_shutdown(pause):
                raise
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        else:
            return mirror


def _carry(mirror: Mirror) -> None:
    """Carries until the supervisor closes the channel, and then until nothing is left to send."""
    pause, is_ending = _LOOK_SECONDS, False
    while True:
        try:
            carried = mirror.step()
            pause = _LOOK_SECONDS
        except (TrainerError, OSError) as error:
            log_error("the object store and the spool are not in step; trying again", error)
            carried, pause = True, min(2 * pause, _LONGEST_PAUSE_SECONDS)
            if is_ending:  # the closed channel is readable: it makes no pause
                time.sleep(pause)
        if is_ending and not carried:
            return
        is_ending = is_ending or _is_shutdown(pause)


def _is_shutdown(seconds: float) -> bool:
    """Waits some seconds; returns at once, with True, when the supervisor has closed the channel."""
    readable, _, _ = select.select([STDIN], [], [], seconds)
    return bool(readable)


if __name__ == "__main__":
    sys.exit(main())
