"""Fixtures of the TEE side: a simulated VM, the real server around it, and dcap-qvl's verdict on a quote."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest

from trainer.simulator.agent import Release, SimulatedVm, VmOptions
from trainer.simulator.pki import DevelopmentPki
from trainer.simulator.server import simulated_agent_server

NOW = 1_790_000_000
COMPOSE = '{\n  "name": "demo",\n  "docker_compose_file": "services: {}"\n}\n'
SEED = b"a seed of 32 bytes for the tests"


@pytest.fixture
def now() -> int:
    return NOW


@pytest.fixture
def compose() -> str:
    return COMPOSE


@pytest.fixture
def seed() -> bytes:
    return SEED


@pytest.fixture
def vm() -> SimulatedVm:
    return SimulatedVm(COMPOSE, SEED)


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """A path short enough for a unix socket, wherever pytest keeps its own directories."""
    folder = Path(tempfile.mkdtemp(prefix="tee-"))
    yield folder / "agent.sock"
    shutil.rmtree(folder)


@pytest.fixture
def endpoint(vm: SimulatedVm, socket_path: Path) -> Iterator[str]:
    """Socket on which the VM of the `vm` fixture (release 0.6.0) is served."""
    with simulated_agent_server(socket_path, vm):
        yield str(socket_path)


@pytest.fixture
def old_endpoint(socket_path: Path) -> Iterator[str]:
    """Socket on which a VM of release 0.5.11 is served."""
    vm = SimulatedVm(COMPOSE, SEED, options=VmOptions(release=Release.V0_5))
    with simulated_agent_server(socket_path, vm):
        yield str(socket_path)


@pytest.fixture
def judge() -> Callable[..., dict[str, Any]]:
    """dcap-qvl's strict verdict on a quote; raises ValueError where it refuses."""

    def judge(
        quote: bytes,
        pki: DevelopmentPki,
        *,
        root: bytes | None = None,
        intel: bool = False,
        now: int = NOW,
        collateral: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        trusted = None if intel else (root or pki.root_der)
        material = dcap_qvl.QuoteCollateralV3.from_json(
            json.dumps(collateral or pki.collateral(NOW))
        )
        verifier = dcap_qvl.QuoteVerifier(trusted)
        claims = verifier.verify_with_policy(quote, material, now, dcap_qvl.QuotePolicy.strict(now))
        parsed: dict[str, Any] = json.loads(claims.to_json())
        return parsed

    return judge
