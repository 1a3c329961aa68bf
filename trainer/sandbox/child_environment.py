"""The environment variables that a child process starts with, and the memory allocator that they can name.

The operator chooses the variables of the container, and some of them load code (`LD_PRELOAD`, `PYTHONSTARTUP`) or
redirect traffic (`HTTPS_PROXY`). A child therefore inherits only the variables of a short list.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Final

INHERITED_VARIABLES: Final = frozenset(
    {
        "PATH",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "LD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
    }
)
"""The variables that a child inherits from the process that starts it, where they are set."""

ALLOCATOR_LIBRARY: Final = "libtcmalloc_minimal.so.4"
"""gperftools' allocator without its profilers: Debian's package `libtcmalloc-minimal4`."""

_LIBRARY_FOLDERS: Final = tuple(
    Path("/usr") / folder
    for folder in (f"lib/{sysconfig.get_config_var('MULTIARCH')}", "lib64", "lib")
)


def allocator_variables(folders: Sequence[Path] = _LIBRARY_FOLDERS) -> dict[str, str]:
    """Returns the variables that give a process tcmalloc; empty where the system does not have it.

    A training step on a CPU makes about two thousand aligned allocations of about one MiB. glibc's malloc spends
    5 % of the step on searching its free lists, while all threads but one wait.
    Measured in docs/decisions/0003-training-loop.md.

    Args:
        folders: directories to look for the library in, in this order.
    """
    library = next(
        (path for folder in folders if (path := folder / ALLOCATOR_LIBRARY).is_file()), None
    )
    if library is None:
        return {}
    # The threshold switches tcmalloc's reports of large allocations off: they would fill the private log.
    return {"LD_PRELOAD": str(library), "TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD": str(2**62)}


def allocator_in_use() -> str:
    """Returns the name of this process's allocator: `tcmalloc` or `system`."""
    return (
        "tcmalloc"
        if ALLOCATOR_LIBRARY in Path("/proc/self/maps").read_text("utf-8", "replace")
        else "system"
    )
