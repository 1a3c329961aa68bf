"""Progress of a command for a person who waits: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from trainer.cli.console import SafeConsole


class TerminalProgress:
    """Progress of a command on stderr: bars with a remaining time on a terminal, plain lines elsewhere.

    Use it as a context manager, which ends the current bar. All methods do nothing if `quiet`.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console = SafeConsole(stderr=True, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._last_tenth = -1

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_bar()

    def line(self, text: str) -> None:
        """Prints a plain line."""
        if not self.quiet:
            self._console.print(Text(text))

    def step(self, title: str) -> None:
        """Prints that a step begins."""
        self.end_bar()
        self.line(f"→ {title}")

    def bytes_done(self, label: str, done: int, total: int) -> None:
        """Shows the progress of a transfer, in bytes."""
        self._show(label, done, total, (DownloadColumn(), TransferSpeedColumn()))

    def steps_done(self, label: str, done: int, total: int) -> None:
        """Shows the progress of training, in optimizer steps."""
        self._show(label, done, total, (MofNCompleteColumn(),))

    def _show(self, label: str, done: int, total: int, columns: Sequence[ProgressColumn]) -> None:
        if self.quiet or not total:
            return
        if not self._console.is_terminal:
            # Not a terminal: a line for every tenth, so that a log stays short.
            tenth = 10 * done // total
            if tenth != self._last_tenth:
                self._last_tenth = tenth
                self._console.print(Text(f"  {label}: {done} of {total} ({100 * done // total} %)"))
            return
        if self._progress is None or self._task is None:
            self._progress = Progress(
                TextColumn("  {task.description}"),
                BarColumn(),
                *columns,
                TimeRemainingColumn(),
                console=self._console,
            )
            self._progress.start()
            self._task = self._progress.add_task(label, total=total)
        self._progress.update(self._task, description=label, completed=done, total=total)
        if done >= total:
            self.end_bar()

    def end_bar(self) -> None:
        """Ends the current bar and leaves it on the screen."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task, self._last_tenth = None, None, -1
