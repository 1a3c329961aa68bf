"""Lists and objects that a cell holds as text are read as what they say, or refused; never kept as text."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.rows import Row, RowSchema, parse_row, read_files
from trainer.data.rows.nested_text import MAX_LITERAL_CHARACTERS, parse_literal
from trainer.errors import DataError

CANARY = "canary-51c0"
QUESTION = {"role": "user", "content": "Which gate's open?"}
YES = {"role": "assistant", "content": 'The "north" one,\nsince 8.'}
NO = {"role": "assistant", "content": "None."}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "gate", "parameters": {"required": ["id"], "strict": True}},
    }
]

SHAPES: list[dict[str, object]] = [
    {
        "messages": [QUESTION, YES],
        "tools": TOOLS,
        "chat_template_kwargs": {"enable_thinking": False},
    },
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"prompt": [QUESTION], "completion": [YES]},
    {"prompt": [QUESTION], "chosen": [YES], "rejected": [NO]},
    {"chosen": [QUESTION, YES], "rejected": [QUESTION, NO]},
    {"conversations": [QUESTION], "chosen": YES, "rejected": NO},
    {"messages": [QUESTION, YES], "rejected_response": "None."},
    {"instruction": "a", "output": "b", "history": [["c", "d"]]},
]


def parsed(document: object) -> Row:
    return parse_row(json.dumps(document).encode(), file="f", index=0)


@pytest.mark.parametrize("shape", SHAPES, ids=["-".join(shape) for shape in SHAPES])
@pytest.mark.parametrize("write", [json.dumps, repr], ids=["JSON", "Python"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_every_column_that_may_hold_messages_is_read(
    shape: dict[str, object], write: object, suffix: str, tmp_path: Path
) -> None:
    assert callable(write)
    cells = {
        name: value if isinstance(value, str) else str(write(value))
        for name, value in shape.items()
    }
    path = tmp_path / f"f.{suffix}"
    with path.open("w", newline="") as file:
        if suffix == "jsonl":
            file.write(json.dumps(cells))
        else:
            table = csv.DictWriter(file, cells, delimiter="," if suffix == "csv" else "\t")
            table.writeheader()
            table.writerow(cells)
    (row,) = read_files({"f": path} if suffix == "jsonl" else {path.name: path}, max_rows=1)
    expected = parse_row(json.dumps(shape).encode(), file=row.file, index=0)
    assert row == expected


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        (
            "chosen",
            f"[{{'role': 'user', 'content': '{CANARY}'}}\n {{'role': 'assistant', 'content': 'b'}}]",
        ),
        ("prompt", f'[{{"role": "user", "content": "{CANARY}"'),
        ("prompt", f"[{{'role': 'user', 'content': {CANARY!r}, 'content': 'again'}}]"),
        ("prompt", f"[{{'from': 'human', 'value': open({CANARY!r})}}]"),
        ("completion", f"[{{'role': 'assistant', 'content': f'{CANARY}'}}]"),
        ("messages", f"array([{{'role': 'user', 'content': '{CANARY}'}}], dtype=object)"),
        ("tools", f"[{CANARY}]"),
        ("chat_template_kwargs", CANARY),
    ],
)
def test_what_looks_like_messages_and_cannot_be_read_is_refused(column: str, cell: str) -> None:
    rows: dict[str, dict[str, object]] = {
        "chosen": {"rejected": "b"},
        "prompt": {"completion": "b"},
        "completion": {"prompt": "a"},
        "messages": {},
        "tools": {"messages": [QUESTION]},
        "chat_template_kwargs": {"messages": [QUESTION]},
    }
    with pytest.raises(DataError, match="JSON text, or a Python literal") as caught:
        parsed({column: cell, **rows[column]})
    error = caught.value
    assert error.field == column
    assert CANARY not in f"{error} {error.hint} {error.__cause__} {error.__context__}"


def test_text_that_is_no_list_of_messages_stays_text() -> None:
    for text in ("[1] says so", '{"units": 5}', "[{'a': 1}]", "{role}", '["role"]'):
        assert parsed({"prompt": text, "completion": text}).texts == (text, text)


def test_an_empty_cell_is_none() -> None:
    chat = {"messages": [QUESTION, YES]}
    for empty in ("", " "):
        assert parsed({**chat, "tools": empty, "chat_template_kwargs": empty}) == parsed(chat)


def test_literals_are_values_of_json_and_nothing_else() -> None:
    assert parse_literal(" {'a': [None, True, -1, 2.5, 'x' 'y']}\n") == {
        "a": [None, True, -1, 2.5, "xy"]
    }
    for text in (
        "(1, 2)",
        "{1}",
        "b'a'",
        "{1: 2}",
        "{**{}}",
        "1 + 1",
        "...",
        "1j",
        "a",
        "",
        "[" * 5000,
        "\0",
    ):
        with pytest.raises(ValueError, match="not a Python literal"):
            parse_literal(text)
    with pytest.raises(ValueError, match="too long"):
        parse_literal(" " * (MAX_LITERAL_CHARACTERS + 1))


def test_an_escape_that_python_warns_of_is_read_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_literal(r"['\d']") == [r"\d"]


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        ),
        max_leaves=6,
    )
)
def test_what_python_writes_is_read_back(value: object) -> None:
    assert parse_literal(repr(value)) == value


def test_keys_of_messages_are_left_out_by_name_in_text_too() -> None:
    schema = RowSchema(ignored_message_keys=frozenset({"score"}))
    cell = repr([{**QUESTION, "score": 3}, {**YES, "score": 4}])
    row = parse_row(json.dumps({"messages": cell}).encode(), file="f", index=0, schema=schema)
    assert row == parsed({"messages": [QUESTION, YES]})
    assert row.ignored_keys == 2
