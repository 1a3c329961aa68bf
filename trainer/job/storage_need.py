"""Whether the ciphertext directory has room for what a job will write, asked before the first optimizer step.

Without this question a full volume shows after the training, when the result is sealed. The sizes come from the
worker, which is not trusted: a wrong number ends the job too early, or not until its result has to be sealed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from trainer.errors import ErrorCode, JobError
from trainer.ipc.worker_messages import OutputSize
from trainer.spec import JobSpec

_CHECKPOINT_BYTES: Final = 16
"""For each parameter: the adapter, the best one so far, and two moments of the optimizer, 4 bytes each."""
_ADAPTER_BYTES: Final = 4
_PADDING_PART: Final = 8  # an archive is padded by less than 12 %
_OTHER_BYTES: Final = 32 << 20
"""Report, logs, samples, receipt, evidence, and what sealing adds."""


def needed_bytes(spec: JobSpec, size: OutputSize) -> int:
    """Returns how many bytes the job writes into the ciphertext directory at most, at one time."""
    # A new checkpoint is complete before the oldest one is removed; without `save_steps` SIGTERM makes one.
    checkpoints = spec.train.save_total_limit + 1 if spec.train.save_steps is not None else 1
    adapter = size.trained_parameters
    content = (checkpoints * _CHECKPOINT_BYTES + _ADAPTER_BYTES) * adapter + size.copied_bytes
    return content + content // _PADDING_PART + _OTHER_BYTES


def require_room(folder: Path, spec: JobSpec, size: OutputSize, replaced_bytes: int) -> None:
    """Checks that the ciphertext directory has room for checkpoints and result.

    Args:
        folder: the ciphertext directory.
        spec: the job spec.
        size: what the sizes follow from.
        replaced_bytes: size of this job's checkpoints there, which newer ones replace. A failure report of an
            earlier start does not count: it goes only after the result that replaces it is complete.

    Raises:
        JobError: STORAGE_FULL: another start goes on once there is room.
    """
    needed = needed_bytes(spec, size)
    volume = os.statvfs(folder)
    found = volume.f_bavail * volume.f_frsize + replaced_bytes
    if found < needed:
        raise JobError(
            ErrorCode.STORAGE_FULL,
            "the ciphertext directory has no room for the checkpoints and the result",
            expected=f"{needed} bytes",
            found=f"{found} bytes",
            hint=f"the operator has to make room for {needed - found} bytes more and start the job again; "
            "then repeat the same command",
        )
