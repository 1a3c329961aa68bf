"""The memory limit of the container, from its control group: one that is too small is reported at the start.

Otherwise the kernel kills one of the job's processes sooner or later, and the public log just ends.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from trainer.errors import ErrorCode, JobError

LEAST_MEMORY_BYTES: Final = 512 << 20
"""A floor for what the processes take beside a model: 370 MiB were measured on a CPU, waiting for a dataset."""

CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
_OWN_CGROUP: Final = Path("/proc/self/cgroup")
_V1_LIMIT: Final = "memory/memory.limit_in_bytes"
_MIB: Final = 1 << 20


def own_cgroup(root: Path = CGROUP_ROOT, own: Path = _OWN_CGROUP) -> Path:
    """Returns the directory of this process's control group (cgroups(7)); `root` where it is unknown.

    Args:
        root: where the version 2 hierarchy is mounted.
        own: the file that names the group, `0::/PATH`.
    """
    try:
        found = re.search(r"(?m)^0::(/.*)$", own.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    # The path is relative to the root of the cgroup namespace; outside of it, it begins with `..`.
    path = root / found[1].lstrip("/") if found is not None and ".." not in found[1] else root
    return path if path.is_dir() else root


def memory_limit(root: Path = CGROUP_ROOT, own: Path = _OWN_CGROUP) -> int | None:
    """Returns the smallest limit of this process's control group and its parents in bytes; None without one."""
    group = own_cgroup(root, own)
    folders = [group, *(parent for parent in group.parents if parent.is_relative_to(root))]
    files = [*(folder / "memory.max" for folder in folders), root / _V1_LIMIT]
    return min(filter(None, map(_read_number, files)), default=None)


def oom_kills(root: Path = CGROUP_ROOT, own: Path = _OWN_CGROUP) -> int:
    """Returns how many processes of this control group the kernel has killed for want of memory."""
    try:
        events = (own_cgroup(root, own) / "memory.events").read_text(encoding="ascii")
    except (OSError, ValueError):
        return 0
    found = re.search(r"(?m)^oom_kill (\d+)$", events)
    return int(found[1]) if found is not None else 0


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdigit() else None  # `max` is no limit


def require_memory(limit: int | None, model_bytes: int = 0) -> None:
    """Checks that the container's memory limit admits the processes and the base model.

    Args:
        limit: the limit in bytes; None for none.
        model_bytes: size of the base model; its files lie in the workspace, which is memory.

    Raises:
        JobError: OUT_OF_MEMORY.
    """
    needed = LEAST_MEMORY_BYTES + model_bytes
    if limit is not None and limit < needed:
        raise JobError(
            ErrorCode.OUT_OF_MEMORY,
            "the container's memory limit is too small for the job",
            expected=f"at least {needed // _MIB} MiB, and what training takes",
            found=f"{limit // _MIB} MiB",
            hint="raise mem_limit or deploy.resources.limits.memory, or leave it out of the compose file",
        )
