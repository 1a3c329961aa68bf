"""Fuzz the parsers of hostile input: honest evidence, mutated, to every parser of bytes that a stranger wrote.

Anything but a value or a documented exception is a finding, and so is an answer that takes over a second of
processor time. Findings are printed with the smallest input found, in hex; the exit code is 1 then.

    python scripts/fuzz.py                          # 200,000 inputs over all targets
    python scripts/fuzz.py --inputs 1000000 --seed 7
    python scripts/fuzz.py --target audit --seconds 60

Inputs that a parser accepted, or refused with words that were new, are kept and mutated further. The same seed
gives the same inputs. Another target is one line in scripts/fuzz_targets.py.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from fuzz_mutations import mutate  # noqa: E402 -- found only now
from fuzz_session import Session, arm, report  # noqa: E402
from fuzz_targets import TARGETS, Target  # noqa: E402

_BATCH: Final = 256
_MAX_POOL: Final = 400
_PROGRESS_SECONDS: Final = 5.0


class Progress:
    """Lines on standard error: how far, how fast, how long still."""

    def __init__(self, total: int, seconds: float | None, *, quiet: bool) -> None:
        self._total, self._limit, self._quiet = total, seconds, quiet
        self._begin = self._last = time.monotonic()
        self.done = 0

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._begin

    def add(self, inputs: int, name: str) -> None:
        """Count, and say so now and then."""
        self.done += inputs
        now = time.monotonic()
        if self._quiet or now - self._last < _PROGRESS_SECONDS:
            return
        self._last = now
        rate = self.done / self.elapsed
        left = (self._total - self.done) / rate
        if self._limit is not None:
            left = min(left, self._limit - self.elapsed)
        sys.stderr.write(
            f"{name:20} {self.done:>9} of {self._total}, {rate:6.0f}/s, {max(left, 0):5.0f} s left\n"
        )


class Pool:
    """Inputs to mutate: the seeds, and what led somewhere new."""

    def __init__(self, target: Target, rng: Random) -> None:
        self.inputs = [*target.seeds()]
        self._fixed = len(self.inputs)
        self._rng = rng
        self._seen: set[str] = set()

    def add(self, data: bytes, answer: str) -> None:
        """Keep `data` if the target's answer to it, numbers and quotes aside, is a new one."""
        form = re.sub(r"0x[0-9a-f]+|[0-9]+|'[^']*'|[0-9a-f]{8,}", "#", answer)[:120]
        if form in self._seen or len(self._seen) > 100 * _MAX_POOL:
            return
        self._seen.add(form)
        if len(self.inputs) >= _MAX_POOL:
            self.inputs.pop(self._rng.randrange(self._fixed, _MAX_POOL))
        self.inputs.append(data)


def planned(targets: Sequence[Target], inputs: int) -> dict[str, int]:
    """How many inputs each target gets, by its share; at least one each, `inputs` altogether or a few more."""
    whole = sum(target.share for target in targets)
    return {target.name: -int(-inputs * target.share // whole) for target in targets}


def fuzz(
    targets: Sequence[Target], inputs: int, *, seconds: float | None, seed: int, quiet: bool
) -> list[Session]:
    """Take turns over the targets in batches, so that a run that is cut short has covered all of them."""
    progress = Progress(inputs, seconds, quiet=quiet)
    plan = planned(targets, inputs)
    sessions = [Session(target) for target in targets]
    # The name: targets do not depend on each other.
    rngs = [Random(f"{seed}/{target.name}") for target in targets]
    pools = [Pool(target, rng) for target, rng in zip(targets, rngs, strict=True)]
    for session, pool in zip(sessions, pools, strict=True):
        for data in pool.inputs[:]:
            session.feed(data)
    with suppress(KeyboardInterrupt):  # what was done until then is told
        while any(session.inputs < plan[session.target.name] for session in sessions):
            for session, pool, rng in zip(sessions, pools, rngs, strict=True):
                wanted = min(
                    plan[session.target.name] - session.inputs,
                    1 + int(_BATCH * session.target.share),
                )
                _batch(session, pool, rng, wanted)
                progress.add(max(wanted, 0), session.target.name)
                if seconds is not None and progress.elapsed > seconds:
                    return sessions
    return sessions


def _batch(session: Session, pool: Pool, rng: Random, wanted: int) -> None:
    for _ in range(wanted):
        data = mutate(rng.choice(pool.inputs), session.target.form, rng, pool.inputs)
        answer = session.feed(data)
        pool.add(data, answer)


def summary(sessions: Sequence[Session]) -> list[dict[str, object]]:
    """One row for each target."""
    return [
        {
            "target": session.target.name,
            "inputs": session.inputs,
            "accepted": session.accepted,
            "seconds": round(session.seconds, 1),
            "slowest_ms": round(1000 * session.slowest, 1),
            "findings": len(session.findings),
        }
        for session in sessions
    ]


def _print(sessions: Sequence[Session], *, as_json: bool) -> None:
    rows = summary(sessions)
    if as_json:
        found = [
            vars(each) | {"data": each.data.hex()}
            for session in sessions
            for each in session.findings.values()
        ]
        print(json.dumps({"targets": rows, "findings": found}, indent=2))
        return
    print(
        f"{'target':20} {'inputs':>9} {'accepted':>9} {'seconds':>8} {'slowest':>10} {'findings':>8}"
    )
    for row in rows:
        print(
            "{target:20} {inputs:>9} {accepted:>9} {seconds:>8} {slowest_ms:>7} ms {findings:>8}".format(
                **row
            )
        )
    total, spent = (
        sum(session.inputs for session in sessions),
        sum(session.seconds for session in sessions),
    )
    print(f"{'all':20} {total:>9} {'':9} {spent:>8.1f}")
    print(report(each for session in sessions for each in session.findings.values()), end="")


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--inputs", type=int, default=200_000, help="over all targets together")
    parser.add_argument("--seconds", type=float, help="stop after this long")
    parser.add_argument(
        "--target", action="append", choices=[target.name for target in TARGETS], help="repeatable"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Fuzz, print; 1 if there is a finding."""
    chosen = options(arguments)
    targets = [target for target in TARGETS if not chosen.target or target.name in chosen.target]
    arm()
    sessions = fuzz(
        targets, chosen.inputs, seconds=chosen.seconds, seed=chosen.seed, quiet=chosen.quiet
    )
    _print(sessions, as_json=chosen.json)
    return int(any(session.findings for session in sessions))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
