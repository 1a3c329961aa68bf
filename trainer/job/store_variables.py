"""How the operator's object store is reached: a closed list of variables, for the sync process alone.

None of them can change what is trained or who gets it: nobody trusts the store, which carries ciphertext and
public documents.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Final

from trainer.exchange.object_store import STORE_VARIABLES
from trainer.job.secret_pipe import is_job, read_pipe, start_again_with

STORE_PIPE_VARIABLE: Final = "TRAINER_STORE_PIPE"
"""Number of the pipe's descriptor, for the process that starts itself again; no secret."""

_MAX_BYTES: Final = 16 << 10


def hide_store_variables() -> None:
    """Starts this program again without the variables, if it runs a job and has any; returns otherwise."""
    if is_job() and any(os.environ.get(name) for name in STORE_VARIABLES):
        values = [os.environb.pop(name.encode(), b"") for name in STORE_VARIABLES]
        start_again_with(b"\0".join(values)[:_MAX_BYTES], STORE_PIPE_VARIABLE)


def take_store_variables(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Returns the variables that `hide_store_variables` put aside, once. Their form has not been checked."""
    values = (read_pipe(environment, STORE_PIPE_VARIABLE, _MAX_BYTES) or b"").split(b"\0")
    named = zip(STORE_VARIABLES, values, strict=False)
    return {name: value.decode("latin-1") for name, value in named if value}
