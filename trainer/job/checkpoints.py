"""Sealed checkpoints in the ciphertext directory: written during training, and searched when training starts.

The operator controls the directory. Removing a checkpoint, or restoring an older one of the same job, costs
computing time and changes no bit of the result. Any other file there fails to decrypt, and is skipped.
The file format is defined in `trainer.sealing.sealed_checkpoint`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trainer import logs
from trainer.atomic_files import open_regular_file
from trainer.errors import ErrorCode, SealingError, TrainerError
from trainer.ipc.worker_messages import FROM_WORKER
from trainer.job.ciphertext import CHECKPOINT_NAME
from trainer.job.tree_removal import remove_tree
from trainer.sealing.sealed_checkpoint import (
    CheckpointBinding,
    CheckpointKeys,
    open_checkpoint,
    seal_checkpoint,
)
from trainer.training.run_inputs import CHECKPOINT_FILES, CHECKPOINTS_DIR

_MAX_TRIED: Final = 100
"""Most files that are decrypted at a start: the operator may have put in any number of forged ones."""


@dataclass
class CheckpointStore:
    """The checkpoints of one job with one dataset.

    Args:
        folder: the ciphertext directory.
        keys: the checkpoint keys of this job with this dataset.
        binding: the digests that every checkpoint is bound to.
        save_total_limit: number of checkpoints to retain.
        publish: receives the public events.
    """

    folder: Path
    keys: CheckpointKeys
    binding: CheckpointBinding
    save_total_limit: int
    publish: Callable[[logs.PublicEvent], None]
    _own_steps: list[int] = field(default_factory=list, init=False)

    @property
    def last(self) -> int | None:
        """Step of the newest checkpoint that this process sealed or opened; None without one."""
        return self._own_steps[-1] if self._own_steps else None

    def own_bytes(self) -> int:
        """Returns the size of this job's checkpoints, which newer ones replace."""
        return sum(
            path.lstat().st_size for path in map(self.path, self._own_steps) if path.exists()
        )

    def path(self, step: int) -> Path:
        """Returns the file of a step's checkpoint."""
        return self.folder / f"checkpoint-{self.keys.label}-{step:016d}.age"

    def resume(self, into: Path) -> int | None:
        """Opens the newest valid checkpoint of this job into the new directory `into`.

        Returns:
            its step; None if there is none, so training starts at step 0.
        """
        steps, foreign_files = self._list_steps()
        for number, step in enumerate(steps[:_MAX_TRIED]):
            if self._opens(step, into):
                # Newer files that did not open are not counted: rotation must not delete a valid checkpoint
                # in favour of them.
                self._own_steps = steps[number:][::-1]
                self.publish(logs.Resumed(step))
                return step
        # An event for foreign files: the operator learns that another job's checkpoints are of no use here.
        if foreign_files:
            self.publish(logs.CheckpointRefused(ErrorCode.NO_IDENTITY_MATCH))
        if steps or foreign_files:
            self.publish(logs.StartsOver(len(steps) + foreign_files))
        return None

    def take(self, step: int, output: Path) -> None:
        """Seals the files that the worker wrote below `output` for a step, then removes them.

        An error of the storage is logged and published, and costs this checkpoint only: training continues.

        Raises:
            JobError: WORKER_DIED: the worker wrote something else, or changes it.
        """
        names = [f"{CHECKPOINTS_DIR}/{step}/{name}" for name in CHECKPOINT_FILES]
        target = self.path(step)
        try:
            size = seal_checkpoint(
                output, names, target, step=step, binding=self.binding, keys=self.keys
            )
            # A resumed job reaches steps again whose checkpoints it had skipped: each step is listed once.
            self._own_steps = [*(earlier for earlier in self._own_steps if earlier < step), step]
            self.publish(logs.CheckpointSealed(step, size))
            # Older files go only after the new one is complete: one valid checkpoint always exists.
            while len(self._own_steps) > self.save_total_limit:
                self.path(self._own_steps.pop(0)).unlink(missing_ok=True)
        except SealingError as error:
            # The worker changes what it saved, or left no state there. Where that breaks off can be seen on the
            # disk, and would be a number of its choice at each checkpoint.
            raise FROM_WORKER.violation(
                "what it saved is no state of a run", expected="files of one state", found=error
            ) from error
        except TrainerError as error:
            logs.log_error("a checkpoint was not sealed", error)
            self.publish(logs.CheckpointMissed(step, error.code))
        except OSError as error:
            logs.log_error("a checkpoint was not sealed", error)
            self.publish(logs.CheckpointMissed(step, ErrorCode.CHECKPOINT_INVALID))
        finally:
            # Plaintext in the workspace (RAM), also after an error.
            _remove_below(output, CHECKPOINTS_DIR, str(step))

    @staticmethod
    def drop(step: int, output: Path) -> None:
        """Removes what the worker wrote below `output` for a step, unsealed."""
        _remove_below(output, CHECKPOINTS_DIR, str(step))

    def _list_steps(self) -> tuple[list[int], int]:
        """Returns the steps of files named as this job's, newest first, and the number of other checkpoint files.

        A name proves nothing, since the operator can choose it: only decryption does.
        """
        names = [
            match
            for path in self.folder.iterdir()
            if (match := CHECKPOINT_NAME.fullmatch(path.name))
        ]
        ours = sorted(
            (int(match[2]) for match in names if match[1] == self.keys.label), reverse=True
        )
        return ours, len(names) - len(ours)

    def _opens(self, step: int, into: Path) -> bool:
        """Opens one checkpoint into `into`; returns False, after a public event, if it is not valid."""
        try:
            with open_regular_file(self.path(step)) as source:
                open_checkpoint(source, into, step=step, binding=self.binding, keys=self.keys)
        except (TrainerError, OSError) as error:
            logs.log_error("a checkpoint was refused", error)
            code = error.code if isinstance(error, TrainerError) else ErrorCode.CHECKPOINT_INVALID
            self.publish(logs.CheckpointRefused(code))
            return False
        return True


def _remove_below(folder: Path, name: str, entry: str) -> None:
    """Removes `folder/name/entry`, which another user created.

    The worker could replace `name` by a link and so have the supervisor, which may write to more directories,
    delete another tree. The descriptor is opened without following links, and deletion starts from it.
    """
    try:
        parent = os.open(folder / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        remove_tree(entry, dir_fd=parent)
    finally:
        os.close(parent)
