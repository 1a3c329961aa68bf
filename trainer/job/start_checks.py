"""What is wrong with the directories and the socket that the operator names, said before anything is started.

Nothing private exists yet, so the operator gets the message with the name, the owner and what to do. Once the
processes run, the same faults would show as a public code alone.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from trainer.errors import ErrorCode, UnavailableError, UsageError
from trainer.job.sandbox_plans import can_separate_users

_SOCKETS: Final = tuple(
    Path(path)
    for path in (
        "/var/run/dstack.sock",
        "/run/dstack.sock",
        "/var/run/dstack/dstack.sock",
        "/run/dstack/dstack.sock",
    )
)
"""The places of the guest agent's socket, in the order in which dstack's SDK looks there."""


def require_usable_directory(path: Path) -> None:
    """Creates a directory if it is missing, and checks that this process can use it.

    Raises:
        UsageError: it cannot be created, read, written or shared.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        os.listdir(path)  # noqa: PTH208 -- the cheapest question
        if can_separate_users():
            # The front is another user, which gets the directory's group: only the owner may set the mode.
            path.chmod(stat.S_IMODE(path.stat().st_mode))
    except OSError as error:
        raise UsageError(
            ErrorCode.USAGE,
            f"the directory {path} for uploads and results cannot be used: {error.strerror}",
            expected=f"a directory that user {os.geteuid()} owns and may write to",
            found=_describe(path),
            hint=f"make it with `install -d -o {os.geteuid()} DIR`, or mount a volume there",
        ) from error


def require_usable_socket(named: str | None) -> None:
    """Checks that this process may connect to the guest agent's socket, if there is one.

    Args:
        named: path that the operator named; None looks in dstack's places.

    Raises:
        UnavailableError: `guest-agent-unavailable`: it is another user's, or no socket.
    """
    places = (Path(named),) if named is not None else _SOCKETS
    path = next((place for place in places if place.exists()), None)
    if path is None or (path.is_socket() and os.access(path, os.R_OK | os.W_OK)):
        return  # without one, connecting reports it
    raise UnavailableError(
        ErrorCode.GUEST_AGENT_UNAVAILABLE,
        f"the guest agent's socket {path} cannot be used",
        expected=f"a socket that user {os.geteuid()} may read and write",
        found=_describe(path),
        hint="run the job as root, as the image does, or give this user access to the socket",
    )


def _describe(path: Path) -> str:
    """Returns kind, owner and mode of what is there."""
    try:
        found = path.stat()
    except OSError as error:
        return error.strerror or type(error).__name__
    kind = "directory" if path.is_dir() else "socket" if path.is_socket() else "file"
    return f"a {kind} of user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}"
