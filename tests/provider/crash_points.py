"""Ends a process before its n-th change of a directory, as SIGKILL does: nothing is cleaned up."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

CRASHED: Final = 77
_CHANGES: Final = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
}


def crash_before(change: int, folder: Path, run: Callable[[], object]) -> bool:
    """Runs something in a fork, which ends before its `change`-th change below `folder`; whether there was one.

    Raises:
        AssertionError: it ended in another way than by the crash or by itself.
    """
    if (pid := os.fork()) == 0:
        _run(change, str(folder), run)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in {0, CRASHED}
    return code == CRASHED


def _run(change: int, folder: str, run: Callable[[], object]) -> NoReturn:
    seen = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in _CHANGES or (event == "open" and _writes(arguments[2])):
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(folder):
                seen += 1
                if seen == change:
                    os._exit(CRASHED)

    code = 1
    try:
        sys.addaudithook(count)
        run()
        code = 0
    except BaseException:  # noqa: BLE001 -- whatever it is, the fork ends here
        traceback.print_exc()
    finally:
        os._exit(code)


def _writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
