"""Rows: what is accepted, what is refused and how it is said, and that no error ever holds a part of a row."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.rows import (
    ChatRow,
    CompletionRow,
    Message,
    Row,
    TextRow,
    describe,
    parse_row,
    read_files,
    read_rows,
)
from trainer.errors import DataError, ErrorCode

CANARY = "canary-7f3a9c"

Write = Callable[[bytes | str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(content: bytes | str) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def rows_of(path: Path) -> list[Row]:
    return list(read_rows(path, name="rows.jsonl"))


def test_three_kinds_of_rows(write: Write) -> None:
    path = write(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}\n'
        '{"prompt": "", "completion": "b"}\n'
        '{"text": "c"}'
    )
    assert rows_of(path) == [
        ChatRow("rows.jsonl", 0, (Message("user", "a"), Message("assistant", ""))),
        CompletionRow("rows.jsonl", 1, "", "b"),
        TextRow("rows.jsonl", 2, "c"),
    ]


def test_a_row_does_not_show_its_text() -> None:
    lines = (
        {"messages": [{"role": "user", "content": CANARY}]},
        {"prompt": CANARY, "completion": CANARY},
        {"text": CANARY},
    )
    for line in lines:
        assert CANARY not in repr(parse_row(json.dumps(line).encode(), file="f", index=0))


BAD_ROWS = {
    f'{{"text": "{CANARY}"': (None, "a JSONL file"),
    f'{{"text": "{CANARY}", "text": "{CANARY}"}}': (None, None),
    f'{{"text": "{CANARY}\\q"}}': (None, None),
    f'["{CANARY}"]': (None, "a list of 1"),
    f'"{CANARY}"': (None, "text of 13 characters"),
    "NaN": (None, None),
    f'{{"{CANARY}": "x"}}': (None, "none of these and 1 other keys"),
    f'{{"text": "x", "{CANARY}": "x"}}': (None, "text and 1 other keys"),
    f'{{"text": "x", "prompt": "{CANARY}"}}': (None, "prompt, text"),
    f'{{"prompt": "{CANARY}"}}': (None, "prompt"),
    '{"text": 5}': ("text", "a number"),
    '{"text": ""}': ("text", "text of 0 characters"),
    '{"text": "\\ud800"}': ("text", "text of 1 characters"),
    f'{{"prompt": ["{CANARY}"], "completion": "x"}}': ("prompt[0]", "text of 13 characters"),
    f'{{"prompt": "{CANARY}", "completion": ""}}': ("completion", "text of 0 characters"),
    '{"messages": []}': ("messages", "a list of 0"),
    f'{{"messages": "{CANARY}"}}': ("messages", "text of 13 characters"),
    f'{{"messages": ["{CANARY}"]}}': ("messages[0]", "text of 13 characters"),
    f'{{"messages": [{{"role": "user", "{CANARY}": "x"}}]}}': (
        "messages[0]",
        "an object of 2 keys without content",
    ),
    f'{{"messages": [{{"role": "user", "content": "x", "{CANARY}": 1}}]}}': (
        "messages[0]",
        "1 other keys",
    ),
    f'{{"messages": [{{"role": "{CANARY}", "content": "x"}}]}}': (
        "messages[0].role",
        "text of 13 characters",
    ),
    f'{{"messages": [{{"role": ["{CANARY}"], "content": "x"}}]}}': (
        "messages[0].role",
        "a list of 1",
    ),
    '{"messages": [{"role": "user", "content": null}]}': ("messages[0].content", "null"),
    '{"messages": [{"role": "user", "content": true}]}': ("messages[0].content", "true or false"),
    f'{{"messages": [{{"role": "user", "content": {{"{CANARY}": 1}}}}]}}': (
        "messages[0].content",
        "an object of 1 keys",
    ),
}


@pytest.mark.parametrize("line", BAD_ROWS)
def test_bad_row_is_named_but_never_quoted(write: Write, line: str) -> None:
    field, found = BAD_ROWS[line]
    with pytest.raises(DataError) as caught:
        rows_of(write(f'{{"text": "good"}}\n{line}\n'))
    error = caught.value
    assert (error.code, error.file, error.row, error.field) == (
        ErrorCode.DATASET_ROW_INVALID,
        "rows.jsonl",
        1,
        field,
    )
    shown = f"{error} {error.args} {error.expected} {error.found} {error.hint} {error.__cause__}"
    assert CANARY not in shown
    assert found is None or found in shown


def test_not_utf8_is_named_by_its_place(write: Write) -> None:
    with pytest.raises(DataError, match="expected UTF-8, got something else at byte 10") as caught:
        rows_of(write(b'{"text": "\xff"}'))
    assert caught.value.row == 0


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_byte_order_mark_names_the_encoding(write: Write, encoding: str) -> None:
    assert rows_of(write('{"text": "a"}'.encode(encoding))) == [TextRow("rows.jsonl", 0, "a")]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "cp037"])
def test_other_encodings_are_refused(write: Write, encoding: str) -> None:
    with pytest.raises(DataError):
        rows_of(write('{"text": "a"}'.encode(encoding)))


def test_empty_lines_are_fine_at_the_end_only(write: Write) -> None:
    assert len(rows_of(write('{"text": "a"}\n\n \n'))) == 1
    with pytest.raises(DataError, match="an empty line") as caught:
        rows_of(write('{"text": "a"}\n\n{"text": "b"}\n'))
    assert caught.value.row == 1


@pytest.mark.parametrize("content", ["", "\n", " \n\n"])
def test_a_file_without_rows_is_refused(write: Write, content: str) -> None:
    with pytest.raises(DataError, match="no rows") as caught:
        rows_of(write(content))
    assert caught.value.code is ErrorCode.DATASET_INVALID


def test_an_endless_line_is_not_read_whole(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.rows.data_file.MAX_ROW_BYTES", 100)
    with pytest.raises(DataError, match="too long"):
        rows_of(write('{"text": "' + "a" * 100 + '"}'))
    assert len(rows_of(write('{"text": "' + "a" * 86 + '"}\n'))) == 1


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_text(f'{{"text": "{name}"}}\n' * 2)
    files = {"2": tmp_path / "a", "1": tmp_path / "b"}
    assert [(row.file, row.index) for row in read_files(files, max_rows=4)] == [
        ("1", 0),
        ("1", 1),
        ("2", 0),
        ("2", 1),
    ]
    with pytest.raises(DataError) as caught:
        read_files(files, max_rows=3)
    assert (caught.value.code, caught.value.file, caught.value.row) == (
        ErrorCode.DATASET_TOO_LARGE,
        "2",
        1,
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "x"]) | json_values, "content": json_values}
    ),
    max_size=3,
)
documents = (
    json_values
    | st.fixed_dictionaries({"messages": messages})
    | st.fixed_dictionaries({"text": json_values})
)


@given(documents)
def test_any_json_is_a_row_or_a_data_error(document: object) -> None:
    line = json.dumps(document).encode()
    try:
        row = parse_row(line, file="f", index=3)
    except DataError as error:
        assert (error.file, error.row) == ("f", 3)  # noqa: PT017 -- either outcome is right
    else:
        assert isinstance(row, ChatRow | CompletionRow | TextRow)


@given(st.binary())
def test_any_bytes_are_a_row_or_a_data_error(line: bytes) -> None:
    with pytest.raises(DataError):
        parse_row(line, file="f", index=0)


@given(json_values)
def test_a_description_depends_on_type_and_length_only(value: object) -> None:
    assert CANARY not in describe(value)
    assert describe(CANARY) == describe("x" * len(CANARY))
    assert describe([CANARY]) == describe([0])
