"""Process entry: `python -m trainer.worker --events-fd N [--plan-json PLAN] [--processes N]`, the order on stdin.

With a plan the process confines itself first, reports the sandbox properties that it measured, and waits for its
order: the supervisor starts it before any data is there, so that what it measured can be attested. A preparation
may come before the order: then it loads what is public meanwhile (`trainer.worker.preload`).

Whatever goes wrong becomes one `Failed` message with a code; the traceback goes to stderr, which the supervisor
points at the private log. Exit codes are those of `trainer.errors.ExitCode`.
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
from trainer.sandbox.child_environment import allocator_in_use
from trainer.sandbox.confine import confine
from trainer.sandbox.plan import SandboxPlan
from trainer.sandbox.privileges import keep_to_itself
from trainer.training.events import EventHandler
from trainer.training.interruption import Interruption, Interrupts
from trainer.training.rank import ProcessRank, rendezvous_dir
from trainer.training.run_inputs import RunInputs
from trainer.training.stopwatch import Stopwatch
from trainer.worker.environment import take_environment
from trainer.worker.event_messages import message_of_event
from trainer.worker.launch import launch
from trainer.worker.preload import Preloader, garbage_collection_paused, remove_scratch, scratch_dir

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from trainer.training.distributed import RankGroup
    from trainer.training.engines.base import Loader
    from trainer.training.report.summary import Summary

    Together = AbstractContextManager[RankGroup]


def main(arguments: list[str]) -> ExitCode:
    """Read the order, carry it out, say how it ended."""
    parser = argparse.ArgumentParser(prog="python -m trainer.worker")
    parser.add_argument("--events-fd", type=int, required=True, help="inherited descriptor for messages")
    parser.add_argument("--plan-json", type=SandboxPlan.model_validate_json, help="what to be confined to")
    parser.add_argument("--processes", type=int, default=1, help="how many train together")
    given = parser.parse_args(arguments)
    channel = worker_channel(STDIN, given.events_fd)
    interrupts = Interrupts()
    _protect_process(interrupts)
    work = partial(_work, given.plan_json, interrupts)
    if given.processes == 1:
        return work(ProcessRank(), channel)
    return _told(partial(launch, given.processes, given.plan_json, work=work), channel)


def _work(plan: SandboxPlan | None, interrupts: Interrupts, seat: ProcessRank, channel: WorkerChannel) -> ExitCode:
    """What one process does, from its confinement to its last word."""

    def work(channel: WorkerChannel) -> ExitCode:
        _confine(plan, channel, seat)
        order, preloader = _receive_order(channel, may_prepare=seat.size == 1)
        _carry_out(order, channel, seat, interrupts, preloader)
        return ExitCode.DONE

    return _told(work, channel)


def _receive_order(channel: WorkerChannel, *, may_prepare: bool) -> tuple[TrainingOrder, Preloader | None]:
    """Wait for the order; load what an earlier preparation allows meanwhile.

    Raises:
        UsageError: something else came, or nothing.
    """
    message, preloader = channel.receive(), None
    if may_prepare and isinstance(message, Preparation):
        preloader = Preloader(message)
        preloader.import_stack()
        message = channel.receive()
        if isinstance(message, ModelReady):
            preloader.load_model()
            message = channel.receive()
    if not isinstance(message, TrainingOrder):
        raise UsageError(ErrorCode.USAGE, "the supervisor sent no training order")
    return message, preloader


def _told(work: Callable[[WorkerChannel], ExitCode], channel: WorkerChannel) -> ExitCode:
    """Do it, and send word of what went wrong."""
    try:
        return work(channel)
    except (Exception, Interruption) as error:  # noqa: BLE001 -- its text may quote a row: see `_verdict`
        failed, code = _verdict(error)
        channel.send(failed)
        with suppress(OSError):  # the log lies on the tmpfs that may be what is full
            traceback.print_exc()
        return code


def _verdict(error: Exception | Interruption) -> tuple[Failed, ExitCode]:
    """What the supervisor is told of an error: of those that libraries raise, only the kind."""
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
    """Whether a write found no room; libraries written in Rust put the number into their text."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return f"(os error {errno.ENOSPC})" in str(error)


def _protect_process(interrupts: Interrupts) -> None:
    """No core dumps, files for the owner only, and a way to be stopped that leaves nothing behind."""
    keep_to_itself()
    signal.signal(signal.SIGTERM, interrupts.arrive)


def _confine(plan: SandboxPlan | None, channel: WorkerChannel, seat: ProcessRank) -> None:
    if plan is None:
        return
    channel.send(Confined(sandbox=confine(plan, in_own_network=seat.size > 1)))


def _carry_out(
    order: TrainingOrder,
    channel: WorkerChannel,
    seat: ProcessRank,
    interrupts: Interrupts,
    ahead: Preloader | None,
) -> None:
    """Environment first, rows before the training stack (bad data fails in milliseconds), then the run."""
    watch = Stopwatch()
    spec, output_dir = order.spec, seat.own_output_dir(order.output_dir)
    inputs = RunInputs(spec, order.model_dir, output_dir, order.resume_dir)
    if ahead is None:
        take_environment(scratch_dir(output_dir))
    try:
        with watch.part("read"):
            rows = read_files(order.data_files, max_rows=spec.data.max_rows, schema=row_schema(spec.data))
        with watch.part("import"):
            loader, run, join_rank_group = _training_stack(order, seat)
        if ahead is not None:
            watch.put("ahead", ahead.seconds)
            loader = ahead.loader_for(order, loader)
        with join_rank_group(seat, rendezvous_dir(order.output_dir), sharded=spec.train.fsdp is not None) as ranks:
            summary = run(
                inputs,
                rows,
                loader,
                report=_forwarding(channel) if seat.rank == 0 else lambda _event: None,
                watch=watch,
                interrupts=interrupts,
                ranks=ranks,
                allocator=allocator_in_use(),
            )
    finally:
        remove_scratch(output_dir)
    channel.send(Finished(summary=summary.model_dump(mode="json")))


def _forwarding(channel: WorkerChannel) -> EventHandler:
    return lambda event: channel.send(message_of_event(event))


def _training_stack(
    order: TrainingOrder, seat: ProcessRank
) -> tuple[Loader, Callable[..., Summary], Callable[..., Together]]:
    """Import it, in the order it needs: environment variables first (done), then the engine, then transformers."""
    with garbage_collection_paused():
        from trainer.training.engines.choice import choose_engine  # noqa: PLC0415

        loader = choose_engine(order.spec, processes=seat.size)
        from trainer.training.distributed import join_rank_group  # noqa: PLC0415
        from trainer.training.run import run  # noqa: PLC0415

    logging.getLogger("transformers").setLevel(logging.ERROR)
    return loader, run, join_rank_group


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
