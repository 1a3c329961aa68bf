"""Whatever is killed, cut or full: the same command finishes, in the same bits, and no plaintext is left.

A few runs here; `scripts/soak kills` makes hundreds, and sets the environment variables below. Each has a seed of
its own: `scripts/soak kills --seed S --runs 1` repeats one.
"""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.conftest import Provider
from tests.end_to_end.kill_plans import HTTP, STORE, Plan, draw_plan
from tests.end_to_end.kill_runs import KillRun
from tests.end_to_end.test_interruptions import free_port
from tests.exchange.stores import run_seaweed

if TYPE_CHECKING:
    from tests.end_to_end.conftest import StartJob, WriteSpec
    from tests.fork_server import ForkServer

RUNS = int(os.environ.get("SOAK_RUNS", "5"))
SEED = int(os.environ.get("SOAK_SEED", "3"))
"""By default none of the runs goes through a store, whose server alone takes seconds to start."""
SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
"""No further run is begun after this time."""

UNDISTURBED = Plan(
    seed=0, profile="sealed", carrier=HTTP, restarts=0, cut_every=None, job_kib=None, provider_kib=None,
    incidents=(),
)  # fmt: skip


@pytest.mark.timeout(SECONDS + 1200)
def test_the_same_command_finishes_in_the_same_bits(
    start_job: StartJob,
    write_spec: WriteSpec,
    provider: Provider,
    kms_provider: Provider,
    fork_server: ForkServer,
    data: Path,
    tmp_path: Path,
) -> None:
    port = free_port()
    providers = {"sealed": provider, "kms": kms_provider}
    for each in providers.values():
        each.keygen()

    def prepare(name: str, **exchange: object) -> tuple[Path, dict[str, Path]]:
        """Returns a job spec, and a policy for each profile."""
        spec = write_spec(
            tmp_path / f"{name}.yaml",
            lora={"lora_dropout": 0.1},
            train={"max_steps": 12, "save_steps": 2},
            output={"samples": 0},
            exchange={"port": port, "linger_seconds": 30, **exchange},
        )
        return spec, {
            "sealed": provider.policy(spec, name=f"{name}.policy"),
            "kms": kms_provider.policy(spec, "--recipient", "derived", name=f"{name}.policy"),
        }

    http = prepare("http")

    def carry_out(plan: Plan) -> bytes:
        """Returns the adapter."""
        folder = tmp_path / f"run{plan.seed}"
        folder.mkdir()
        # A server of its own: what a kill leaves of one costs the next run nothing.
        with run_seaweed(folder) if plan.carrier == STORE else nullcontext() as store:
            where = port if store is None else f"s3://trainer/kills/{plan.seed}"
            spec, policies = http if store is None else prepare(f"store{plan.seed}", store=where)
            run = KillRun(
                plan, folder, spec, policies[plan.profile], where, data, providers[plan.profile],
                start_job, fork_server, store,
            )  # fmt: skip
            begun = time.monotonic()
            try:
                return run.carry_out()
            finally:
                counts = f"{len(run.starts)} starts, {run.commands} commands"
                print(f"{time.monotonic() - begun:5.1f} s  {plan}  [{counts}]", flush=True)

    expected, begun, failures, made = carry_out(UNDISTURBED), time.monotonic(), [], 0
    for seed in range(SEED, SEED + RUNS):
        if time.monotonic() - begun > SECONDS:
            break
        made += 1
        try:
            assert carry_out(draw_plan(seed)) == expected, "another adapter"
        except (AssertionError, OSError) as error:
            failures.append(f"seed {seed}: {error!r}")
            print(f"FAILED {failures[-1]}", flush=True)
    print(f"runs: {made} of {RUNS}, seeds {SEED} to {SEED + made - 1}; failed: {len(failures)}")
    assert made
    assert failures == []
