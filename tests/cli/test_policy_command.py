"""`trainer policy init --from-job`: a deployed text is accepted if it was reviewed, or by its digest alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainer.attestation.dstack.event_log import parse_event_log, payloads
from trainer.attestation.dstack.key_source import CLEAN_START_SHA256
from trainer.cli.app import run_command_line as run
from trainer.deployment import DeploymentProfile
from trainer.deployment import render_app_compose as render_profile
from trainer.errors import ExitCode
from trainer.provider import read_policy
from trainer.simulator.compose_files import render_app_compose

if TYPE_CHECKING:
    from tests.cli.conftest import DeployedJob

Captured = pytest.CaptureFixture[str]
Deploy = Callable[[str], "DeployedJob"]

REVIEWED = render_app_compose().decode()


def with_script(app: dict[str, Any], _compose: dict[str, Any]) -> None:
    """What a deployment service may add."""
    app["pre_launch_script"] = "echo added by the service\n"
    app["public_logs"] = True


REWRITTEN = render_app_compose(with_script).decode()


def digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@pytest.fixture
def reviewed(tmp_path: Path) -> Path:
    path = tmp_path / "reviewed.json"
    path.write_text(REVIEWED)
    return path


def init(job: DeployedJob, reviewed: Path, *arguments: object) -> int:
    options = ("--from-job", "https://job.example", "--against", str(reviewed))
    return run(["policy", "init", *job.options, *job.pins, *options, *map(str, arguments)])


def test_the_reviewed_text_is_accepted(deploy: Deploy, reviewed: Path, tmp_path: Path) -> None:
    assert init(deploy(REVIEWED), reviewed) == ExitCode.DONE
    policy = read_policy(tmp_path / "policy.yaml")
    assert [f"sha256:{each}" for each in policy.app.compose_sha256] == [digest(REVIEWED)]


def test_it_is_the_same_policy_as_that_of_the_file(
    deploy: Deploy, reviewed: Path, tmp_path: Path
) -> None:
    job = deploy(REVIEWED)
    assert init(job, reviewed) == ExitCode.DONE
    first = (tmp_path / "policy.yaml").read_bytes()
    (tmp_path / "policy.yaml").unlink()
    assert (
        run(["policy", "init", *job.options, *job.pins, "--app-compose", str(reviewed)])
        == ExitCode.DONE
    )
    assert (tmp_path / "policy.yaml").read_bytes() == first


def test_another_text_is_shown_and_refused_with_its_digest(
    deploy: Deploy, reviewed: Path, tmp_path: Path, capsys: Captured
) -> None:
    saved = tmp_path / "deployed.json"
    assert init(deploy(REWRITTEN), reviewed, "--save-compose", saved) == ExitCode.USAGE
    printed = capsys.readouterr()
    assert "pre_launch_script" in printed.out
    assert "root-script" in printed.out
    assert "public-logs" in printed.out
    assert f"--accept-compose {digest(REWRITTEN)}" in printed.err
    assert saved.read_text() == REWRITTEN
    assert not (tmp_path / "policy.yaml").exists()


def test_another_text_is_accepted_by_its_digest(
    deploy: Deploy, reviewed: Path, tmp_path: Path
) -> None:
    assert init(deploy(REWRITTEN), reviewed, "--accept-compose", digest(REWRITTEN)) == ExitCode.DONE
    policy = read_policy(tmp_path / "policy.yaml")
    assert [f"sha256:{each}" for each in policy.app.compose_sha256] == [digest(REWRITTEN)]


def test_the_same_meaning_in_other_bytes_needs_acceptance_too(
    deploy: Deploy, reviewed: Path, capsys: Captured
) -> None:
    other_bytes = json.dumps(json.loads(REVIEWED))
    assert other_bytes != REVIEWED
    assert init(deploy(other_bytes), reviewed) == ExitCode.USAGE
    printed = capsys.readouterr()
    assert "changes: none in meaning" in printed.out
    assert digest(other_bytes) in printed.err


@pytest.mark.parametrize(
    "accepted", [digest(REVIEWED), digest(REWRITTEN)[:-1], digest(REWRITTEN)[7:], "yes"]
)
@pytest.mark.parametrize(
    "deployed", [REWRITTEN, render_app_compose(lambda app, _: app.update(name="x")).decode()]
)
def test_a_digest_of_another_text_accepts_nothing(
    deploy: Deploy, reviewed: Path, tmp_path: Path, accepted: str, deployed: str
) -> None:
    assert init(deploy(deployed), reviewed, "--accept-compose", accepted) == ExitCode.USAGE
    assert not (tmp_path / "policy.yaml").exists()


def test_a_stated_digest_must_be_that_of_the_deployed_text_even_if_it_was_reviewed(
    deploy: Deploy, reviewed: Path
) -> None:
    assert init(deploy(REVIEWED), reviewed, "--accept-compose", digest(REWRITTEN)) == ExitCode.USAGE


def test_a_terminal_is_asked(
    deploy: Deploy, reviewed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, asked = deploy(REWRITTEN), []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def answer(question: str) -> bool:
        asked.append(question)
        return len(asked) > 1

    monkeypatch.setattr("typer.confirm", answer)
    assert init(job, reviewed) == ExitCode.USAGE
    assert not (tmp_path / "policy.yaml").exists()
    assert init(job, reviewed) == ExitCode.DONE
    assert digest(REWRITTEN) in asked[0]


@pytest.mark.parametrize("profile", DeploymentProfile)
def test_a_job_of_each_shipped_profile_is_appraised_and_accepted(
    deploy: Deploy, tmp_path: Path, profile: DeploymentProfile
) -> None:
    compose = (Path(__file__).parents[2] / "configs" / "docker-compose.yaml").read_text("utf-8")
    reviewed = tmp_path / "reviewed.json"
    reviewed.write_bytes(
        render_profile(compose, profile, key_provider_id="ab" * 32 if profile == "kms" else None)
    )
    job = deploy(reviewed.read_text())
    assert init(job, reviewed) == ExitCode.DONE
    scripts = payloads(parse_event_log(job.vm.quote(bytes(64)).event_log), "init-script-hash")
    assert [each.hex() for each in scripts] == ([CLEAN_START_SHA256] if profile == "kms" else [])


# attacks


def test_a_text_that_the_vm_did_not_measure_is_not_even_compared(
    deploy: Deploy, reviewed: Path, tmp_path: Path, capsys: Captured
) -> None:
    """The job runs one app, and shows the reviewed text of another one."""
    job = deploy(REWRITTEN)
    job.vm.app_compose = REVIEWED
    assert (
        init(job, reviewed, "--save-compose", tmp_path / "deployed.json") == ExitCode.VERIFICATION
    )
    printed = capsys.readouterr().out
    assert "compose-hash" in printed
    assert not (tmp_path / "policy.yaml").exists()
    assert not (tmp_path / "deployed.json").exists()


def test_another_job_spec_is_refused(deploy: Deploy, reviewed: Path, tmp_path: Path) -> None:
    job = deploy(REVIEWED)
    spec = tmp_path / "job.yaml"
    spec.write_text(spec.read_text() + "train: {seed: 43}\n")
    assert init(job, reviewed) == ExitCode.VERIFICATION
    assert not (tmp_path / "policy.yaml").exists()


def test_an_unknown_os_is_refused(deploy: Deploy, reviewed: Path, tmp_path: Path) -> None:
    """Without an OS that the provider trusts, the event log that names the text proves nothing."""
    job = deploy(REVIEWED)
    job = replace(
        job, options=tuple(each for each in job.options if not each.startswith("--measurements"))
    )
    assert init(job, reviewed) == ExitCode.VERIFICATION
    assert not (tmp_path / "policy.yaml").exists()


# options


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--from-job", "https://job.example"],
        ["--against", "reviewed.json"],
        [
            "--app-compose",
            "reviewed.json",
            "--from-job",
            "https://job.example",
            "--against",
            "reviewed.json",
        ],
        ["--app-compose", "reviewed.json", "--against", "reviewed.json"],
        ["--app-compose", "reviewed.json", "--accept-compose", digest(REVIEWED)],
        ["--app-compose", "reviewed.json", "--save-compose", "x"],
    ],
)
def test_options_that_do_not_fit(
    deploy: Deploy, reviewed: Path, tmp_path: Path, arguments: list[str]
) -> None:
    named = [str(reviewed) if each == "reviewed.json" else each for each in arguments]
    assert run(["policy", "init", *deploy(REVIEWED).options, *named]) == ExitCode.USAGE
    assert not (tmp_path / "policy.yaml").exists()
