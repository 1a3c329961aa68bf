"""Sealed checkpoints in the ciphertext directory: made while training goes on, looked for when it begins.

Whoever keeps the directory can remove checkpoints, or put an older one of the same job back: that costs work, and
changes no bit of the result. Whatever else is put there does not open, and is passed over.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trainer import logs
from trainer.errors import ErrorCode, SealingError, TrainerError
from trainer.sealing.sealed_checkpoint import CheckpointBinding, CheckpointKeys, open_checkpoint, seal_checkpoint
from trainer.training.run_inputs import CHECKPOINT_FILES, CHECKPOINTS_DIR

_NAME: Final = re.compile(r"checkpoint-([0-9a-f]{16})-([0-9]{16})\.age")
_MAX_TRIED: Final = 100


@dataclass
class Checkpoints:
    """Those of one job with one dataset.

    Args:
        folder: the ciphertext directory.
        keys: of this job with this dataset.
        binding: what the checkpoints are of.
        keep: so many stay.
        tell: gets public events.
    """

    folder: Path
    keys: CheckpointKeys
    binding: CheckpointBinding
    keep: int
    tell: Callable[[logs.PublicEvent], None]
    _ours: list[int] = field(default_factory=list, init=False)

    @property
    def last(self) -> int | None:
        """Step of the newest that is known to be good."""
        return self._ours[-1] if self._ours else None

    def path(self, step: int) -> Path:
        """The file of a step's checkpoint."""
        return self.folder / f"checkpoint-{self.keys.label}-{step:016d}.age"

    def resume(self, into: Path) -> int | None:
        """Open the newest checkpoint that is whole and this job's into a new directory; returns its step."""
        steps, strangers = self._found()
        for number, step in enumerate(steps[:_MAX_TRIED]):
            if self._opens(step, into):
                self._ours = steps[number:][::-1]
                self.tell(logs.Resumed(step))
                return step
        if strangers:
            self.tell(logs.CheckpointRefused(ErrorCode.NO_IDENTITY_MATCH))
        if steps or strangers:
            self.tell(logs.Resumed(0))
        return None

    def take(self, step: int, output: Path) -> None:
        """Seal what the worker wrote below `output`, and remove that; a failure costs this checkpoint only."""
        names = [f"{CHECKPOINTS_DIR}/{step}/{name}" for name in CHECKPOINT_FILES]
        target = self.path(step)
        try:
            size = seal_checkpoint(output, names, target, step=step, binding=self.binding, keys=self.keys)
            self._ours = [*(earlier for earlier in self._ours if earlier < step), step]
            self.tell(logs.CheckpointSealed(step, size))
            self._rotate()
        except TrainerError as error:
            logs.private.exception("a checkpoint was not sealed")
            self.tell(logs.CheckpointMissed(step, error.code))
        except OSError:
            logs.private.exception("a checkpoint was not sealed")
            self.tell(logs.CheckpointMissed(step, ErrorCode.CHECKPOINT_INVALID))
        finally:
            _remove_below(output, CHECKPOINTS_DIR, str(step))

    def remove(self) -> None:
        """Remove all of this job's: it is done."""
        for step in self._found()[0]:
            self.path(step).unlink(missing_ok=True)

    def _rotate(self) -> None:
        while len(self._ours) > self.keep:
            self.path(self._ours.pop(0)).unlink(missing_ok=True)

    def _found(self) -> tuple[list[int], int]:
        """Steps of files with this job's names, the last first; and how many others there are."""
        names = [match for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        ours = sorted((int(match[2]) for match in names if match[1] == self.keys.label), reverse=True)
        return ours, len(names) - len(ours)

    def _opens(self, step: int, into: Path) -> bool:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(self.path(step), flags), "rb", buffering=0) as source:  # noqa: PTH123 -- a descriptor
                if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
                    raise SealingError(ErrorCode.CHECKPOINT_INVALID, "not a regular file")
                open_checkpoint(source, into, step=step, binding=self.binding, keys=self.keys)
        except (TrainerError, OSError) as error:
            logs.private.exception("a checkpoint was refused")
            code = error.code if isinstance(error, TrainerError) else ErrorCode.CHECKPOINT_INVALID
            self.tell(logs.CheckpointRefused(code))
            return False
        return True


def _remove_below(folder: Path, name: str, entry: str) -> None:
    """Remove `folder/name/entry`, which another user made: no link on the way is followed."""
    try:
        at = os.open(folder / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        shutil.rmtree(entry, ignore_errors=True, dir_fd=at)
    finally:
        os.close(at)
