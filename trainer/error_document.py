"""An error as a document: for a child's message, for `failure.json`, and for the provider's screen."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import Field, JsonValue, ValidationError

from trainer.encoding import canonical_json, parse_json
from trainer.errors import DataError, ErrorCode, JobError, ReportedDataError, TrainerError
from trainer.models import MAX_STATUS_STEPS, Strict

MAX_FAILURE_REPORT_BYTES: Final = 1 << 20

# JSON needs up to six bytes for a character (\u0000). With these limits the longest document is below 60 KiB, so
# that it always fits one message of a worker (64 KiB).
_MAX_TEXT: Final = 1500
_MAX_NAME: Final = 512

_Text = Annotated[str, Field(max_length=_MAX_TEXT)]
_Name = Annotated[str, Field(max_length=_MAX_NAME)]


class ErrorDocument(Strict):
    """The description of a `TrainerError`. Only `code` may become public.

    Attributes:
        code: the public code.
        message: what went wrong, with the position for a data error.
        expected: the value that was required.
        found: the value that was there instead.
        hint: what to do about it.
        reason: what is wrong with a row or file, without its position; None for anything but a data error.
        file: name of the file as the provider gave it.
        row: zero-based index of the row.
        field: path of the field in the row.
    """

    code: ErrorCode
    message: _Text
    expected: _Text | None = None
    found: _Text | None = None
    hint: _Text | None = None
    reason: _Text | None = None
    file: _Name | None = None
    row: Annotated[int, Field(ge=0, le=MAX_STATUS_STEPS)] | None = None
    field: _Text | None = None

    @classmethod
    def of(cls, error: TrainerError) -> Self:
        """Returns the description of an error. Texts above the limits are cut."""
        data_error = error if isinstance(error, DataError) else None
        return cls(
            code=error.code,
            message=_cut(error.message) or "",
            expected=_cut(error.expected),
            found=_cut(error.found),
            hint=_cut(error.hint),
            reason=_cut(data_error.reason) if data_error else None,
            file=_cut(data_error.file, _MAX_NAME) if data_error else None,
            row=data_error.row if data_error else None,
            field=_cut(data_error.field) if data_error else None,
        )

    def as_error(self) -> JobError:
        """Returns the error that the document describes: a `ReportedDataError` if it has a `reason`."""
        texts = {"expected": self.expected, "found": self.found, "hint": self.hint}
        if self.reason is None:
            return JobError(self.code, self.message, **texts)
        return ReportedDataError(
            self.code, self.reason, file=self.file, row=self.row, field=self.field, **texts
        )


class FailureReport(ErrorDocument):
    """The content of `report/failure.json` in the sealed result of a failed job.

    Attributes:
        checkpoint_step: optimizer step of the newest sealed checkpoint; None if there is none.
    """

    checkpoint_step: Annotated[int, Field(ge=0, le=MAX_STATUS_STEPS)] | None = None

    def canonical(self) -> bytes:
        """Returns the file's bytes: RFC 8785 JSON; position and reason are left out unless it is a data error."""
        document: dict[str, JsonValue] = self.model_dump(mode="json")
        if self.reason is None:
            for name in ("reason", "file", "row", "field"):
                del document[name]
        return canonical_json(document)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parses the content of `failure.json`.

        Raises:
            ValueError: too large, or not a failure report. The message quotes nothing of the content.
        """
        if len(data) > MAX_FAILURE_REPORT_BYTES:
            raise ValueError("the failure report is too large")
        parse_json(data)  # refuses duplicate keys, which pydantic's parser accepts
        try:
            return cls.model_validate_json(data)
        except ValidationError:
            raise ValueError("not a failure report") from None


def _cut(value: object, length: int = _MAX_TEXT) -> str | None:
    """Returns the value as text of at most `length` characters that has a UTF-8 form (no lone surrogates)."""
    return None if value is None else str(value)[:length].encode("utf-8", "replace").decode("utf-8")
