"""Feeds inputs to one target, and keeps what it should not have done: undocumented exceptions and slow answers."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

from fuzz_targets import Target

SLOW_SECONDS: Final = 1.0
"""Processor time within which every input must be answered."""
HANG_SECONDS: Final = 20.0
_MINIMISING_TRIES: Final = 1500


class HangError(BaseException):
    """The target did not come back. No `Exception`: nothing in between shall catch it."""


@dataclass(frozen=True)
class Finding:
    """One way in which a target broke its word; `data` is the smallest input that was found for it."""

    target: str
    problem: str
    where: str
    data: bytes
    trace: str


@dataclass
class Session:
    """What happened to one target so far."""

    target: Target
    inputs: int = 0
    accepted: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    findings: dict[tuple[str, str], Finding] = field(default_factory=dict)

    def feed(self, data: bytes) -> str:
        """Give one input to the target; returns its answer in words, where it was refused."""
        begin = time.process_time()
        outcome = run_once(self.target, data)
        spent = time.process_time() - begin
        self.inputs += 1
        self.seconds += spent
        self.slowest = max(self.slowest, spent)
        self.accepted += outcome is None
        if isinstance(outcome, BaseException):
            self._keep(data, outcome)
            return type(outcome).__name__
        if spent > SLOW_SECONDS and is_slow(self.target, data):
            self.findings.setdefault(
                ("slow", ""),
                Finding(
                    self.target.name, f"{spent:.1f} s", "", data, "no traceback: it only takes long"
                ),
            )
        return outcome.words if outcome else "accepted"

    def _keep(self, data: bytes, error: BaseException) -> None:
        key = (type(error).__name__, place(error))
        if key in self.findings:
            return
        trace = "".join(traceback.format_exception(error))
        self.findings[key] = Finding(
            self.target.name, f"{type(error).__name__}: {error}"[:300], key[1], data, trace
        )
        self.findings[key] = Finding(
            self.target.name,
            self.findings[key].problem,
            key[1],
            minimised(data, lambda smaller: same_failure(self.target, smaller, key)),
            trace,
        )


@dataclass(frozen=True)
class Refused:
    """The target raised what it may raise."""

    words: str


def run_once(target: Target, data: bytes) -> BaseException | Refused | None:
    """The undocumented exception; or that it was a documented one; or nothing where the input was accepted."""
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    try:
        target.run(data)
    except target.documented as error:
        return Refused(str(error))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 -- that is what this is for; includes panics of Rust libraries
        return error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def arm() -> None:
    """Have a target that hangs interrupted."""

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise HangError(f"no answer within {HANG_SECONDS:.0f} s")

    signal.signal(signal.SIGPROF, give_up)


def is_slow(target: Target, data: bytes) -> bool:
    """Whether it takes as long again: a pause of the collector or the machine is no finding."""
    begin = time.process_time()
    run_once(target, data)
    return time.process_time() - begin > SLOW_SECONDS


def place(error: BaseException) -> str:
    """The deepest line of this project in a traceback, or else the deepest one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/trainer/" in frame.filename] or list(frames)
    return f"{own[-1].filename.rpartition('/trainer/')[2]}:{own[-1].lineno}" if own else ""


def same_failure(target: Target, data: bytes, key: tuple[str, str]) -> bool:
    """Whether this input fails in the same way at the same place."""
    outcome = run_once(target, data)
    return isinstance(outcome, BaseException) and (type(outcome).__name__, place(outcome)) == key


def minimised(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """`data` without the parts that it fails without: halves first, then ever smaller ones (delta debugging)."""
    tries = 0
    size = max(1, len(data) // 2)
    while size and tries < _MINIMISING_TRIES:
        smaller = data
        for start in reversed(range(0, len(data), size)):
            candidate = smaller[:start] + smaller[start + size :]
            tries += 1
            if tries < _MINIMISING_TRIES and fails(candidate):
                smaller = candidate
        size = size // 2 if smaller == data else min(size, max(1, len(smaller) // 2))
        data = smaller
    return data


def report(findings: Iterator[Finding]) -> str:
    """Findings as text: target, problem, input in hex, traceback."""
    return "\n".join(
        f"FINDING {each.target}: {each.problem}\n  at {each.where}\n  input ({len(each.data)} bytes): "
        f"{each.data.hex()}\n{each.trace}"
        for each in findings
    )
