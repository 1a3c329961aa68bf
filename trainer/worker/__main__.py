"""Entry point of the worker: `python -m trainer.worker --events-fd N [--plan-json PLAN] [--processes N]`.

The worker reads its instructions from stdin and writes its messages to the descriptor `--events-fd`:

1. With a plan it enters its sandbox and sends the properties that it measured (`Confined`). The supervisor starts
   the worker before the dataset arrives, so that evidence can attest this measurement.
2. It may receive a `Preparation`, and then preloads what is public (`trainer.worker.preload`).
3. It receives a `TrainingOrder`, trains, and sends `Finished`.

Each error becomes one `Failed` message with a code. The traceback of an unexpected one goes to stderr, which the
supervisor connects to the private log. The process exits with a code of `trainer.errors.ExitCode`.
"""

from __future__ import annotations

import argparse
import errno
import logging
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from trainer.data.rows import list_row_files
from trainer.errors import ErrorCode, ExitCode, JobError, TrainerError, UsageError
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
from trainer.model_files.start_adapter import take_start_adapter
from trainer.sandbox.confine import confine
from trainer.sandbox.plan import SandboxPlan
from trainer.sandbox.privileges import keep_to_itself
from trainer.training.interruption import Interruption, Interrupts
from trainer.training.rank import ProcessRank
from trainer.training.stopwatch import Stopwatch
from trainer.worker.environment import replace_environment
from trainer.worker.launch import launch
from trainer.worker.model_integrity import verify_model
from trainer.worker.preload import Preloader, garbage_collection_paused, scratch_dir

if TYPE_CHECKING:
    from trainer.training.engines.base import Loader
    from trainer.training.report.summary import Summary


def main(arguments: list[str]) -> ExitCode:
    """Parses the arguments and runs the worker, in one or several processes; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.worker")
    parser.add_argument(
        "--events-fd", type=int, required=True, help="inherited descriptor for messages"
    )
    parser.add_argument(
        "--plan-json", type=SandboxPlan.model_validate_json, help="the sandbox to enter"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="how many processes train together"
    )
    options = parser.parse_args(arguments)
    channel = worker_channel(STDIN, options.events_fd)
    interrupts = Interrupts()
    keep_to_itself()  # before the process reads private data: a core dump would contain it
    signal.signal(signal.SIGTERM, interrupts.arrive)
    work = partial(_work, options.plan_json, interrupts)
    if options.processes == 1:
        return work(ProcessRank(), channel)
    supervise = partial(launch, options.processes, options.plan_json, work=work)
    return _reporting_failure(supervise, channel)


def _work(
    plan: SandboxPlan | None, interrupts: Interrupts, rank: ProcessRank, channel: WorkerChannel
) -> ExitCode:
    """Runs one rank: enters the sandbox, receives the order, trains; returns the exit code."""

    def work(channel: WorkerChannel) -> ExitCode:
        if plan is not None:
            channel.send(Confined(sandbox=confine(plan, in_own_network=rank.size > 1)))
        order, preloader = _receive_order(channel, may_preload=rank.size == 1)
        _carry_out(order, channel, rank, interrupts, preloader)
        return ExitCode.DONE

    return _reporting_failure(work, channel)


def _receive_order(
    channel: WorkerChannel, *, may_preload: bool
) -> tuple[TrainingOrder, Preloader | None]:
    """Receives the training order. If a preparation comes first, preloads the model before the order arrives.

    Raises:
        UsageError: the supervisor sent another message, or closed the channel.
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


def _reporting_failure(
    work: Callable[[WorkerChannel], ExitCode], channel: WorkerChannel
) -> ExitCode:
    """Calls `work` and sends its error, if it raises one, as a `Failed` message; returns the exit code."""
    try:
        return work(channel)
    except (Exception, Interruption) as error:  # noqa: BLE001 -- `_verdict` drops its text
        failed, code = _verdict(error)
        channel.send(failed)
        with suppress(OSError):  # the log is on a tmpfs, which may be full
            if isinstance(error, TrainerError | Interruption):
                sys.stderr.write(f"{failed.code.value}: {failed.message}\n")
            else:
                traceback.print_exc()
        return code


def _verdict(error: Exception | Interruption) -> tuple[Failed, ExitCode]:
    """Returns the message and the exit code for an error.

    The message contains the text of a `TrainerError` only. The text of any other error may quote a row, so it goes
    to the private log alone.
    """
    if isinstance(error, TrainerError):
        # Rows that are refused here were sent: the job has failed, unlike a command that refuses them before.
        return Failed.of(error), ExitCode.JOB if isinstance(error, JobError) else error.exit_code
    if isinstance(error, Interruption):
        return Failed(
            code=ErrorCode.INTERRUPTED, message="the worker was asked to stop"
        ), ExitCode.JOB
    if isinstance(error, MemoryError):
        return Failed(
            code=ErrorCode.OUT_OF_MEMORY, message="the memory does not suffice"
        ), ExitCode.JOB
    # Libraries in Rust (tokenizers, safetensors) give the error number as text only.
    number = error.errno if isinstance(error, OSError) else None
    if number in {errno.ENOSPC, errno.EDQUOT} or (
        number is None and f"(os error {errno.ENOSPC})" in str(error)
    ):
        return Failed(code=ErrorCode.WORKSPACE_FULL, message="the workspace is full"), ExitCode.JOB
    return Failed(
        code=ErrorCode.INTERNAL, message=f"unexpected {type(error).__name__}"
    ), ExitCode.BUG


def _carry_out(
    order: TrainingOrder,
    channel: WorkerChannel,
    rank: ProcessRank,
    interrupts: Interrupts,
    preloader: Preloader | None,
) -> None:
    """Sets the environment, imports the training stack, and trains."""
    watch = Stopwatch()
    spec, output_dir = order.spec, rank.own_output_dir(order.output_dir)
    if preloader is None:  # a preloader has replaced the environment before its own imports
        replace_environment(scratch_dir(output_dir))
    try:
        row_files, start_adapter = take_start_adapter(order.data_files, spec)
        files = list_row_files(row_files, eval_files=spec.data.eval_files)
        with watch.part("import"):
            loader, run_rank = _import_training(order)
        verified = None
        if preloader is not None:
            watch.put("ahead", preloader.seconds)
            loader, verified = preloader.loader_for(order, loader), preloader.verified_for(order)
        # Before the run reads a file of the model: the tokenizer, the weights, for a merged model both once more.
        with watch.part("load"):
            verified = verified or verify_model(order.model_dir, spec.model.model_file_sha256)
        summary = run_rank(
            order,
            files,
            start_adapter,
            loader,
            rank,
            channel=channel,
            watch=watch,
            interrupts=interrupts,
        )
        verified.require_unchanged()
    finally:
        shutil.rmtree(scratch_dir(output_dir), ignore_errors=True)
    channel.send(Finished(summary=summary.model_dump(mode="json")))


def _import_training(order: TrainingOrder) -> tuple[Loader, Callable[..., Summary]]:
    """Imports the engine, then the training stack: unsloth patches transformers and must be imported before it."""
    with garbage_collection_paused():
        from trainer.training.engines.choice import choose_engine  # noqa: PLC0415

        loader = choose_engine(order.spec)
        from trainer.worker.rank_run import run_rank  # noqa: PLC0415

    logging.getLogger("transformers").setLevel(logging.ERROR)
    return loader, run_rank


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
