"""What supervisor and worker say to each other: one order on stdin, then messages, one JSON document a line.

A worker of one process may be given a `Preparation` first, and the word that the base model is there.

Everything here is private: it passes between two processes of the same VM. The supervisor decides which of it
may become public (step counts and the code of a failure, nothing else).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from trainer.errors import DataError, ErrorCode, JobError, TrainerError, UsageError
from trainer.models import MAX_STATUS_STEPS, Strict
from trainer.sandbox.properties import WallReport
from trainer.spec import MAX_SPEC_BYTES, JobSpec

MAX_MESSAGE_BYTES: Final = 64 << 10
MAX_ORDER_BYTES: Final = MAX_SPEC_BYTES + (1 << 20)
_MAX_TEXT: Final = 2000

_Count = Annotated[int, Field(ge=0, le=MAX_STATUS_STEPS)]
_Text = Annotated[str, Field(max_length=_MAX_TEXT)]
_Name = Annotated[str, Field(min_length=1, max_length=512)]
_Document = TypeVar("_Document", bound=Strict)


MODEL_READY: Final = b"model-ready\n"
"""The word on a worker's stdin, between a preparation and the order, that `model_dir` holds the checked model."""


class Preparation(Strict):
    """What a worker can do before there is a dataset, from the first line of its stdin: nothing of it is private.

    Attributes:
        spec: the whole job spec.
        model_dir: where the base model will be.
        output_dir: as in the order.
    """

    spec: JobSpec
    model_dir: Path
    output_dir: Path

    def encode(self) -> bytes:
        """One line, newline included."""
        return self.model_dump_json(exclude_unset=True).encode() + b"\n"


class TrainingOrder(Strict):
    """What the worker is to do.

    Attributes:
        spec: the whole job spec.
        model_dir: base model; holds the files listed in the spec and no others.
        data_files: name as the provider gave it → file.
        output_dir: empty directory on the private tmpfs; gets `adapter/` and `report/`.
        resume_dir: the files of a checkpoint of this very job, authenticated; None begins at the beginning.
    """

    spec: JobSpec
    model_dir: Path
    data_files: Annotated[dict[_Name, Path], Field(min_length=1, max_length=4096)]
    output_dir: Path
    resume_dir: Path | None = None

    def encode(self) -> bytes:
        """The bytes for the worker's stdin."""
        return self.model_dump_json(exclude_unset=True).encode()


def parse_preparation(data: bytes) -> Preparation:
    """Parse the first line of stdin, where a preparation was announced.

    Raises:
        UsageError: too large or not a preparation; names the field, never its content.
    """
    return _parsed(Preparation, data, "preparation")


def parse_order(data: bytes) -> TrainingOrder:
    """Parse what came on stdin.

    Raises:
        UsageError: too large or not an order; names the field, never its content.
    """
    return _parsed(TrainingOrder, data, "order")


def _parsed(kind: type[_Document], data: bytes, name: str) -> _Document:
    if len(data) > MAX_ORDER_BYTES:
        raise UsageError(ErrorCode.USAGE, name, expected=f"at most {MAX_ORDER_BYTES} bytes", found=len(data))
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise UsageError(ErrorCode.USAGE, f"{name}: {_first(error)}") from None


_MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class Confined(Strict):
    """The first word of a worker that was given a plan: which walls stand around it, measured by itself."""

    kind: Literal["confined"] = "confined"
    walls: WallReport


class Progress(Strict):
    """An optimizer step ended."""

    kind: Literal["progress"] = "progress"
    step: _Count
    total_steps: _Count
    eta_seconds: _Count | None


class Metrics(Strict):
    """Numbers at a step, such as `loss`, `eval_loss`, `learning_rate`, `grad_norm` and `tokens_per_second`."""

    kind: Literal["metrics"] = "metrics"
    step: _Count
    values: Annotated[dict[_MetricName, _Finite], Field(max_length=64)]


class Saved(Strict):
    """The state after `step` lies in `output_dir/checkpoints/STEP`, whole; who has sealed it removes it."""

    kind: Literal["saved"] = "saved"
    step: Annotated[int, Field(ge=1, le=MAX_STATUS_STEPS)]


class Failed(Strict):
    """The order could not be carried out. Only `code` may become public."""

    kind: Literal["failed"] = "failed"
    code: ErrorCode
    reason: _Text
    file: _Name | None = None
    row: _Count | None = None
    field: _Text | None = None
    expected: _Text | None = None
    found: _Text | None = None
    hint: _Text | None = None

    @classmethod
    def of(cls, error: TrainerError) -> Self:
        """The message for an error."""
        data = error if isinstance(error, DataError) else None
        return cls(
            code=error.code,
            reason=_cut(data.reason if data else error.message) or "",
            file=data.file if data else None,
            row=data.row if data else None,
            field=_cut(data.field) if data else None,
            expected=_cut(error.expected),
            found=_cut(error.found),
            hint=_cut(error.hint),
        )

    def as_error(self) -> JobError:
        """The error again, on the supervisor's side."""
        what = {"expected": self.expected, "found": self.found, "hint": self.hint}
        if self.file is None and self.row is None and self.field is None:
            return JobError(self.code, self.reason, **what)
        return DataError(self.code, self.reason, file=self.file, row=self.row, field=self.field, **what)


class Finished(Strict):
    """Adapter and report are written; `summary` is what `report/summary.json` holds."""

    kind: Literal["finished"] = "finished"
    summary: dict[str, JsonValue]


Message = Confined | Progress | Metrics | Saved | Failed | Finished
_MESSAGE: Final[TypeAdapter[Message]] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def encode_message(message: Message) -> bytes:
    """One line, newline included."""
    return message.model_dump_json().encode() + b"\n"


def parse_message(line: bytes) -> Message:
    """Parse one line from the worker.

    Raises:
        JobError: `WORKER_DIED`: too long or not a message, so the worker cannot be trusted to go on.
    """
    if len(line) > MAX_MESSAGE_BYTES:
        raise JobError(
            ErrorCode.WORKER_DIED,
            "the worker's message is too long",
            expected=f"at most {MAX_MESSAGE_BYTES} bytes",
            found=len(line),
        )
    try:
        return _MESSAGE.validate_json(line)
    except ValidationError as error:
        raise JobError(ErrorCode.WORKER_DIED, f"not a message of the worker: {_first(error)}") from None


class Events:
    """The worker's end: writes messages to an inherited file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, message: Message) -> None:
        """Write one message whole.

        Raises:
            OSError: the supervisor is gone.
        """
        rest = memoryview(encode_message(message))
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]


def _cut(value: object) -> str | None:
    return None if value is None else str(value)[:_MAX_TEXT]


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'document'}: {first['type']}"
