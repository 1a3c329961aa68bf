"""A reason why a deviation from the shipped shape matters, and the conditions that reasons have."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trainer.audit.document import SERVICE
from trainer.audit.findings import Severity
from trainer.audit.literal_secrets import variables
from trainer.audit.shape import Deviation

Holds = Callable[[Deviation], bool]

_ENGINES: Final = tuple(
    f"{folder}/{name}.sock"
    for folder in ("/var/run", "/run")
    for name in ("docker", "containerd/containerd", "podman/podman")
)
_CONTROL_ALL: Final = frozenset(
    {"ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_PTRACE", "SYS_RAWIO", "BPF", "DAC_READ_SEARCH"}
)
_STEERING: Final = re.compile(
    r"(?i)(?:LD|PYTHON|COMPOSE|DOCKER|DSTACK)_?\w*|PATH|BASH_ENV|ENV|HOME|\w*ROOT_\w*"
)
_AS_SHIPPED: Final = "start from the shipped file, and see docs/audit.md for what may vary"


@dataclass(frozen=True)
class Reason:
    """Why a deviation at some keys matters.

    Args:
        code: stable name.
        keys: of the level that the reason is for, separated by spaces; empty for all of them.
        because: in words, after "because".
        hint: what to do about it.
        severity: of the finding.
        holds: for which deviations at these keys.
    """

    code: str
    keys: str
    because: str
    hint: str = _AS_SHIPPED
    severity: Severity = Severity.HIGH
    holds: Holds = lambda _: True


def reaches_engine(deviation: Deviation) -> bool:
    """Returns whether a container engine's socket is mounted, or a directory above it."""
    for node in deviation.node.scalars():
        source = node.text.partition(":")[0]
        if source.startswith("/"):
            # normpath keeps two slashes at the start, which POSIX leaves undefined.
            path = re.sub("^//+", "/", posixpath.normpath(source)).rstrip("/")
            if any(socket == path or socket.startswith(f"{path}/") for socket in _ENGINES):
                return True
    return False


def is_from_outside(deviation: Deviation) -> bool:
    """Returns whether a value is filled in from outside, or is a name alone whose value comes from there."""
    node = deviation.node
    passed_through = (
        deviation.place.startswith(f"{SERVICE}.environment.") and deviation.found == "null"
    )
    return passed_through or any(variables(each.text) for each in node.scalars())


def is_steering(deviation: Deviation) -> bool:
    """Returns whether a variable decides which code is loaded, or where it is looked for."""
    if deviation.place.startswith("allowed_envs"):
        return any(_STEERING.fullmatch(each.text) for each in deviation.node.scalars())
    return _STEERING.fullmatch(deviation.place.removeprefix(f"{SERVICE}.environment.")) is not None


def controls_all(deviation: Deviation) -> bool:
    """Returns whether a capability amounts to being root of the VM."""
    names = (each.text.upper().removeprefix("CAP_") for each in deviation.node.scalars())
    return any(name in _CONTROL_ALL for name in names)


def mentions(*words: str) -> Holds:
    """Returns the condition that a value at or below a place contains one of some words."""
    return lambda deviation: any(
        word in each.text for each in deviation.node.scalars() for word in words
    )


def is_absent(deviation: Deviation) -> bool:
    """Returns whether something is missing."""
    return deviation.node.value is None
