"""Process entry: `python -m trainer.worker --events-fd N`, with the order on stdin.

Whatever goes wrong becomes one `Failed` message with a code; the traceback goes to stderr, which the supervisor
points at the private log. Exit codes are those of `trainer.errors.ExitCode`.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from trainer.errors import ErrorCode, ExitCode, TrainerError
from trainer.examples.dataset import shape_of
from trainer.rows import read_files
from trainer.worker.environment import take_environment
from trainer.worker.protocol import MAX_ORDER_BYTES, Events, Failed, Finished, Order, parse_order
from trainer.worker.stopwatch import Stopwatch

if TYPE_CHECKING:
    from trainer.worker.model import Loader
    from trainer.worker.summary import Summary


def main(arguments: list[str]) -> ExitCode:
    """Read the order, carry it out, say how it ended."""
    parser = argparse.ArgumentParser(prog="python -m trainer.worker")
    parser.add_argument("--events-fd", type=int, required=True, help="inherited descriptor for messages")
    events = Events(parser.parse_args(arguments).events_fd)
    _protect_process()
    try:
        _carry_out(parse_order(sys.stdin.buffer.read(MAX_ORDER_BYTES + 1)), events)
    except TrainerError as error:
        traceback.print_exc()
        events.send(Failed.of(error))
        return error.exit_code
    except Interruption:
        events.send(Failed(code=ErrorCode.INTERRUPTED, reason="the worker was told to stop"))
        return ExitCode.JOB
    except MemoryError:
        traceback.print_exc()
        events.send(Failed(code=ErrorCode.OUT_OF_MEMORY, reason="the memory does not suffice"))
        return ExitCode.JOB
    except Exception as error:  # noqa: BLE001 -- its text may quote a row: only its type goes on
        traceback.print_exc()
        events.send(Failed(code=ErrorCode.INTERNAL, reason=f"unexpected {type(error).__name__}"))
        return ExitCode.BUG
    return ExitCode.DONE


def _protect_process() -> None:
    """No core dumps, files for the owner only, and a way to be stopped that leaves nothing behind."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    signal.signal(signal.SIGTERM, _interrupted)


class Interruption(BaseException):
    """SIGTERM arrived. Not an `Exception`: no handler for what libraries raise may take it for one of theirs."""


def _interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Interruption


def _carry_out(order: Order, events: Events) -> None:
    """Environment first, rows before the training stack (bad data fails in milliseconds), then the run."""
    watch = Stopwatch()
    scratch = order.output_dir / ".scratch"
    take_environment(scratch)
    try:
        with watch.part("read"):
            data = order.spec.data
            rows = read_files(order.data_files, max_rows=data.max_rows, shape=shape_of(data))
        with watch.part("import"):
            loader, run = _training_stack(order)
        summary = run(order, rows, loader, report=events.send, watch=watch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    events.send(Finished(summary=summary.model_dump(mode="json")))


def _training_stack(order: Order) -> tuple[Loader, Callable[..., Summary]]:
    """Import it, in the order it needs: environment variables first (done), then the engine, then transformers."""
    from trainer.worker.model import choose_engine  # noqa: PLC0415

    loader = choose_engine(order.spec)
    from trainer.worker.run import run  # noqa: PLC0415

    logging.getLogger("transformers").setLevel(logging.ERROR)
    return loader, run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
