"""The messages between supervisor and worker: orders on the worker's stdin, messages on an inherited pipe.

A worker of one process may get a `Preparation`, then `ModelReady`, before its `TrainingOrder`: it imports the
training stack and loads the base model while the job waits for a dataset. A worker of several processes gets a
`TrainingOrder` alone.

Everything here is private: it passes between two processes of the same VM. The supervisor decides what becomes
public, and when: activities, step counts and the code of a failure, nothing else.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue, TypeAdapter

from trainer.error_document import ErrorDocument
from trainer.errors import ErrorCode, JobError, UsageError
from trainer.ipc.channel import Channel, ChannelMessage, MessageFormat
from trainer.models import (
    MAX_BUNDLE_FILES,
    MAX_COPIED_BYTES,
    MAX_STATUS_STEPS,
    MAX_TOTAL_STEPS,
    MAX_TRAINED_PARAMETERS,
    Activity,
    Percent,
    Secret,
)
from trainer.sandbox.properties import SandboxReport
from trainer.spec import MAX_SPEC_BYTES, JobSpec

# A message of the worker: the longest is an `ErrorDocument`, whose fields are limited to fit below 60 KiB.
MAX_MESSAGE_BYTES: Final = 64 << 10

_MAX_ESCAPED: Final = 3  # bytes of JSON for a byte of YAML: "\e" becomes "\u001b"
_MAX_PATH_BYTES: Final = 4096  # PATH_MAX of Linux
_FILE_BYTES: Final = _MAX_PATH_BYTES + 512
MAX_ORDER_BYTES: Final = _MAX_ESCAPED * MAX_SPEC_BYTES + MAX_BUNDLE_FILES * _FILE_BYTES + (1 << 16)
"""An order names every file of the dataset, whose number and names the provider chose, and holds the job spec."""

_Count = Annotated[int, Field(ge=0, le=MAX_STATUS_STEPS)]
_FileName = Annotated[str, Field(min_length=1, max_length=512)]
# Names of a closed alphabet and finite numbers: what the worker measures has no room for text of the dataset.
# JSON has no NaN and no infinity (RFC 8259, section 6).
_MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class Preparation(ChannelMessage):
    """Names what the worker may load before there is a dataset; nothing of it is private.

    Attributes:
        spec: the job spec.
        model_dir: directory that the base model will be in.
        output_dir: the same as in the order.
    """

    kind: Literal["preparation"] = "preparation"
    spec: JobSpec
    model_dir: Path
    output_dir: Path


class ModelReady(ChannelMessage):
    """`model_dir` of the preparation holds the base model, every file checked by its digest."""

    kind: Literal["model-ready"] = "model-ready"


class TrainingOrder(ChannelMessage):
    """The order to train; a worker gets one.

    Attributes:
        spec: the job spec.
        model_dir: base model; holds the files listed in the spec and no others.
        data_files: name as the provider gave it → file, those of a start adapter below `adapter/` among them.
        output_dir: empty directory on the private tmpfs; gets `adapter/` and `report/`.
        split_key: 32 secret bytes in hex that decide which rows a job with a section `privacy` holds out.
        resume_dir: the files of a checkpoint of this job, authenticated; None starts at the first step.
    """

    kind: Literal["training-order"] = "training-order"
    spec: JobSpec
    model_dir: Path
    data_files: Annotated[dict[_FileName, Path], Field(min_length=1, max_length=MAX_BUNDLE_FILES)]
    output_dir: Path
    split_key: Secret
    # Only after authentication: a forged state could choose the weights, or the row that training continues at.
    resume_dir: Path | None = None


class Confined(ChannelMessage):
    """The first message of a worker with a plan: the sandbox properties that it measured about itself."""

    # First, because the worker has read nothing yet: a worker that hostile rows took over could claim anything.
    kind: Literal["confined"] = "confined"
    sandbox: SandboxReport


class OutputSize(ChannelMessage):
    """What the sizes of checkpoints and result follow from; sent before the first step, and never public."""

    # Not trusted: a wrong number costs availability alone. The bounds keep the arithmetic small.
    kind: Literal["output-size"] = "output-size"
    trained_parameters: Annotated[int, Field(ge=0, le=MAX_TRAINED_PARAMETERS)]
    copied_bytes: Annotated[int, Field(ge=0, le=MAX_COPIED_BYTES)]


class Preparing(ChannelMessage):
    """What the worker does before its first step, and how much of it is done; never less than before."""

    # Becomes public in coarse steps, as `Progress` does.
    kind: Literal["preparing"] = "preparing"
    activity: Activity
    percent: Percent


class Progress(ChannelMessage):
    """An optimizer step ended; steps follow each other, and the number of all steps stays the same."""

    # Becomes public, so it has room for counts alone. The supervisor decides when, and estimates the time left.
    kind: Literal["progress"] = "progress"
    step: Annotated[int, Field(ge=1, le=MAX_TOTAL_STEPS)]
    total_steps: Annotated[int, Field(ge=1, le=MAX_TOTAL_STEPS)]


class Metrics(ChannelMessage):
    """Numbers at a step, such as `loss`, `eval_loss`, `learning_rate`, `grad_norm` and `tokens_per_second`."""

    kind: Literal["metrics"] = "metrics"
    step: _Count
    values: Annotated[dict[_MetricName, _Finite], Field(max_length=64)]


class Saved(ChannelMessage):
    """The state after `step` is complete in `output_dir/checkpoints/STEP`; the supervisor seals and removes it."""

    # A step and not a path: the supervisor derives the path, so the worker cannot have it seal another file.
    kind: Literal["saved"] = "saved"
    step: Annotated[int, Field(ge=1, le=MAX_STATUS_STEPS)]


class Failed(ErrorDocument, ChannelMessage):
    """The order could not be carried out."""

    # Only the code becomes public. The texts may describe a row, so they go into the sealed failure report.
    kind: Literal["failed"] = "failed"


class Finished(ChannelMessage):
    """Adapter and report are written; `summary` is the content of `report/summary.json`."""

    kind: Literal["finished"] = "finished"
    summary: dict[str, JsonValue]


TrainingMessage = Preparing | OutputSize | Progress | Metrics | Saved
"""What a worker sends while it carries out an order, before its last message."""

WorkerInstruction = Preparation | ModelReady | TrainingOrder
Message = Confined | Preparing | OutputSize | Progress | Metrics | Saved | Failed | Finished

TO_WORKER: Final[MessageFormat[WorkerInstruction]] = MessageFormat(
    TypeAdapter(Annotated[WorkerInstruction, Field(discriminator="kind")]),
    MAX_ORDER_BYTES,
    "the supervisor",
    UsageError,
    ErrorCode.USAGE,
)
FROM_WORKER: Final[MessageFormat[Message]] = MessageFormat(
    TypeAdapter(Annotated[Message, Field(discriminator="kind")]),
    MAX_MESSAGE_BYTES,
    "the worker",
    JobError,
    ErrorCode.WORKER_DIED,
)


def silent_exit(process: str, code: int) -> JobError:
    """Returns the error for a process that ended without `Finished` and without `Failed`.

    Args:
        process: name of the process in the message.
        code: exit code; negative: the number of the signal that killed it.
    """
    return JobError(
        ErrorCode.WORKER_DIED,
        f"{process} ended without a word",
        expected="a result or a failure",
        found=f"signal {-code}" if code < 0 else f"exit code {code}",
        hint="signal 9 usually means that the VM ran out of memory"
        if code == -signal.SIGKILL
        else None,
    )


WorkerChannel = Channel[WorkerInstruction, Message]
"""The worker's end: sends `Message`, receives `WorkerInstruction`."""


def worker_channel(reading: int, writing: int) -> WorkerChannel:
    """Returns the worker's end over its stdin and the inherited pipe for messages."""
    return Channel(reading, writing, incoming=TO_WORKER, outgoing=FROM_WORKER)


def to_worker_channel(reading: int, writing: int) -> Channel[Message, WorkerInstruction]:
    """Returns the supervisor's end: sends `WorkerInstruction`, receives `Message`."""
    return Channel(reading, writing, incoming=FROM_WORKER, outgoing=TO_WORKER)
