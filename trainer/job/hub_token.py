"""The operator's access token for a model hub: through a pipe, to the fetch process alone.

The token can change neither what is trained nor who gets it: the job spec pins every file by its digest.
"""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping
from typing import Final

from trainer.job.secret_pipe import is_job, read_pipe, start_again_with

HUB_TOKEN_VARIABLE: Final = "HF_TOKEN"  # noqa: S105 -- a name
HUB_TOKEN_PIPE_VARIABLE: Final = "TRAINER_HUB_TOKEN_PIPE"  # noqa: S105 -- a name
"""Number of the pipe's descriptor, for the process that starts itself again; no secret."""

MAX_HUB_TOKEN: Final = 512

_TOKEN: Final = re.compile(rf"[!-~]{{1,{MAX_HUB_TOKEN}}}")


def hide_hub_token() -> None:
    """Starts this program again without the token, if it runs a job and has one; returns otherwise."""
    if os.environ.get(HUB_TOKEN_VARIABLE) and is_job():
        token = os.environb.pop(HUB_TOKEN_VARIABLE.encode())
        # One more is refused as too long.
        start_again_with(token[: MAX_HUB_TOKEN + 1], HUB_TOKEN_PIPE_VARIABLE)


def take_hub_token(environment: MutableMapping[str, str]) -> str | None:
    """Returns the token that `hide_hub_token` put aside, once; None if there is none.

    Raises:
        UsageError: `hub-token-invalid`: it has not the form of a token.
    """
    from trainer.errors import ErrorCode, UsageError  # noqa: PLC0415 -- not before this program started again

    token = read_pipe(environment, HUB_TOKEN_PIPE_VARIABLE, MAX_HUB_TOKEN + 1)
    if token is None:
        return None
    # It becomes part of an HTTP header: a line break, for one, would add another header.
    if not _TOKEN.fullmatch(text := token.decode("latin-1")):
        raise UsageError(
            ErrorCode.HUB_TOKEN_INVALID,
            f"{HUB_TOKEN_VARIABLE} has not the form of a token",
            expected=f"1 to {MAX_HUB_TOKEN} printable ASCII characters without spaces",
            found="another text",
            hint="encrypt the token again; it is not shown here",
        )
    return text
