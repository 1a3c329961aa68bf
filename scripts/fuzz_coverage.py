"""The targets of `scripts/fuzz.py`, guided by which lines of this project an input reaches (atheris, libFuzzer).

Needs `atheris`, which the project's environment does not hold: install it into an environment of its own. One
target at a time, since libFuzzer keeps to one. Findings are printed, and lead to exit code 1, as with `fuzz.py`.

    python scripts/fuzz_coverage.py audit --seconds 60
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import atheris  # type: ignore[import-untyped]  # noqa: E402 -- what it instruments must be imported after it

with atheris.instrument_imports(include=["trainer"]):
    from fuzz_session import Session, arm, report
    from fuzz_targets import TARGETS, Target

from fuzz_mutations import MAX_BYTES, mutate  # noqa: E402


class Guided:
    """What libFuzzer calls: a mutation that knows the form of the input, and the target."""

    def __init__(self, target: Target, inputs: int, seconds: float) -> None:
        self._session, self._pool = Session(target), target.seeds()
        self._inputs, self._end = inputs, time.monotonic() + seconds
        self.corpus = Path(tempfile.mkdtemp(prefix="fuzz-"))
        for index, data in enumerate(self._pool):
            (self.corpus / f"seed{index}").write_bytes(data)

    def mutated(self, data: bytes, max_size: int, seed: int) -> bytes:
        """Mostly a change that fits the form; now and then one of libFuzzer's own."""
        rng = Random(seed)
        if rng.randrange(5) == 0:
            return bytes(atheris.Mutate(data, len(data) + 64))[:max_size]
        return mutate(data, self._session.target.form, rng, self._pool)[:max_size]

    def run(self, data: bytes) -> None:
        """One input; ends the process once there were enough, since libFuzzer does not return."""
        self._session.feed(data)
        if self._session.inputs < self._inputs and time.monotonic() < self._end:
            return
        made = self._session
        print(
            f"{made.target.name}: {made.inputs} inputs, {made.accepted} accepted, {len(made.findings)} findings"
        )
        print(report(iter(made.findings.values())), end="", flush=True)
        shutil.rmtree(self.corpus)
        os._exit(int(bool(made.findings)))


def main(arguments: Sequence[str]) -> None:
    """Fuzz one target until inputs or time are spent."""
    parser = argparse.ArgumentParser(
        description="Fuzz one parser of hostile input, guided by coverage."
    )
    parser.add_argument("target", choices=[target.name for target in TARGETS])
    parser.add_argument("--inputs", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    guided = Guided(
        next(each for each in TARGETS if each.name == chosen.target), chosen.inputs, chosen.seconds
    )
    arm()
    flags = ["-verbosity=0", f"-seed={chosen.seed}", f"-max_len={MAX_BYTES}", "-len_control=0"]
    command = [sys.argv[0], *flags, str(guided.corpus)]
    atheris.Setup(command, guided.run, custom_mutator=guided.mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
