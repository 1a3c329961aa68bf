"""How tests change what the measured OS found out about GPUs at boot: each function leaves the rest as it was."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

from trainer.attestation.claims.binding import gpu_evidence_sha256
from trainer.attestation.nvidia.boot_event import GPU_EVENT
from trainer.encoding import sha256_hex
from trainer.simulator.event_log_writer import RuntimeEvent
from trainer.simulator.nvattest import (
    GOOD_CHAIN,
    SimulatedGpu,
    SimulatedSwitch,
    detached_eat,
    nvattest_result,
    overall_claims,
)

World = Any  # conftest.World
NONCE = "5b" * 32
GPU = SimulatedGpu()
REPORT_CHAIN = "x-nvidia-gpu-attestation-report-cert-chain"
DRIVER_CHAIN = "x-nvidia-gpu-driver-rim-cert-chain"
VBIOS_CHAIN = "x-nvidia-gpu-vbios-rim-cert-chain"


def booted(world: World, text: str, **event: Any) -> World:
    """The OS measured this text, and an event that says so."""
    payload = {
        "version": 2,
        "provider": "nvidia",
        "devices": 1,
        "cc_mode": "on",
        "devtools": False,
        "evidence_sha256": sha256_hex(text.encode(errors="surrogatepass")),
    }
    measured = RuntimeEvent(GPU_EVENT, json.dumps(payload | event).encode())
    world.vm.replace_events(
        tuple(
            measured if getattr(each, "name", "") == GPU_EVENT else each for each in world.vm.events
        )
    )
    gpu = world.gpu.model_copy(update={"boot": text})
    return world.change(gpu=gpu).claiming(gpu_evidence_sha256=gpu_evidence_sha256(gpu))


def with_devices(
    world: World, *devices: Any, number: int | None = None, nonce: str = NONCE, **changes: Any
) -> World:
    """These devices were found at boot; as many GPUs were measured, or `number`."""
    count = (
        sum(isinstance(device, SimulatedGpu) for device in devices) if number is None else number
    )
    return booted(world, nvattest_result(devices, nonce, **changes), devices=count)


def with_claims(
    world: World, changes: Mapping[str, object], missing: tuple[str, ...] = ()
) -> World:
    """The GPU passed, but for these claims."""
    return with_devices(world, SimulatedGpu(changes=changes, missing=missing))


def with_overall(world: World, changes: Mapping[str, object]) -> World:
    """The overall token says something else."""
    tokens = tokens_of(nvattest_result([GPU], NONCE))
    overall = {**overall_claims(tokens, NONCE), **changes}
    return with_devices(world, GPU, detached_eat=detached_eat(overall, tokens))


def with_tokens(
    world: World, change: Callable[[str], str], *, digests_follow: bool = True
) -> World:
    """The GPU's token is another."""
    honest = tokens_of(nvattest_result([GPU], NONCE))
    tokens = {name: change(text) for name, text in honest.items()}
    overall = overall_claims(tokens if digests_follow else honest, NONCE)
    return with_devices(world, GPU, detached_eat=detached_eat(overall, tokens))


def tokens_of(text: str) -> dict[str, str]:
    return dict(json.loads(text)["detached_eat"][1])


def with_switch(world: World, **changes: Any) -> World:
    """One GPU and one switch, of which only the GPU was counted."""
    return with_devices(world, GPU, SimulatedSwitch(**changes))


def with_two(world: World, second: SimulatedGpu, **changes: Any) -> World:
    """Two GPUs were measured; how many there must be is left open."""
    return with_devices(world, GPU, second, **changes).demanding("gpu", count="any")


def chain_with(**changes: Any) -> dict[str, object]:
    """A certificate chain of which something else is said."""
    return {
        **GOOD_CHAIN,
        **{f"x-nvidia-cert-{name.replace('_', '-')}": changes[name] for name in changes},
    }


def shown(world: World, text: str) -> World:
    """Another text is shown, and claimed, than the OS measured."""
    gpu = world.gpu.model_copy(update={"boot": text})
    return world.change(gpu=gpu).claiming(gpu_evidence_sha256=gpu_evidence_sha256(gpu))


def header(algorithm: str) -> Callable[[str], str]:
    """Changes a token's algorithm."""
    text = base64.urlsafe_b64encode(json.dumps({"alg": algorithm}).encode()).rstrip(b"=").decode()
    return lambda jwt: text + jwt[jwt.index(".") :]
