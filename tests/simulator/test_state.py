"""What survives a restart, and who may read it."""

import json
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from trainer.errors import ErrorCode, UsageError
from trainer.simulator.agent import VmOptions
from trainer.simulator.appraisal_world import APP_COMPOSE as KMS_COMPOSE
from trainer.simulator.state import open_vm, publish

OPTIONS = VmOptions()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_second_start_is_the_same_vm(tmp_path: Path, compose: str, now: int) -> None:
    first, second = (open_vm(tmp_path / "state", KMS_COMPOSE, OPTIONS) for _ in range(2))
    assert first.pki.root_pem == second.pki.root_pem
    assert first.keys.derive("p") == second.keys.derive("p")
    assert first.td_fields() == second.td_fields()
    assert first.pki.collateral(now) == second.pki.collateral(now)


def test_second_start_without_a_key_service_is_another_boot(tmp_path: Path, compose: str) -> None:
    first, second = (open_vm(tmp_path / "state", compose, OPTIONS) for _ in range(2))
    assert first.pki.root_pem == second.pki.root_pem
    assert first.keys.derive("p").secret != second.keys.derive("p").secret
    assert first.instance_id != second.instance_id
    assert first.app_id == second.app_id


def test_other_directory_is_another_root(tmp_path: Path, compose: str) -> None:
    first, second = (open_vm(tmp_path / name, compose, OPTIONS) for name in "ab")
    assert first.pki.root_pem != second.pki.root_pem
    assert first.keys.derive("p").secret != second.keys.derive("p").secret


def test_upgrade_keeps_app_id_and_keys(tmp_path: Path) -> None:
    first = open_vm(tmp_path, KMS_COMPOSE, OPTIONS)
    upgraded = open_vm(tmp_path, KMS_COMPOSE.replace("demo", "next version"), OPTIONS)
    assert upgraded.app_id == first.app_id
    assert upgraded.keys.derive("p").secret == first.keys.derive("p").secret
    assert upgraded.td_fields().rtmr3 != first.td_fields().rtmr3


def test_state_is_private(tmp_path: Path, compose: str, now: int) -> None:
    state = tmp_path / "deep" / "state"
    publish(open_vm(state, compose, OPTIONS), state, now)
    assert mode(state) == 0o700
    assert {path.name: mode(path) for path in state.iterdir()} == dict.fromkeys(
        ("state.json", "root.pem", "collateral.json", "app-compose.json", "measurements.json"),
        0o600,
    )


def test_what_a_policy_pins_of_a_key_service_is_published(tmp_path: Path, now: int) -> None:
    vm = open_vm(tmp_path, KMS_COMPOSE, OPTIONS)
    publish(vm, tmp_path, now)
    assert json.loads((tmp_path / "key-service.json").read_bytes()) == {
        "key_provider_id": json.loads(KMS_COMPOSE)["key_provider_id"],
        "kms_root_key": vm.key_service.root_public_key.hex(),
        "app_id": vm.app_id.hex(),
    }
    assert mode(tmp_path / "key-service.json") == 0o600


def test_published_files_are_what_a_verifier_needs(tmp_path: Path, now: int) -> None:
    compose = '{"name": "exact",\r\n\t"bytes": "é"}'
    vm = open_vm(tmp_path, compose, OPTIONS)
    publish(vm, tmp_path, now)
    root = x509.load_pem_x509_certificate((tmp_path / "root.pem").read_bytes())
    assert root.public_bytes(Encoding.DER) == vm.pki.root_der
    assert json.loads((tmp_path / "collateral.json").read_bytes()) == vm.pki.collateral(now)
    assert (tmp_path / "app-compose.json").read_bytes() == compose.encode()
    td = vm.td_fields()
    assert json.loads((tmp_path / "measurements.json").read_bytes()) == {
        name: getattr(td, name).hex() for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2")
    }


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": 2}'])
def test_foreign_state_is_refused(tmp_path: Path, compose: str, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(UsageError, match="not a state") as caught:
        open_vm(tmp_path, compose, OPTIONS)
    assert caught.value.code is ErrorCode.USAGE
    assert (tmp_path / "state.json").read_text() == content


def test_mixed_up_state_is_refused_without_showing_the_seed(tmp_path: Path, compose: str) -> None:
    open_vm(tmp_path, compose, OPTIONS)
    path = tmp_path / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"seed": "00" * 32}))
    with pytest.raises(UsageError, match="does not follow") as caught:
        open_vm(tmp_path, compose, OPTIONS)
    assert "00" * 32 not in str(caught.value)
