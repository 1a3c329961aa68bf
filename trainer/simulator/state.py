"""The state directory of a simulated VM: the secret seed and the app id, and the files that a verifier needs.

The directory takes the place of the hardware: whoever can read it can sign quotes.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from trainer.errors import ErrorCode, UsageError
from trainer.models import One, Strict
from trainer.simulator.agent import SimulatedVm, VmOptions, simulated_measurements
from trainer.simulator.key_service import KeyService

STATE_FILE: Final = "state.json"
ROOT_FILE: Final = "root.pem"
COLLATERAL_FILE: Final = "collateral.json"
COMPOSE_FILE: Final = "app-compose.json"
MEASUREMENTS_FILE: Final = "measurements.json"
KEY_SERVICE_FILE: Final = "key-service.json"
"""What a policy pins of the key service; only where the VM has one."""

_SEED_BYTES: Final = 32


class SimulatorState(Strict):
    """Contents of `state.json`.

    Under a key service the app key is derived from seed and app id; the stored public key detects that the two do
    not belong together.
    """

    version: One
    warning: Literal["DEVELOPMENT ONLY: this seed signs quotes of a simulated VM"]
    seed: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    app_id: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    app_public_key: Annotated[str, Field(pattern=r"^0[23][0-9a-f]{64}$")]


def open_vm(
    directory: Path,
    app_compose: str,
    options: VmOptions,
    *,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> SimulatedVm:
    """Opens the VM whose state is in `directory`, or creates it on the first start.

    Under a key service, a later start with another app-compose text is an upgrade of the same app: app id and keys
    stay the same. Without one, each start is a boot with keys of its own.

    Args:
        directory: created with mode 0700 if it does not exist.
        app_compose: exact text of app-compose.json.
        options: how the VM is set up.
        random: source of the seed, and of the seed of each boot.

    Raises:
        UsageError: the state is invalid, or `app_compose` is not a JSON object.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / STATE_FILE
    if not path.exists():
        _first_deployment(path, app_compose, random(_SEED_BYTES))
    state = _read_state(path)
    app_id = bytes.fromhex(state.app_id)
    seed = bytes.fromhex(state.seed)
    if KeyService(seed).app_keys(app_id).public_key.hex() != state.app_public_key:
        raise _state_error(path, "the app key does not follow from seed and app id")
    return SimulatedVm(
        app_compose, seed, app_id=app_id, boot_seed=random(_SEED_BYTES), options=options
    )


def publish(vm: SimulatedVm, directory: Path, now: int) -> None:
    """Writes a verifier's files: root, collateral (30 days from `now`), app-compose, measurements, key service."""
    _write_private_file(directory / ROOT_FILE, vm.pki.root_pem.encode())
    _write_private_file(
        directory / COLLATERAL_FILE, json.dumps(vm.collateral(now), indent=2).encode()
    )
    _write_private_file(directory / COMPOSE_FILE, vm.app_compose.encode())
    _write_private_file(
        directory / MEASUREMENTS_FILE,
        json.dumps(asdict(simulated_measurements()), indent=2).encode(),
    )
    if vm.has_key_service:
        pins = {
            "key_provider_id": json.loads(vm.key_provider)["id"],
            "kms_root_key": vm.key_service.root_public_key.hex(),
            "app_id": vm.app_id.hex(),
        }
        _write_private_file(directory / KEY_SERVICE_FILE, json.dumps(pins, indent=2).encode())


def _read_state(path: Path) -> SimulatorState:
    try:
        return SimulatorState.model_validate_json(path.read_bytes())
    except ValidationError:
        raise _state_error(path, "not a state of this simulator") from None
    except OSError as error:
        raise _state_error(path, error.strerror or type(error).__name__) from error


def _first_deployment(path: Path, app_compose: str, seed: bytes) -> None:
    vm = SimulatedVm(app_compose, seed)
    state = SimulatorState(
        version=1,
        warning="DEVELOPMENT ONLY: this seed signs quotes of a simulated VM",
        seed=seed.hex(),
        app_id=vm.app_id.hex(),
        app_public_key=vm.key_service.app_keys(vm.app_id).public_key.hex(),
    )
    _write_private_file(path, state.model_dump_json(indent=2).encode())


def _write_private_file(path: Path, data: bytes) -> None:
    """Writes a file atomically with mode 0600; O_EXCL refuses a link that another user put there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    partial.replace(path)


def _state_error(path: Path, reason: str) -> UsageError:
    return UsageError(
        ErrorCode.USAGE,
        f"simulator state {path}: {reason}",
        hint="choose another --state directory, or remove this one to start a new simulated VM",
    )
