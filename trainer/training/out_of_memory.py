"""Distinguishes an exhausted memory from the other errors that the libraries raise."""

from __future__ import annotations

import torch

from trainer.errors import ErrorCode, JobError


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that memory is exhausted."""
    # On a CPU torch raises a plain RuntimeError: "[enforce fail at alloc_cpu.cpp] ... can't allocate memory".
    cpu_allocator_failed = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return cpu_allocator_failed or isinstance(error, MemoryError | torch.OutOfMemoryError)


def raise_if_out_of_memory(error: BaseException) -> None:
    """Raises a `JobError` where `error` means that memory is exhausted; returns otherwise.

    Raises:
        JobError: `OUT_OF_MEMORY`.
    """
    if is_out_of_memory(error):
        raise JobError(
            ErrorCode.OUT_OF_MEMORY,
            "the memory does not suffice, not even for one row at once",
            hint="lower data.max_length, or set train.gradient_checkpointing to true",
        ) from error
