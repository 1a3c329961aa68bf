"""The operator's access token for a model hub: out of the environment first, then to the fetch process alone.

Any process of the same user can read the environment that a process was started with, as long as it runs
(/proc/PID/environ, proc(5)); changing the environment from inside does not change that file. So `trainer run` with
a token starts itself again without it, before it imports anything, and the token waits in a pipe.

The token can change neither what is trained nor who gets it: the job spec pins every file by its digest.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

HUB_TOKEN_VARIABLE: Final = "HF_TOKEN"  # noqa: S105 -- a name
HUB_TOKEN_PIPE_VARIABLE: Final = "TRAINER_HUB_TOKEN_PIPE"  # noqa: S105 -- a name
"""Number of the pipe's descriptor, for the process that starts itself again; no secret."""

MAX_HUB_TOKEN: Final = 512

_TOKEN: Final = re.compile(rf"[!-~]{{1,{MAX_HUB_TOKEN}}}")


def hide_hub_token() -> None:
    """Starts this program again without the token, if it runs a job and has one; returns otherwise."""
    if not os.environ.get(HUB_TOKEN_VARIABLE) or "run" not in sys.argv[1:]:
        return
    token = os.environb.pop(HUB_TOKEN_VARIABLE.encode())
    reading, writing = os.pipe()
    os.write(writing, token[: MAX_HUB_TOKEN + 1])  # far less than a pipe holds; one more is refused as too long
    os.close(writing)
    os.set_inheritable(reading, True)
    os.environ[HUB_TOKEN_PIPE_VARIABLE] = str(reading)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 -- no shell is wanted


def take_hub_token(environment: MutableMapping[str, str]) -> str | None:
    """Returns the token that `hide_hub_token` put aside, once; None if there is none.

    Raises:
        UsageError: `hub-token-invalid`: it has not the form of a token.
    """
    from trainer.errors import ErrorCode, UsageError  # noqa: PLC0415 -- not before this program started again

    number = environment.pop(HUB_TOKEN_PIPE_VARIABLE, "")
    if not re.fullmatch("[0-9]{1,4}", number):
        return None
    token = b""
    with suppress(OSError):  # the operator can set the variable: then it may name anything
        if stat.S_ISFIFO(os.fstat(int(number)).st_mode):
            with open(int(number), "rb") as pipe:  # noqa: PTH123 -- a descriptor
                token = pipe.read(MAX_HUB_TOKEN + 1)
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
