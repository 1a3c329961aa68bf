"""Several processes report what one does, in the same order; and they end with it, whatever happens."""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
from array import array
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.tokenizer_files import read_tokenizer
from trainer.data.rows import RowFile
from trainer.errors import DataError, ErrorCode, JobError, UnavailableError
from trainer.spec import JobSpec
from trainer.validation import row_processes
from trainer.validation.refusals import Refusals
from trainer.validation.row_processes import (
    BYTES_PER_PROCESS,
    CHUNKS_AHEAD,
    RowChunk,
    RowProcesses,
    choose_processes,
    read_chunks,
)
from trainer.validation.row_reports import RowReport, RowReporter
from trainer.validation.survey import Survey, survey


def spec(**sections: dict[str, Any]) -> JobSpec:
    model = {
        "model_name_or_path": "./m",
        "model_file_sha256": {"config.json": "0" * 64, "model.safetensors": "0" * 64},
    }
    document = {
        "version": 1,
        "model": model,
        "data": {"max_length": 60, "on_overlong": "drop"},
        **sections,
    }
    return JobSpec.model_validate_json(json.dumps(document))


@pytest.fixture(scope="module")
def tokens(tiny_model: Path) -> ModelTokenizer:
    return read_tokenizer(tiny_model)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_processes, "CHUNK_ROWS", 3)


def chat(number: int) -> dict[str, object]:
    answer = f"Answer {number}. " + "word " * (number % 30)
    return {
        "messages": [
            {"role": "user", "content": f"{number}?"},
            {"role": "assistant", "content": answer},
        ]
    }


def completion(number: int) -> dict[str, object]:
    return {"prompt": f"Question {number}?", "completion": ("yes", "no")[number % 2]}


def pair(number: int) -> dict[str, object]:
    return {
        "prompt": f"{number}?",
        "chosen": " yes" + " indeed" * (number % 20),
        "rejected": " no" * (number % 3),
    }


ROWS: dict[str, Callable[[int], dict[str, object]]] = {
    "chat": chat,
    "completion": completion,
    "dpo": pair,
    "kto": lambda number: {**completion(number), "label": number % 3 == 0},
    "text": lambda number: {"text": f"text {number} " + "word " * (number % 40)},
}


def write(path: Path, kind: str, count: int, *, bad: bool = True) -> Path:
    """Writes rows of a kind, some of them bad: not JSON, of another kind, without a value, and a copy."""
    lines = [json.dumps(ROWS[kind](number)) for number in range(count)]
    if bad:
        lines[2] = "no JSON"
        lines[5] = json.dumps({"text": None})
        lines[9] = json.dumps(ROWS["dpo" if kind in ("chat", "text", "completion") else "text"](1))
        lines[11] = lines[10]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def plain(value: object) -> object:
    """Returns a value as something that can be compared."""
    if isinstance(value, DataError):
        return type(value).__name__, vars(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, Refusals):
        return (
            value.codes,
            value.unrendered,
            [(plain(group.first), group.count, group.rows) for group in value.groups],
        )
    if type(value).__name__ in ("RowOutcomes", "RowRemarks"):
        return {name: plain(item) for name, item in vars(value).items()}
    return value


def numbers_of(found: Survey) -> dict[str, object]:
    return {each.name: plain(getattr(found, each.name)) for each in fields(found)}


MIX = {"data": {"max_length": 60, "on_overlong": "drop", "mix": {"a.jsonl": 1.5}}}
JUDGED = {"evaluation": {"metrics": ["exact_match"], "max_rows": 5}, "data": {"max_length": 60}}


@pytest.mark.parametrize(
    ("kind", "files", "sections"),
    [
        ("chat", {"a.jsonl": 40}, {}),
        ("chat", {"a.jsonl": 20, "b.jsonl": 13, "eval/c.jsonl": 12}, MIX),
        (
            "chat",
            {"a.jsonl": 40},
            {"data": {"max_rows": 17, "on_overlong": "error", "max_length": 60}},
        ),
        ("completion", {"a.jsonl": 40, "eval/b.jsonl": 30}, JUDGED),
        ("completion", {"a.jsonl": 40}, {**JUDGED, "data": {"test_split_size": 0.5}}),
        ("dpo", {"a.jsonl": 30}, {"train": {"method": "dpo"}}),
        ("kto", {"a.jsonl": 30}, {"train": {"method": "kto"}}),
        ("text", {"a.jsonl": 30, "b.jsonl": 12}, {"privacy": {"canaries": 4}}),
    ],
    ids=["chat", "mix", "max_rows", "tasks", "drawn tasks", "dpo", "kto", "canaries"],
)
def test_the_number_of_processes_changes_nothing(
    tmp_path: Path,
    tokens: ModelTokenizer,
    kind: str,
    files: dict[str, int],
    sections: dict[str, Any],
) -> None:
    paths = {name: write(tmp_path / name, kind, count) for name, count in files.items()}
    one, two = (
        survey(paths, spec(**sections), tokens, example=4, processes=count) for count in (1, 2)
    )
    assert one.refusals.codes.total() >= 3
    assert one.shown is not None
    assert numbers_of(one) == numbers_of(two)
    named = [group.rows for group in one.refusals.groups]
    assert named == [sorted(rows) for rows in named], "in the order of the rows"


