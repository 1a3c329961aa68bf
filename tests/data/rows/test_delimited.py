"""CSV and TSV as spreadsheets and data frames write them: separators, encodings, columns without a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.rows import CompletionRow, RowSchema, TextRow, read_rows
from trainer.errors import DataError, ErrorCode

CANARY = "canary-4be1d0"


def rows_of(
    folder: Path, name: str, content: bytes | str, schema: RowSchema | None = None
) -> list[object]:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_rows(folder / name, name=name, schema=schema or RowSchema()))


def refusal(folder: Path, name: str, content: bytes | str) -> DataError:
    with pytest.raises(DataError) as caught:
        rows_of(folder, name, content)
    error = caught.value
    assert CANARY not in f"{error} {error.expected} {error.found} {error.hint}"
    assert (error.__cause__, error.__context__) == (None, None)
    return error


@pytest.mark.parametrize("name", ["bays.csv", "bays.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_first_line_shows_another_separator(tmp_path: Path, name: str, separator: str) -> None:
    content = f'prompt{separator}completion\r\n"Which bay{separator} please?"{separator}Nine\r\n'
    assert rows_of(tmp_path, name, content) == [
        CompletionRow(name, 0, f"Which bay{separator} please?", "Nine")
    ]


def test_other_separators_in_cells_change_nothing(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "a.csv", "text\na;b\tc\n") == [TextRow("a.csv", 0, "a;b\tc")]
    assert rows_of(tmp_path, "b.csv", "prompt,completion\na;b,c;d\n") == [
        CompletionRow("b.csv", 0, "a;b", "c;d")
    ]
    assert rows_of(tmp_path, "c.csv", '"te\nxt"\na\n', RowSchema(columns={"text": "te\nxt"})) == [
        TextRow("c.csv", 0, "a")
    ]


def test_two_other_separators_are_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, "a.csv", f"prompt;completion\t{CANARY}\na;b\tc\n")
    assert (error.code, error.file) == (ErrorCode.DATASET_INVALID, "a.csv")
    assert (error.expected, error.found) == (
        "a first line with commas, or with one other separator",
        "semicolons and tabs",
    )


def test_utf16_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    content = "prompt\tcompletion\r\nFråga 🙂?\tSvar\r\n"
    for name, data in {
        "a.csv": content.encode("utf-16"),
        "b.tsv": b"\xfe\xff" + content.encode("utf-16-be"),
    }.items():
        assert rows_of(tmp_path, name, data) == [CompletionRow(name, 0, "Fråga 🙂?", "Svar")]


def test_other_encodings_are_named_by_their_place(tmp_path: Path) -> None:
    content = f"prompt,completion\nWhere is {CANARY}?,Here\nCafé?,Oui\n".encode("cp1252")
    error = refusal(tmp_path, "a.csv", content)
    assert (error.reason, error.found) == (
        "the file is not UTF-8",
        "something else at byte 3 of line 3",
    )
    assert "WINDOWS-1252" in (error.hint or "")


def test_utf16_that_ends_within_a_character_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, "a.csv", f"text\n{CANARY}\n".encode("utf-16")[:-1])
    assert error.expected == "UTF-16, as its byte order mark says"


def test_empty_columns_without_a_name_are_no_columns(tmp_path: Path) -> None:
    content = "prompt,completion,,\nWhich bay?,Nine,,\nWho?,Clerk,,\n"
    assert rows_of(tmp_path, "a.csv", content) == [
        CompletionRow("a.csv", 0, "Which bay?", "Nine"),
        CompletionRow("a.csv", 1, "Who?", "Clerk"),
    ]


def test_the_index_of_a_data_frame_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    content = ",prompt,completion\n0,Which bay?,Nine\n1,Who?,Clerk\n"
    error = refusal(tmp_path, "a.csv", content)
    assert (error.row, error.found) == (0, 'completion, prompt, the column ""')
    assert error.hint == 'leave out the index of a data frame with data.ignore_columns: [""]'
    found = rows_of(tmp_path, "a.csv", content, RowSchema(ignored=frozenset({""})))
    assert found == [
        CompletionRow("a.csv", 0, "Which bay?", "Nine"),
        CompletionRow("a.csv", 1, "Who?", "Clerk"),
    ]


def test_a_value_beside_the_named_columns_is_not_lost(tmp_path: Path) -> None:
    error = refusal(tmp_path, "a.csv", f"prompt,completion,\na,b,\nc,d,{CANARY}\n")
    assert (error.row, error.found) == (1, 'completion, prompt, the column ""')


def test_columns_of_one_name_are_numbered(tmp_path: Path) -> None:
    error = refusal(tmp_path, "a.csv", f"text,{CANARY},{CANARY}\na,b,c\n")
    assert (error.reason, error.found) == (
        "two columns have the same name",
        "the same name for columns 2 and 3",
    )


def test_utf16_without_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    error = refusal(tmp_path, "a.csv", f"text\n{CANARY}\n".encode("utf-16-le"))
    assert error.found == "something else with a zero character in line 1"
