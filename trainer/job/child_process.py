"""Starting and ending child processes: a clean environment, no inherited secrets, no stragglers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from trainer.sandbox.child_environment import INHERITED_VARIABLES

TERMINATE_SECONDS: Final = 10.0


def clean_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment for a child: a short allow list, and every place for temporary files inside `home`."""
    kept = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    places = {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, **places, "PYTHONUNBUFFERED": "1", **(extra or {})}


def start_module(
    module: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: IO[bytes],
    pass_fds: Sequence[int] = (),
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `python -m module` with stderr (and stdout, unless given) in a private log.

    `-I`-like isolation is not used because the package may be installed in place; `-P` keeps the working
    directory, which an operator may mount, off the import path.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=stdin,
        stdout=log if stdout is None else stdout,
        stderr=log,
        env=dict(environment),
        pass_fds=tuple(pass_fds),
        close_fds=True,
        start_new_session=True,
        cwd="/",
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate a child, by force after a while; returns when it is gone."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(TERMINATE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
