"""Progress of a command for a person who waits: a line that moves on a terminal, few plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from trainer.cli.safe_console import SafeConsole

if TYPE_CHECKING:
    from trainer.models import Status

_BAR_COLUMNS: Final = 10
"""Columns of a bar on the narrowest terminal; it grows with the terminal, up to rich's own 40."""
_LIVE_METRICS: Final = ("loss", "eval loss")
"""Metrics that the moving line has room for."""


class TerminalProgress:
    """Progress of a command: one moving line on a terminal, plain lines elsewhere.

    Use it as a context manager, which ends the current line. All methods do nothing if `quiet`.

    Args:
        quiet: whether to print nothing.
        on_stdout: whether progress is what the command prints, rather than what it says on stderr beside a result.
    """

    def __init__(self, *, quiet: bool = False, on_stdout: bool = False) -> None:
        self.quiet = quiet
        self._console = SafeConsole(stderr=not on_stdout, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._label = ""
        self._last_tenth = -1
        self._metrics: dict[str, str] = {}

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

    def phase(self, text: str) -> None:
        """Prints that the job entered a phase; the moving line stays as it was."""
        self.end_bar()
        self.line(f"  {text}")

    def bytes_done(self, label: str, done: int, total: int) -> None:
        """Shows the progress of a transfer, in bytes."""
        self._show(
            label, done, total, (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        )
        if done >= total and self._console.is_terminal:
            self.end_bar()

    def training(self, status: Status) -> None:
        """Shows how far a job in the phase `training` is: what it does before its first step, then its steps."""
        from trainer.durations import describe_duration
        from trainer.provider import describe_training

        activity, left = status.activity, status.eta_seconds
        if activity is not None and not self._console.is_terminal:
            self.line(f"  {describe_training(status)}")
            return
        note = {} if activity is not None else dict(self._metrics)
        if left:
            note["left"] = f"{describe_duration(left)} left"
        if activity is None:
            self._show("training", status.step, status.total_steps, (MofNCompleteColumn(),), note)
        else:
            self._show(activity.value, status.percent or 0, 100, (), note)

    def metrics(self, values: Mapping[str, str]) -> None:
        """Shows private metrics of an optimizer step, name → value: in the moving line, or as a line."""
        found = self._metrics | {name: f"{name} {value}" for name, value in values.items()}
        self._metrics = {name: found[name] for name in _LIVE_METRICS if name in found}
        if not self._console.is_terminal:
            self.line("  " + "  ".join(f"{name} {value}" for name, value in values.items()))
        elif self._progress is not None and self._task is not None and self._label == "training":
            left = self._progress.tasks[0].fields["note"].get("left")
            self._progress.update(
                self._task, note={**self._metrics, **({"left": left} if left else {})}
            )

    def _show(
        self,
        label: str,
        done: int,
        total: int,
        columns: Sequence[ProgressColumn],
        note: Mapping[str, str] | None = None,
    ) -> None:
        if self.quiet or not total:
            return
        if not self._console.is_terminal:
            # A line for every tenth, so that a log stays short.
            tenth = 10 * done // total
            if tenth != self._last_tenth:
                self._last_tenth = tenth
                self._console.print(Text(f"  {label}: {done} of {total} ({100 * done // total} %)"))
            return
        if label != self._label:
            self.end_bar()
        if self._progress is None or self._task is None:
            width = max(_BAR_COLUMNS, min(40, self._console.width - 70))
            shown = TextColumn("  {task.description}"), BarColumn(width), *columns, _NoteColumn()
            self._progress = Progress(*shown, console=self._console)
            self._progress.start()
            self._label, self._task = label, self._progress.add_task(label, total=total, note={})
        self._progress.update(self._task, completed=done, total=total, note=dict(note or {}))

    def end_bar(self) -> None:
        """Ends the moving line and leaves it on the screen."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task, self._label, self._last_tenth = None, None, "", -1


class _NoteColumn(TextColumn):
    """The values of the task's field `note`, in their order."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        return Text("  ".join(task.fields["note"].values()))
