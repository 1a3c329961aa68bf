"""Where an opened result, and what belongs to it, lies beside OUTPUT."""

from __future__ import annotations

from pathlib import Path

from trainer.provider.receipt_record import record_directory


def failure_path(output: Path, number: int) -> Path:
    """Returns where the failure report with a number belongs."""
    return output.with_name(f"{output.name}.failure-{number}")


def result_paths(folder: Path) -> tuple[Path, Path, Path]:
    """Returns where an opened result, the job's deletion statement and the record of it belong."""
    return folder, deletion_path(folder), record_directory(folder)


def deletion_path(folder: Path) -> Path:
    """Returns where the deletion statement of an opened result belongs: beside it."""
    return folder.with_name(f"{folder.name}.deletion.json")
