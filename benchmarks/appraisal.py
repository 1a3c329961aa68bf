"""Measure the time of one appraisal by number of GPUs: all checks demanded, simulated evidence, no network.

    python benchmarks/appraisal.py [--gpus 0 1 8 16] [--rounds 200] [--json]

Prints the fastest and the median of `--rounds` calls of `appraise()`: the first call of a process, and later
calls, for which GPU certificates that were verified before are cached. Parsing the evidence is timed separately.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from trainer.attestation.evidence import GpuEvidence, parse_evidence
from trainer.attestation.nvidia import certificate_chain as gpu_chain
from trainer.attestation.tdx import pem_chain
from trainer.attestation.verifier import appraise
from trainer.simulator.agent import SimulatedVm, VmOptions
from trainer.simulator.appraisal_world import APP_COMPOSE, SEED, World, world_of
from trainer.simulator.gpu_evidence import GPU_CA, GPU_LEAF, GPU_ROOT, gpu_answer
from trainer.simulator.nvattest import SimulatedGpu, nvattest_result


def world(gpus: int) -> World:
    """Make honest evidence of a VM with `gpus` GPUs, each with boot claims and a fresh report under its own
    key."""
    boot = (
        nvattest_result([SimulatedGpu(ueid=str(10**40 + n)) for n in range(gpus)], "5b" * 32)
        if gpus
        else ""
    )
    options = VmOptions(gpu_attestation=boot, gpu_count=gpus, image="dstack-0.6.0")
    fresh = tuple(
        gpu_answer(replace(GPU_LEAF, scalar=3000 + n), replace(GPU_CA, scalar=4000 + n), GPU_ROOT)
        for n in range(gpus)
    )
    honest = world_of(
        SimulatedVm(APP_COMPOSE, SEED, options=options), GpuEvidence(boot=boot, fresh=fresh)
    )
    if gpus:
        return honest.demanding("gpu", count=gpus)
    return honest.without_reports().demanding("gpu", required=False, devtools="any")


@dataclass(frozen=True)
class Milliseconds:
    """Fastest and median duration of many calls, in milliseconds."""

    fastest: float
    median: float

    def __str__(self) -> str:
        return f"{self.fastest:.2f} / {self.median:.2f}"


@dataclass(frozen=True)
class Row:
    """Measurements for one number of GPUs; `kilobytes` is the size of the evidence."""

    gpus: int
    kilobytes: float
    first: Milliseconds
    again: Milliseconds
    parse: Milliseconds


_CACHED_FUNCTIONS = (
    gpu_chain.was_issued,
    gpu_chain.parse_chain,
    gpu_chain._readable,  # noqa: SLF001
    pem_chain.read_pem_chain,
)


def milliseconds(call: Callable[[], object], rounds: int, *, cold: bool = False) -> Milliseconds:
    """Time `rounds` calls; `cold` clears the caches of verified certificates before each."""
    taken = []
    for _ in range(rounds):
        if cold:
            for cached_function in _CACHED_FUNCTIONS:
                cached_function.cache_clear()  # as in a new process
        begin = time.perf_counter()
        call()
        taken.append((time.perf_counter() - begin) * 1000)
    return Milliseconds(min(taken), statistics.median(taken))


def measure(gpus: int, rounds: int) -> Row:
    """Measure one row; exits if the appraisal is not a pass, because a failed one may stop early."""
    honest = world(gpus)
    evidence = honest.evidence()
    data = evidence.canonical()
    appraise_it = partial(
        appraise,
        evidence,
        collateral=honest.collateral,
        policy=honest.policy,
        nonce=honest.nonce,
        now=honest.now,
        peer_spki_sha256=honest.peer,
        nonce_unused=True,
        gpu_root_sha256=honest.gpu_root_sha256,
    )
    if failed := appraise_it().failed:
        raise SystemExit(f"the honest evidence is refused: {[check.code for check in failed]}")
    return Row(
        gpus,
        round(len(data) / 1024, 1),
        milliseconds(appraise_it, rounds, cold=True),
        milliseconds(appraise_it, rounds),
        milliseconds(lambda: parse_evidence(data), rounds),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[0, 1, 8, 16])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [measure(gpus, arguments.rounds) for gpus in arguments.gpus]
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(
        f"{'GPUs':>5} {'KiB':>7} {'first ms':>16} {'again ms':>16} {'parse ms':>14}   fastest / median"
    )
    for row in rows:
        print(
            f"{row.gpus:>5} {row.kilobytes:>7} {row.first!s:>16} {row.again!s:>16} {row.parse!s:>14}"
        )


if __name__ == "__main__":
    main()
