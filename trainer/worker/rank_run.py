"""One process's part of a training run. Imports the training stack: only for use after the engine was chosen."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.data.examples.example_set import row_schema
from trainer.data.rows import RowFile, scan_files
from trainer.ipc.worker_messages import TrainingOrder, WorkerChannel
from trainer.model_files.start_adapter import StartAdapter
from trainer.sandbox.child_environment import allocator_in_use
from trainer.training.distributed import join_rank_group
from trainer.training.engines.base import Loader
from trainer.training.events import TrainingEvent
from trainer.training.interruption import Interrupts
from trainer.training.rank import ProcessRank, rendezvous_dir
from trainer.training.reading_meter import ReadingMeter
from trainer.training.report.summary import Summary
from trainer.training.run import run
from trainer.training.run_inputs import RunInputs
from trainer.training.stages.run_context import RunContext
from trainer.training.stopwatch import Stopwatch
from trainer.worker.event_messages import message_of_event


def run_rank(
    order: TrainingOrder,
    files: Sequence[RowFile],
    start_adapter: StartAdapter | None,
    loader: Loader,
    rank: ProcessRank,
    *,
    channel: WorkerChannel,
    watch: Stopwatch,
    interrupts: Interrupts,
) -> Summary:
    """Joins the other processes and trains; rank 0 forwards the run's events to the supervisor.

    Args:
        order: the job spec and the directories.
        files: the files with the rows of the dataset.
        start_adapter: the adapter that training starts from, not judged yet.
        loader: loads the base model.
        rank: the number of this process, and of how many.
        channel: to the supervisor.
        watch: runs since the order came.
        interrupts: turns SIGTERM into an interruption.

    Raises:
        JobError: the run failed.
        Interruption: SIGTERM came.
    """

    def forward(event: TrainingEvent) -> None:
        if rank.rank == 0:
            channel.send(message_of_event(event))

    output_dir = rank.own_output_dir(order.output_dir)
    split_key = bytes.fromhex(order.split_key)
    inputs = RunInputs(
        order.spec, order.model_dir, output_dir, order.resume_dir, start_adapter, split_key
    )
    sharded = order.spec.train.fsdp is not None
    data = order.spec.data
    meter = ReadingMeter(sum(file.path.stat().st_size for file in files), forward)
    rows = scan_files(
        files, max_rows=data.max_rows, schema=row_schema(data), on_bytes_read=meter.add
    )
    with join_rank_group(rank, rendezvous_dir(order.output_dir), sharded=sharded) as ranks:
        return run(
            inputs, rows, loader, RunContext(forward, watch, interrupts, ranks, allocator_in_use())
        )
