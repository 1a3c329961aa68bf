"""`trainer policy init` never leaves open where the VM's keys come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainer.attestation.dstack.key_source import CLEAN_START_SHA256
from trainer.attestation.policy import KeyProviderDemand
from trainer.cli.app import run_command_line as run
from trainer.deployment import DeploymentProfile, render_app_compose
from trainer.encoding import sha256_hex
from trainer.errors import ExitCode
from trainer.provider import read_policy
from trainer.simulator.event_log_writer import RuntimeEvent

if TYPE_CHECKING:
    from tests.cli.conftest import DeployedJob

Captured = pytest.CaptureFixture[str]
Deploy = Callable[[str], "DeployedJob"]

COMPOSE = (Path(__file__).parents[2] / "configs" / "docker-compose.yaml").read_text("utf-8")
IDENTITY, ROOT, APP = "ab" * 91, "02" + "cd" * 32, "ef" * 20
PINS = ("--kms-root-key", ROOT, "--app-id", APP)
SEALED = render_app_compose(COMPOSE).decode()
KMS = render_app_compose(COMPOSE, DeploymentProfile.KMS, key_provider_id=IDENTITY).decode()


def changed(text: str, **changes: object) -> str:
    """app-compose.json with other values; `...` removes a key."""
    app = json.loads(text) | changes
    return json.dumps({name: value for name, value in app.items() if value is not ...})


@pytest.fixture
def init(deploy: Deploy, tmp_path: Path) -> Callable[..., int]:
    """Runs `policy init` for a text of app-compose.json."""

    def start(text: str, *options: str) -> int:
        path = tmp_path / "app-compose.json"
        path.write_text(text)
        return run(
            ["policy", "init", *deploy(SEALED).options, "--app-compose", str(path), *options]
        )

    return start


def app_section(folder: Path) -> Any:
    return read_policy(folder / "policy.yaml").app


def test_a_sealed_deployment_gets_a_policy_of_no_key_service(
    init: Callable[..., int], tmp_path: Path
) -> None:
    assert init(SEALED) == ExitCode.DONE
    app = app_section(tmp_path)
    assert app.key_provider == KeyProviderDemand(name="none", id="")
    assert (app.kms_root_key, app.init_script_sha256, app.recipient) == ("none", (), "instance")
    assert app.app_id == sha256_hex(SEALED.encode())[:40]


@pytest.mark.parametrize("recipient", ["instance", "derived"])
def test_a_deployment_with_a_key_service_names_it(
    init: Callable[..., int], tmp_path: Path, recipient: str
) -> None:
    assert init(KMS, *PINS, "--recipient", recipient) == ExitCode.DONE
    app = app_section(tmp_path)
    assert app.key_provider == KeyProviderDemand(name="kms", id=IDENTITY)
    assert (app.kms_root_key, app.app_id, app.recipient) == (ROOT, APP, recipient)
    assert app.init_script_sha256 == (CLEAN_START_SHA256,)


def test_an_identity_that_the_text_does_not_name_comes_from_an_option(
    init: Callable[..., int], tmp_path: Path
) -> None:
    text = changed(KMS, key_provider_id="")
    assert init(text, *PINS, "--key-provider-id", IDENTITY) == ExitCode.DONE
    assert app_section(tmp_path).key_provider.id == IDENTITY


REFUSED: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "no root key": (KMS, ("--app-id", APP), ("--kms-root-key",)),
    "no app id": (KMS, ("--kms-root-key", ROOT), ("--app-id",)),
    "neither": (KMS, (), ("--kms-root-key", "--app-id")),
    "no identity": (changed(KMS, key_provider_id=""), PINS, ("--key-provider-id",)),
    "a template's identity": (changed(KMS, key_provider_id="FILL IN"), PINS, ("key_provider_id",)),
    "two identities": (KMS, (*PINS, "--key-provider-id", "cd" * 91), ("--key-provider-id", "cdcd")),
    "no clean start": (changed(KMS, init_script=...), PINS, ("earlier versions", "--profile kms")),
    "another script": (changed(KMS, init_script="true\n"), PINS, ("earlier versions",)),
    "the machine's keys": (
        changed(SEALED, key_provider="local", local_key_provider_enabled=True),
        (),
        ("from the machine",),
    ),
    "a text that contradicts itself": (changed(SEALED, kms_enabled=True), (), ("any key service",)),
    "derived, without a key service": (
        SEALED,
        ("--recipient", "derived"),
        ("derived", "key service"),
    ),
    "a root key, without a key service": (
        SEALED,
        ("--kms-root-key", ROOT),
        ("--kms-root-key", "no key service"),
    ),
    "an app id, without a key service": (SEALED, ("--app-id", APP), ("--app-id", "no key service")),
    "a root key of another form": (
        KMS,
        ("--kms-root-key", "cd" * 33, "--app-id", APP),
        ("--kms-root-key",),
    ),
    "an app id of another form": (KMS, ("--kms-root-key", ROOT, "--app-id", "any"), ("--app-id",)),
    "an identity of another form": (
        changed(KMS, key_provider_id=""),
        (*PINS, "--key-provider-id", "any"),
        ("--key-provider-id",),
    ),
    "an identity in no hex": (changed(SEALED, key_provider_id="zz"), (), ("app-compose", "id: ")),
    "too long an identity": (changed(KMS, key_provider_id="ab" * 3000), PINS, ("key_provider_id",)),
    "too many scripts": (
        changed(SEALED, init_script=["true"] * 17),
        (),
        ("app-compose", "init_script_sha256"),
    ),
    "a script that is no text": (
        changed(SEALED, init_script=["true", 3]),
        (),
        ("app-compose", "init_script"),
    ),
    "no JSON": ("{", (), ("app-compose",)),
    "no object": ("[]", (), ("app-compose",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_no_policy_is_written_that_leaves_the_keys_to_others(
    init: Callable[..., int], tmp_path: Path, capsys: Captured, name: str
) -> None:
    text, options, words = REFUSED[name]
    assert init(text, *options) == ExitCode.USAGE
    printed = capsys.readouterr().err
    assert [word for word in words if word not in printed] == []
    assert "hint:" in printed
    assert not (tmp_path / "policy.yaml").exists()


# the key service of a job that runs


def from_job(job: DeployedJob, folder: Path, *options: str) -> int:
    reviewed = folder / "reviewed.json"
    reviewed.write_text(job.vm.app_compose)
    return run(
        [
            "policy",
            "init",
            *job.options,
            "--from-job",
            "https://job.example",
            "--against",
            str(reviewed),
            *options,
        ]
    )


def test_the_key_service_of_a_job_is_named_and_not_just_accepted(
    deploy: Deploy, tmp_path: Path, capsys: Captured
) -> None:
    job = deploy(KMS)
    assert from_job(job, tmp_path) == ExitCode.USAGE
    printed = capsys.readouterr().err
    assert [pin for pin in job.pins if pin.replace("=", " ") not in printed] == []
    assert "--key-provider-id" not in printed  # the reviewed text names it
    assert not (tmp_path / "policy.yaml").exists()
    assert from_job(job, tmp_path, *job.pins) == ExitCode.DONE
    assert app_section(tmp_path).kms_root_key == job.vm.key_service.root_public_key.hex()


def test_a_service_that_the_text_does_not_name_is_named_by_the_job(
    deploy: Deploy, tmp_path: Path, capsys: Captured
) -> None:
    job = deploy(changed(KMS, key_provider_id=""))
    identity = json.loads(job.vm.key_provider)["id"]
    assert from_job(job, tmp_path, *job.pins) == ExitCode.USAGE
    assert f"--key-provider-id {identity}" in capsys.readouterr().err
    assert from_job(job, tmp_path, *job.pins, "--key-provider-id", identity) == ExitCode.DONE
    assert app_section(tmp_path).key_provider.id == identity


def test_a_terminal_is_asked_about_the_key_service(
    deploy: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, asked = deploy(KMS), []

    def answer(question: str) -> bool:
        asked.append(question)
        return len(asked) > 1

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", answer)
    assert from_job(job, tmp_path) == ExitCode.USAGE
    assert not (tmp_path / "policy.yaml").exists()
    assert from_job(job, tmp_path) == ExitCode.DONE
    assert job.vm.key_service.root_public_key.hex() in asked[0]
    assert app_section(tmp_path).app_id == job.vm.app_id.hex()


def test_a_sealed_job_has_no_key_service_to_accept(deploy: Deploy, tmp_path: Path) -> None:
    assert from_job(deploy(SEALED), tmp_path) == ExitCode.DONE
    assert app_section(tmp_path).kms_root_key == "none"


@pytest.mark.parametrize(
    ("option", "code"),
    [
        (("--kms-root-key", ROOT), "key-chain"),
        (("--app-id", APP), "app-id"),
    ],
)
def test_a_job_with_another_key_service_than_the_named_one_is_refused(
    deploy: Deploy, tmp_path: Path, capsys: Captured, option: tuple[str, str], code: str
) -> None:
    job = deploy(KMS)
    rest = [pin for pin in job.pins if not pin.startswith(option[0])]
    assert from_job(job, tmp_path, *rest, *option) == ExitCode.VERIFICATION
    assert code in capsys.readouterr().out
    assert not (tmp_path / "policy.yaml").exists()


def test_a_job_with_the_operators_own_key_service_is_refused(
    deploy: Deploy, tmp_path: Path, capsys: Captured
) -> None:
    """The reviewed text names a service, and the measured guest got its keys of another one."""
    job = deploy(KMS)
    own = RuntimeEvent("key-provider", b'{"name":"kms","id":"0b"}')
    events = job.vm.events
    job.vm.replace_events(
        tuple(own if getattr(each, "name", "") == own.name else each for each in events)
    )
    assert from_job(job, tmp_path, *job.pins) == ExitCode.VERIFICATION
    assert "key-provider" in capsys.readouterr().out
    assert not (tmp_path / "policy.yaml").exists()


def test_a_weak_text_is_refused_before_anybody_is_asked(
    deploy: Deploy, tmp_path: Path, capsys: Captured
) -> None:
    job = deploy(changed(KMS, init_script=...))
    assert from_job(job, tmp_path) == ExitCode.USAGE
    assert "earlier versions" in capsys.readouterr().err
    assert not (tmp_path / "policy.yaml").exists()


def test_a_job_that_shows_no_key_service_although_its_app_has_one_is_refused(
    deploy: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = deploy(KMS)
    monkeypatch.setattr("tests.cli.conftest.key_chain", lambda _vm: None)
    assert from_job(job, tmp_path) == ExitCode.VERIFICATION
    assert not (tmp_path / "policy.yaml").exists()
