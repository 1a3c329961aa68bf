"""Rows of a dataset: what one line of JSONL may be, checked strictly, told apart by its keys.

Nothing here quotes a row: errors name file, row, field, and the types and lengths found. The rows' `repr` leaves
their text out for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from trainer.encoding import parse_json
from trainer.errors import DataError, ErrorCode

MAX_ROW_BYTES: Final = 64 << 20
"""Longest acceptable line. A row is far smaller; a file that is not JSONL may be one endless line."""

ROLES: Final = ("system", "user", "assistant", "tool")

_KINDS: Final = "messages, or prompt and completion, or text"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: one of `ROLES`.
        content: its text; may be empty.
    """

    role: str
    content: str = field(repr=False)


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        file: name of the file as the provider gave it.
        index: zero-based index of the line it stands in.
    """

    file: str
    index: int

    def refuse(
        self,
        code: ErrorCode,
        reason: str,
        *,
        field: str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> DataError:
        """The error that refuses this row; `raise row.refuse(...)`. None of the arguments may quote it."""
        return DataError(
            code,
            reason,
            file=self.file,
            row=self.index,
            field=field,
            expected=expected,
            found=found,
            hint=hint,
        )


@dataclass(frozen=True)
class ChatRow(Row):
    """`{"messages": [{"role": …, "content": …}, …]}`: rendered by the model's chat template."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class CompletionRow(Row):
    """`{"prompt": …, "completion": …}`: plain text that is continued by plain text."""

    prompt: str = field(repr=False)
    completion: str = field(repr=False)


@dataclass(frozen=True)
class TextRow(Row):
    """`{"text": …}`: plain text."""

    text: str = field(repr=False)


def read_files(files: Mapping[str, Path], *, max_rows: int) -> list[Row]:
    """Read all rows of all files, in the order of the files' names.

    Raises:
        DataError: a row is not acceptable, or there are more than `max_rows`.
    """
    rows: list[Row] = []
    for name in sorted(files):
        for row in read_rows(files[name], name=name):
            if len(rows) == max_rows:
                raise DataError(
                    ErrorCode.DATASET_TOO_LARGE,
                    "too many rows",
                    file=name,
                    row=row.index,
                    expected=f"at most {max_rows} (data.max_rows)",
                    found="more",
                )
            rows.append(row)
    return rows


def read_rows(path: Path, *, name: str) -> Iterator[Row]:
    """Read a JSONL file row by row.

    Args:
        path: the file.
        name: how errors call it: its name relative to `data/`.

    Yields:
        A `ChatRow`, `CompletionRow` or `TextRow` per line. Empty lines at the end of the file are accepted.

    Raises:
        DataError: a line is not a row, or the file holds none.
    """
    empty: int | None = None
    index = -1
    with path.open("rb") as file:
        for index, line in enumerate(_lines(file, name)):
            if not line.strip():
                empty = index if empty is None else empty
                continue
            if empty is not None:
                raise _not_a_row(Row(name, empty), "an empty line", expected="a JSON object", found="nothing")
            yield parse_row(line, file=name, index=index)
    if index == -1 or empty == 0:
        raise DataError(ErrorCode.DATASET_INVALID, "no rows", file=name, expected="at least one row", found=0)


def _lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    index = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        if len(line) > MAX_ROW_BYTES:
            raise _not_a_row(
                Row(name, index), "the line is too long", expected=f"at most {MAX_ROW_BYTES} bytes", found="more"
            )
        yield line
        index += 1


def parse_row(line: bytes, *, file: str, index: int) -> Row:
    """Parse one line.

    Raises:
        DataError: `DATASET_ROW_INVALID`, naming the field and what it must be.
    """
    row = Row(file, index)
    document = _parse_object(row, line)
    kind = _KEYS.get(frozenset(document))
    if kind is None:
        raise _wrong_keys(row, document)
    return kind(row, document)


def _parse_object(row: Row, line: bytes) -> dict[str, object]:
    try:
        document = parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = f"something else at byte {error.start} of the line"
        raise _not_a_row(row, "not text", expected="UTF-8", found=found) from None
    except ValueError as error:
        hint = "a JSONL file holds one whole JSON object per line"
        raise _not_a_row(row, "not readable", expected="a JSON object", found=str(error), hint=hint) from None
    if not isinstance(document, dict):
        raise _not_a_row(row, "not an object", expected="an object", found=describe(document))
    return document


def _wrong_keys(row: Row, document: Mapping[str, object]) -> DataError:
    known = sorted({key for keys in _KEYS for key in keys} & set(document))
    others = len(document) - len(known)
    return _not_a_row(
        row,
        "not the keys of one kind of row",
        expected=_KINDS,
        found=f"{', '.join(known) or 'none of these'}{f' and {others} other keys' if others else ''}",
        hint="other columns are refused rather than ignored; remove them",
    )


def _chat(row: Row, document: Mapping[str, object]) -> ChatRow:
    messages = document["messages"]
    if not isinstance(messages, list) or not messages:
        _wrong(row, "messages", "a list of at least one message", messages)
    turns = tuple(_message(row, f"messages[{number}]", item) for number, item in enumerate(messages))
    return ChatRow(row.file, row.index, turns)


def _message(row: Row, where: str, item: object) -> Message:
    if not isinstance(item, dict):
        _wrong(row, where, "an object with role and content", item)
    if set(item) != {"role", "content"}:
        missing = [key for key in ("role", "content") if key not in item]
        found = f"an object of {len(item)} keys{f' without {missing[0]}' if missing else ''}"
        raise _not_a_row(row, "wrong keys", field=where, expected="role and content only", found=found)
    role = item["role"]
    if role not in ROLES:
        _wrong(row, f"{where}.role", f"one of {', '.join(ROLES)}", role)
    return Message(role, _text(row, f"{where}.content", item["content"]))


def _completion(row: Row, document: Mapping[str, object]) -> CompletionRow:
    prompt = _text(row, "prompt", document["prompt"])
    completion = _text(row, "completion", document["completion"], empty=False)
    return CompletionRow(row.file, row.index, prompt, completion)


def _whole(row: Row, document: Mapping[str, object]) -> TextRow:
    return TextRow(row.file, row.index, _text(row, "text", document["text"], empty=False))


_KEYS: Final[Mapping[frozenset[str], Callable[[Row, Mapping[str, object]], Row]]] = {
    frozenset({"messages"}): _chat,
    frozenset({"prompt", "completion"}): _completion,
    frozenset({"text"}): _whole,
}


def _text(row: Row, where: str, value: object, *, empty: bool = True) -> str:
    if not isinstance(value, str) or (not empty and not value):
        _wrong(row, where, "text" if empty else "text that is not empty", value)
    if not _encodable(value):
        _wrong(row, where, "text without lone surrogates", value)
    return value


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _wrong(row: Row, where: str, expected: str, value: object) -> NoReturn:
    raise _not_a_row(row, "wrong value", field=where, expected=expected, found=describe(value))


def _not_a_row(
    row: Row,
    reason: str,
    *,
    field: str | None = None,
    expected: str | None = None,
    found: str | None = None,
    hint: str | None = None,
) -> DataError:
    code = ErrorCode.DATASET_ROW_INVALID
    return row.refuse(code, reason, field=field, expected=expected, found=found, hint=hint)


def describe(value: object) -> str:
    """What a JSON value is, without what it says: its type and its length.

    >>> describe("secret"), describe([1, 2]), describe(None)
    ('text of 6 characters', 'a list of 2', 'null')
    """
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)} keys"
    return "true or false" if isinstance(value, bool) else "a number"