def test_tables_and_side_files_too(tmp_path: Path, tokens: ModelTokenizer) -> None:
    table = tmp_path / "a.csv"
    table.write_text("text\n" + "".join(f"row {number}\n" for number in range(20)) + '""\n')
    (empty := tmp_path / "b.jsonl").write_text("")
    (broken := tmp_path / "c.jsonl.gz").write_bytes(b"no gzip")
    (readme := tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    paths = {path.name: path for path in (table, empty, broken, readme)}
    one, two = (survey(paths, spec(), tokens, processes=count) for count in (1, 2))
    assert one.refusals.codes.total() == 3
    assert numbers_of(one) == numbers_of(two)


def test_a_token_outside_the_embedding_is_refused_and_counted_nowhere_else(
    tmp_path: Path, tiny_model: Path
) -> None:
    small = read_tokenizer(tiny_model)
    paths = {"a.jsonl": write(tmp_path / "a.jsonl", "text", 12, bad=False)}
    small.vocabulary = max(small.ids("text 0"))  # smaller than what the rows need
    one, two = (survey(paths, spec(), small, processes=count) for count in (1, 2))
    assert one.refusals.codes["model-invalid"] > 0
    assert numbers_of(one) == numbers_of(two)


def test_little_data_is_encoded_by_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small := tmp_path / "a").write_bytes(bytes(2 * BYTES_PER_PROCESS - 1))
    (large := tmp_path / "b").write_bytes(bytes(3 * BYTES_PER_PROCESS))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert [choose_processes(files) for files in ([small], [large], [small, large])] == [1, 3, 4]
    monkeypatch.setattr("sys.platform", "darwin")
    assert choose_processes([large]) == 1


class _Reporter(RowReporter):
    """Reports what a test wants of raw rows."""

    def __init__(self) -> None:
        """Needs no job."""

    def report(
        self, file: RowFile, raw_rows: Any, *, first: int, number: int, thread: Any
    ) -> Iterator[RowReport]:
        for row in raw_rows:
            if row == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if row == "hang":
                signal.pause()
            if row == "raise":
                raise JobError(ErrorCode.MODEL_INVALID, "no template", expected="one", found=0)
            yield RowReport(None)


def chunks_of(*rows: str) -> Iterator[RowChunk]:
    file = RowFile("a", Path("a"))
    for number, row in enumerate(rows):
        chunk = row_processes._next_chunk(iter([row]), file, number, number)
        assert chunk is not None
        yield chunk


def test_a_process_that_is_killed_is_an_error_and_ends_the_others() -> None:
    with (
        RowProcesses(_Reporter(), 2) as running,
        pytest.raises(UnavailableError, match="before its time"),
    ):
        list(running.reports(chunks_of("hang", *["row"] * 3, "kill", *["row"] * 9)))
    assert not multiprocessing.active_children()


def test_an_error_that_is_no_rows_comes_as_it_was_raised() -> None:
    with RowProcesses(_Reporter(), 2) as running, pytest.raises(JobError) as caught:
        list(running.reports(chunks_of("row", "raise")))
    assert str(caught.value) == "no template: expected one, got 0"


def test_an_interrupt_ends_all_processes() -> None:
    def interrupted() -> Iterator[RowChunk]:
        yield from chunks_of("hang")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), RowProcesses(_Reporter(), 2) as running:
        list(running.reports(interrupted()))
    assert not multiprocessing.active_children()


def test_the_processes_end_when_the_one_that_started_them_is_killed() -> None:
    reading, writing = os.pipe()

    def start() -> None:
        with RowProcesses(_Reporter(), 2):
            os.write(writing, b"1")
            signal.pause()

    parent = multiprocessing.get_context("fork").Process(target=start)
    parent.start()
    os.close(writing)
    assert os.read(reading, 1) == b"1"
    parent.kill()
    parent.join()
    assert select.select([reading], [], [], 20)[0], "a process still has the other end of the pipe"
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_no_more_chunks_are_read_than_may_wait(tmp_path: Path) -> None:
    read = array("i")

    def counted() -> Iterator[RowChunk]:
        for number, chunk in enumerate(chunks_of(*["row"] * 40)):
            read.append(number)
            yield chunk

    with RowProcesses(_Reporter(), 2) as running:
        for taken, _ in enumerate(running.reports(counted())):
            assert len(read) - taken <= CHUNKS_AHEAD * 2 + 2


def test_chunks_end_by_rows_and_by_bytes_and_hold_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", "text", 7, bad=False) for name in "ab"]
    files = [RowFile(path.name, path) for path in paths]

    def places() -> list[tuple[str, int, int, int]]:
        chunks = list(read_chunks(files, lambda _: None))
        lines = b"".join(
            line for chunk in chunks for line in chunk.raw_rows() if isinstance(line, bytes)
        )
        assert lines == b"".join(path.read_bytes() for path in paths)
        return [(chunk.file.name, chunk.first, chunk.number, chunk.count) for chunk in chunks]

    starts = [(0, 3), (3, 3), (6, 1)]
    assert places() == [
        *[("a.jsonl", first, first, count) for first, count in starts],
        *[("b.jsonl", first, 7 + first, count) for first, count in starts],
    ]
    monkeypatch.setattr(row_processes, "CHUNK_BYTES", 1)
    assert len(places()) == 14
