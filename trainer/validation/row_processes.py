"""Encodes rows in several processes, and yields their reports in the order of the rows.

Processes are forked before anything runs in a thread, and each has one chunk of rows at a time. So nobody waits
for a full pipe while the other side does, and a process that ends before its time is seen at once: its pipe is
closed.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from trainer.data.examples.tokenizer_thread import TokenizerThread
from trainer.data.rows import RawRow, RowFile, read_raw_rows
from trainer.errors import ErrorCode, UnavailableError
from trainer.validation.row_reports import RowReport, RowReporter

CHUNK_ROWS: Final = 128
CHUNK_BYTES: Final = 1 << 18
"""A chunk ends after so many rows, or when they have so many bytes."""

CHUNKS_AHEAD: Final = 3
"""Chunks of each process that are encoded, or wait for their turn, while an earlier one is not yet."""

GC_THRESHOLD: Final = 1 << 16
"""Objects after which cycles are looked for: more than a chunk of rows, which is no cycle, has at a time."""

BYTES_PER_PROCESS: Final = 1 << 20
"""A process must have this many bytes of files to read, to be worth its start."""


def choose_processes(files: Iterable[Path]) -> int:
    """Returns how many processes encode some files: one for each core, or 1, which is this one, for little data.

    Elsewhere than on Linux it is 1: what macOS's libraries start does not survive a fork, and Windows has none.
    """
    if sys.platform != "linux":
        return 1
    size = sum(path.stat().st_size for path in files)
    return max(1, min(len(os.sched_getaffinity(0)), size // BYTES_PER_PROCESS))


@dataclass(frozen=True, slots=True)
class RowChunk:
    """Some rows of a file, one after the other.

    Attributes:
        file: the file.
        first: index in the file of the first row.
        number: its index over all rows.
        count: number of rows.
        pickled: the raw rows, each pickled after the one before it.
    """

    file: RowFile
    first: int
    number: int
    count: int
    pickled: bytes

    def raw_rows(self) -> Iterator[RawRow]:
        """Yields the rows, unparsed."""
        unpickler = pickle.Unpickler(BytesIO(self.pickled))  # noqa: S301 -- of this program's own making
        for _ in range(self.count):
            yield unpickler.load()


def read_chunks(
    files: Iterable[RowFile], on_bytes_read: Callable[[int], None]
) -> Iterator[RowChunk]:
    """Reads files in chunks; no chunk has rows of two files."""
    number = 0
    for file in files:
        first = 0
        rows = read_raw_rows(file, on_bytes_read)
        while chunk := _next_chunk(rows, file, first, number):
            yield chunk
            first, number = first + chunk.count, number + chunk.count


def _next_chunk(rows: Iterator[RawRow], file: RowFile, first: int, number: int) -> RowChunk | None:
    buffer, count = BytesIO(), 0
    pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    for row in rows:
        pickler.dump(row)
        count += 1
        if count == CHUNK_ROWS or buffer.tell() >= CHUNK_BYTES:
            break
    return RowChunk(file, first, number, count, buffer.getvalue()) if count else None


@contextmanager
def open_reports(
    files: Sequence[RowFile],
    reporter: RowReporter,
    processes: int,
    on_bytes_read: Callable[[int], None],
) -> Iterator[Iterator[RowReport]]:
    """Starts the processes, and ends them with the block.

    Args:
        files: the files, in the order of their rows.
        reporter: parses and encodes rows.
        processes: number of processes; 1 is this one.
        on_bytes_read: called with the number of further bytes that were read.

    Yields:
        What became of each row, in order.
    """
    if processes == 1:
        yield _report_files(files, reporter, on_bytes_read)
        return
    with RowProcesses(reporter, processes) as running:
        yield running.reports(read_chunks(files, on_bytes_read))


def _report_files(
    files: Iterable[RowFile], reporter: RowReporter, on_bytes_read: Callable[[int], None]
) -> Iterator[RowReport]:
    count = 0
    with closing(TokenizerThread()) as thread:
        for file in files:
            rows = read_raw_rows(file, on_bytes_read)
            for report in reporter.report(file, rows, first=0, number=count, thread=thread):
                yield report
                count += 1


class RowProcesses:
    """Processes that report rows; a context manager that ends them.

    Args:
        reporter: what each of them does.
        processes: their number.
    """

    def __init__(self, reporter: RowReporter, processes: int) -> None:
        self._children: dict[Connection, BaseProcess] = {}
        context = multiprocessing.get_context("fork")
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, reporter, [*self._children, ours]), daemon=True
            )
            process.start()
            # Without this end of the pipe here, the end of the process closes it.
            theirs.close()
            self._children[ours] = process

    def __enter__(self) -> RowProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        for connection, process in self._children.items():
            process.terminate()
            process.join()
            connection.close()

    def reports(self, chunks: Iterator[RowChunk]) -> Iterator[RowReport]:
        """Yields what became of each row, in order.

        Raises:
            UnavailableError: a process ended before its time.
            Exception: whatever a process raised.
        """
        most = CHUNKS_AHEAD * len(self._children)
        idle = list(self._children)
        working: dict[Connection, int] = {}
        finished: dict[int, list[RowReport]] = {}
        sent = taken = 0
        chunk = next(chunks, None)
        while chunk is not None or working or finished:
            while chunk is not None and idle and sent - taken < most:
                connection = idle.pop()
                _send(connection, chunk)
                working[connection], sent = sent, sent + 1
                chunk = next(chunks, None)
            if taken in finished:
                yield from finished.pop(taken)
                taken += 1
                continue
            for ready in wait(list(working)):
                if isinstance(ready, Connection):
                    finished[working.pop(ready)] = _receive(ready)
                    idle.append(ready)


def _send(connection: Connection, chunk: RowChunk) -> None:
    try:
        connection.send(chunk)
    except OSError:
        raise _ended() from None


def _receive(connection: Connection) -> list[RowReport]:
    try:
        result: list[RowReport] | Exception = connection.recv()
    except (EOFError, OSError):
        raise _ended() from None
    if isinstance(result, Exception):
        raise result
    return result


def _ended() -> UnavailableError:
    return UnavailableError(
        ErrorCode.OUT_OF_MEMORY,
        "a process that tokenises rows ended before its time",
        expected="it to report all of its rows",
        found="none of them",
        hint="the system may have ended it for want of memory: close other programs and try again",
    )


def _serve(connection: Connection, reporter: RowReporter, inherited: Iterable[Connection]) -> None:
    """Reports chunks until the other end of the pipe is closed."""
    # With a copy of the other end here, the pipe would outlive the process that has it.
    for other in inherited:
        other.close()
    gc.freeze()  # what is here already stays; to look through it would copy the memory that is shared
    gc.set_threshold(GC_THRESHOLD)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    # The cores are busy with the other processes.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with closing(TokenizerThread()) as thread, suppress(EOFError):
        while True:
            chunk: RowChunk = connection.recv()
            try:
                reports = reporter.report(
                    chunk.file,
                    chunk.raw_rows(),
                    first=chunk.first,
                    number=chunk.number,
                    thread=thread,
                )
                result: object = list(reports)
            except Exception as error:  # noqa: BLE001 -- raised again by the other process
                result = error
            connection.send(result)
