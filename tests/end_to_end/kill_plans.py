"""What is to happen to one job and its provider: drawn by a seed, so that a run can be repeated."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from random import Random
from typing import Final

HTTP, FILES, STORE = "http", "files", "store"
"""How the exchange goes: over the network, through a directory, through an object store."""
CARRIERS: Final = (STORE,) * 3 + (HTTP,) * 14 + (FILES,) * 3

CLIENT, LINK = "client", "link"
"""The provider's command; the network between it and the job. Others: processes of the job, or the store."""

VICTIMS: Final = (CLIENT, CLIENT, "supervisor", "front", "worker", "fetch")
VICTIMS_OF_CARRIER: Final = {HTTP: (LINK,), FILES: (), STORE: (STORE, STORE, "store_sync")}
SIGNALS: Final = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)

JOB_MOMENTS: Final = (
    "spec", "listening", "preparing", "awaiting-dataset", "dataset-received", "opening", "training", "progress",
    "checkpoint-sealed", "sealing", "awaiting-pull",
)  # fmt: skip
"""Public events, or phases that one announces."""
FILE_MOMENTS: Final = (
    "submission.json",
    "attestation.json",
    "dataset.age",
    "upload-begun",
    "uploaded",
    "result.tar.age",
)
"""Files of the submission that begin to exist."""
LATE_MOMENTS: Final = {"sealing", "awaiting-pull", "result.tar.age"}
"""After these there is no worker."""
EARLY_MOMENTS: Final = ("spec", "listening", "preparing")
"""Until these there is a fetch process."""

CUT_BYTES: Final = 100_000
SCARCE_KIB: Final = (4, 32, 96, 256)


@dataclass(frozen=True)
class Incident:
    """A signal to a process, or a cut of all connections, some seconds after a moment came for the first time."""

    moment: str
    delay: float
    victim: str
    number: signal.Signals

    def __str__(self) -> str:
        what = "cut" if self.victim == LINK else f"{self.number.name} to {self.victim}"
        return f"{what} {self.delay:.3f} s after {self.moment}"


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        profile: `kms`: the dataset is sealed to a key that a restarted job derives again; `sealed`: it is not.
        carrier: how the exchange goes.
        restarts: how often the job's own parent starts it again.
        cut_every: bytes after which each connection is cut; None: none is.
        job_kib: free space of the job's ciphertext directory, in KiB, until its operator makes room; None: enough.
        provider_kib: the same of the provider's disk.
        incidents: in no order.
    """

    seed: int
    profile: str
    carrier: str
    restarts: int
    cut_every: int | None
    job_kib: int | None
    provider_kib: int | None
    incidents: tuple[Incident, ...]

    def __str__(self) -> str:
        words = [f"seed {self.seed}", self.profile, self.carrier]
        words += [f"restarts {self.restarts}"] if self.restarts else []
        words += [f"cut every {self.cut_every} bytes"] if self.cut_every else []
        words += [f"job's disk {self.job_kib} KiB"] if self.job_kib is not None else []
        words += (
            [f"provider's disk {self.provider_kib} KiB"] if self.provider_kib is not None else []
        )
        return ", ".join((*words, *map(str, self.incidents)))


def draw_plan(seed: int) -> Plan:
    """Returns the run of this seed."""
    rng = Random(seed)
    carrier = rng.choice(CARRIERS)
    disk = rng.choice((None, None, None, "job", "provider"))
    return Plan(
        seed=seed,
        profile=rng.choice(("kms", "sealed")),
        carrier=carrier,
        restarts=rng.choice((0, 2)),
        cut_every=rng.choice((None, None, CUT_BYTES)) if carrier == HTTP else None,
        job_kib=rng.choice(SCARCE_KIB) if disk == "job" else None,
        provider_kib=rng.choice(SCARCE_KIB) if disk == "provider" else None,
        incidents=tuple(_draw_incident(rng, carrier) for _ in range(rng.choice((1, 1, 2, 3)))),
    )


def _draw_incident(rng: Random, carrier: str) -> Incident:
    victim = rng.choice((*VICTIMS, *VICTIMS_OF_CARRIER[carrier]))
    moments = (
        EARLY_MOMENTS
        if victim == "fetch"
        else (*JOB_MOMENTS, *(FILE_MOMENTS if victim == CLIENT else ()))
    )
    if victim == "worker":
        moments = tuple(moment for moment in moments if moment not in LATE_MOMENTS)
    # Most of what takes long is an import: short delays see more of the steps after a moment.
    delay = rng.random() ** 3 * (0.1 if victim == "fetch" else 0.6)
    moment, number = rng.choice(moments), rng.choice(SIGNALS)
    # A store that is asked to end takes minutes, and how it ends is no part of what is tried.
    return Incident(moment, delay, victim, signal.SIGKILL if victim == STORE else number)
