"""Process entry: `python -m trainer.worker --events-fd N [--plan-json PLAN] [--processes N]`, the order on stdin.

With a plan the process enters its sandbox first, reports the properties that it measured, and waits for its order:
the supervisor starts it before any data is there, so that the measurement can be attested. A
preparation may come before the order: then it loads meanwhile what is public (`trainer.worker.preload`).

Whatever goes wrong becomes one `Failed` message with a code; the traceback goes to stderr, which the supervisor
connects to the private log. Exit codes are those of `trainer.errors.ExitCode`.
"""

from __future__ import annotations

import argparse
import errno
import logging
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from trainer.data.examples.example_set import row_schema
from trainer.data.rows import read_files
from trainer.errors import ErrorCode, ExitCode, TrainerError, UsageError
from trainer.ipc.channel import STDIN
from trainer.ipc.worker_messages import (
    Confined,
    Failed,
    Finished,
    ModelReady,
    Preparation,
    TrainingOrder,
    WorkerChannel,
    worker_channel,
)
from trainer.sandbox.confine import confine
from trainer.sandbox.plan import SandboxPlan
from trainer.sandbox.privileges import keep_to_itself
from trainer.training.interruption import Interruption, Interrupts
from trainer.training.rank import ProcessRank
from trainer.training.stopwatch import Stopwatch
from trainer.worker.environment import take_environment
from trainer.worker.launch import launch
from trainer.worker.preload import Preloader, garbage_collection_paused, remove_scratch, scratch_dir

if TYPE_CHECKING:
    from trainer.training.engines.base import Loader
    from trainer.training.report.summary import Summary


def main(arguments: list[str]) -> ExitCode:
    """Read the order, carry it out, report how it ended; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.worker")
    parser.add_argument("--events-fd", type=int, required=True, help="inherited descriptor for messages")
    parser.add_argument("--plan-json", type=SandboxPlan.model_validate_json, help="the sandbox to enter")
    parser.add_argument("--processes", type=int, default=1, help="how many processes train together")
    options = parser.parse_args(arguments)
    channel = worker_channel(STDIN, options.events_fd)
    interrupts = Interrupts()
    _protect_process(interrupts)  # before anything private is in memory
    work = partial(_work, options.plan_json, interrupts)
    if options.processes == 1:
        return work(ProcessRank(), channel)
    supervise = partial(launch, options.processes, options.plan_json, work=work)
    return _reporting_failure(supervise, channel)


def _work(plan: SandboxPlan | None, interrupts: Interrupts, rank: ProcessRank, channel: WorkerChannel) -> ExitCode:
    """Do what one process does, from entering its sandbox to its last message."""

    def work(channel: WorkerChannel) -> ExitCode:
        _confine(plan, channel, rank)
        order, preloader = _receive_order(channel, may_preload=rank.size == 1)
        _carry_out(order, channel, rank, interrupts, preloader)
        return ExitCode.DONE

    return _reporting_failure(work, channel)


def _receive_order(channel: WorkerChannel, *, may_preload: bool) -> tuple[TrainingOrder, Preloader | None]:
    """Wait for the order; load meanwhile what an earlier preparation allows.

    Raises:
        UsageError: something else came, or nothing.
    """
    message, preloader = channel.receive(), None
    if may_preload and isinstance(message, Preparation):
        preloader = Preloader(message)
        preloader.import_stack()
        message = channel.receive()
        if isinstance(message, ModelReady):
            preloader.load_model()
            message = channel.receive()
    if not isinstance(message, TrainingOrder):
        raise UsageError(ErrorCode.USAGE, "the supervisor sent no training order")
    return message, preloader


def _reporting_failure(work: Callable[[WorkerChannel], ExitCode], channel: WorkerChannel) -> ExitCode:
    try:
        return work(channel)
    except (Exception, Interruption) as error:  # noqa: BLE001 -- its text may quote a row: see `_verdict`
        failed, code = _verdict(error)
        channel.send(failed)
        with suppress(OSError):  # the log is on the tmpfs that may be full
            traceback.print_exc()
        return code


def _verdict(error: Exception | Interruption) -> tuple[Failed, ExitCode]:
    """Returns the message and the exit code for an error, without the texts of libraries: they may quote a row."""
    if isinstance(error, TrainerError):
        return Failed.of(error), error.exit_code
    if isinstance(error, Interruption):
        return Failed(code=ErrorCode.INTERRUPTED, message="the worker was told to stop"), ExitCode.JOB
    if isinstance(error, MemoryError):
        return Failed(code=ErrorCode.OUT_OF_MEMORY, message="the memory does not suffice"), ExitCode.JOB
    if _is_no_space(error):
        return Failed(code=ErrorCode.WORKSPACE_FULL, message="the workspace is full"), ExitCode.JOB
    return Failed(code=ErrorCode.INTERNAL, message=f"unexpected {type(error).__name__}"), ExitCode.BUG


def _is_no_space(error: Exception) -> bool:
    """Returns whether a write found no room; libraries written in Rust put the error number into their text."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return f"(os error {errno.ENOSPC})" in str(error)


def _protect_process(interrupts: Interrupts) -> None:
    """Forbid core dumps, make files readable by the owner only, and end the run cleanly on SIGTERM."""
    keep_to_itself()
    signal.signal(signal.SIGTERM, interrupts.arrive)


def _confine(plan: SandboxPlan | None, channel: WorkerChannel, rank: ProcessRank) -> None:
    if plan is None:
        return
    channel.send(Confined(sandbox=confine(plan, in_own_network=rank.size > 1)))


def _carry_out(
    order: TrainingOrder,
    channel: WorkerChannel,
    rank: ProcessRank,
    interrupts: Interrupts,
    preloader: Preloader | None,
) -> None:
    """Set the environment, read the rows, import the training stack, train.

    The rows come before the imports, so that bad data fails in milliseconds.
    """
    watch = Stopwatch()
    spec, output_dir = order.spec, rank.own_output_dir(order.output_dir)
    if preloader is None:
        take_environment(scratch_dir(output_dir))
    try:
        with watch.part("read"):
            rows = read_files(order.data_files, max_rows=spec.data.max_rows, schema=row_schema(spec.data))
        with watch.part("import"):
            loader, run_rank = _import_training(order, rank)
        if preloader is not None:
            watch.put("ahead", preloader.seconds)
            loader = preloader.loader_for(order, loader)
        summary = run_rank(order, rows, loader, rank, channel=channel, watch=watch, interrupts=interrupts)
    finally:
        remove_scratch(output_dir)
    channel.send(Finished(summary=summary.model_dump(mode="json")))


def _import_training(order: TrainingOrder, rank: ProcessRank) -> tuple[Loader, Callable[..., Summary]]:
    """Import the training stack in the order that it needs: the engine first, then transformers."""
    with garbage_collection_paused():
        from trainer.training.engines.choice import choose_engine  # noqa: PLC0415

        loader = choose_engine(order.spec, processes=rank.size)
        from trainer.worker.rank_run import run_rank  # noqa: PLC0415

    logging.getLogger("transformers").setLevel(logging.ERROR)
    return loader, run_rank


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
