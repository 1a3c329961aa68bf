"""Each rule: one thing is changed in a clean file, and exactly its code is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.attestation.audit import RULES, Severity, audit_compose

Edit = Callable[[dict[str, Any], dict[str, Any]], object]
Render = Callable[..., bytes]


def on_service(**changes: Any) -> Edit:
    return lambda app, compose: compose["services"]["trainer"].update(changes)


def on_app(**changes: Any) -> Edit:
    return lambda app, compose: app.update(changes)


def on_compose(**changes: Any) -> Edit:
    return lambda app, compose: compose.update(changes)


def without(*keys: str) -> Edit:
    return lambda app, compose: [app.pop(key) for key in keys]


def volume(entry: object) -> Edit:
    return lambda app, compose: compose["services"]["trainer"]["volumes"].append(entry)


def second_job(app: dict[str, Any], compose: dict[str, Any]) -> None:
    compose["configs"]["other"] = compose["configs"]["job"]
    compose["services"]["trainer"]["configs"].append("other")


IMAGE = "trainer@sha256:"
CASES: tuple[tuple[str, Edit], ...] = (
    ("engine-socket", volume("/var/run/docker.sock:/var/run/docker.sock")),
    ("engine-socket", volume("/run/../run/docker.sock:/docker.sock:ro")),
    ("engine-socket", volume("/:/host")),
    ("engine-socket", volume({"type": "bind", "source": "/var/run", "target": "/x"})),
    ("engine-socket", on_service(use_api_socket=True)),
    ("engine-socket", on_compose(secrets={"s": {"file": "/var/run/docker.sock"}})),
    ("engine-socket", on_compose(volumes={"v": {"driver_opts": {"type": "none", "o": "bind", "device": "/"}}})),
    ("privileged", on_service(privileged=True)),
    ("privileged", on_service(privileged="yes")),
    ("privileged", on_service(post_start=[{"command": "id", "privileged": True}])),
    ("capability-root", on_service(cap_add=["CAP_SYS_ADMIN"])),
    ("capability-root", on_service(cap_add=["all"])),
    ("image-unpinned", on_service(image="trainer:latest")),
    ("image-unpinned", on_service(image=IMAGE + "ab" * 31)),
    ("image-placeholder", on_service(image=IMAGE + "00" * 32)),
    ("image-missing", lambda app, compose: compose["services"]["trainer"].pop("image")),
    ("image-built", on_service(build=".")),
    ("outside-text", on_compose(include=["other.yaml"])),
    ("outside-text", on_service(extends={"file": "base.yaml", "service": "x"})),
    ("outside-text", on_service(provider={"type": "x"})),
    ("shared-namespace", on_service(network_mode="host")),
    ("shared-namespace", on_service(pid="host")),
    ("shared-namespace", on_service(ipc="container:other")),
    ("shared-network", on_compose(networks={"n": {"name": "host", "external": True}})),
    ("capability", on_service(cap_add=["NET_ADMIN"])),
    ("device", on_service(devices=["/dev/mem:/dev/mem"])),
    ("device", on_service(device_cgroup_rules=["a *:* rwm"])),
    ("unconfined", on_service(security_opt=["seccomp:unconfined"])),
    ("unconfined", on_service(security_opt=["label=disable"])),
    ("host-mount", volume("/etc:/etc:ro")),
    ("host-mount", volume("./data:/data")),
    ("host-mount", volume({"type": "bind", "source": "/dstack", "target": "/x"})),
    ("host-mount", on_compose(secrets={"s": {"file": "./token"}})),
    ("volumes-from", on_service(volumes_from=["other"])),
    ("literal-secret", on_service(environment={"HF_TOKEN": "hf_abcdef"})),
    ("literal-secret", on_service(environment=["DB_PASSWORD=12345"])),
    ("literal-secret", on_service(environment={"DB_PASSWORD": 12345})),
    ("literal-secret", on_service(environment={"DATABASE": "postgres://me:hunter2@db/x"})),
    ("literal-secret", on_app(docker_config={"username": "me", "password": "hunter2"})),
    ("env-file", on_service(env_file=".env")),
    ("interpolated", on_service(environment={"HF_TOKEN": "${HF_TOKEN}"})),
    ("interpolated", on_service(environment=["HF_HOME"])),
    ("interpolated", on_service(command=["--x", "$X"])),
    ("restarted", on_service(restart="unless-stopped")),
    ("restarted", on_service(deploy={"restart_policy": {"condition": "any"}})),
    ("port-published", on_service(ports=["8443:8443"])),
    ("port-published", on_service(ports=[{"target": 8443, "published": 8443}])),
    ("no-compose", on_app(runner="bash")),
    ("root-script", on_app(pre_launch_script="echo hello\n")),
    ("root-script", on_app(init_script=["", "echo hello"])),
    ("env-steering", on_app(allowed_envs=["LD_PRELOAD"])),
    ("env-steering", on_app(allowed_envs=["DSTACK_ROOT_PASSWORD"])),
    ("env-allowed", on_app(allowed_envs=["HF_TOKEN"])),
    ("public-logs", on_app(public_logs=True)),
    ("public-sysinfo", on_app(public_sysinfo=True)),
    ("public-tcbinfo", on_app(public_tcbinfo=True)),
    ("public-tcbinfo", without("public_tcbinfo")),
    ("key-provider-local", on_app(kms_enabled=False, local_key_provider_enabled=True)),
    ("key-provider-local", on_app(key_provider="tpm")),
    ("key-provider-none", on_app(kms_enabled=False)),
    ("key-provider-none", on_app(key_provider="none")),
    ("gateway", on_app(gateway_enabled=True)),
    ("gateway", on_app(tproxy_enabled=True)),
    ("secure-time-off", on_app(secure_time=False)),
    ("secure-time-absent", without("secure_time")),
    ("gpu-policy-weak", on_app(requirements={"gpu_policy": {"attest_gpu": False}})),
    ("gpu-policy-weak", on_app(requirements={"gpu_policy": {"allow_devtools": True}})),
    ("gpu-policy-absent", without("requirements")),
    ("requirements-ignored", on_app(manifest_version=2)),
    ("unknown-key", on_app(public_log=False)),
    ("job-spec-missing", on_compose(configs={"job": {"content": "version: 1\n"}})),
    ("job-spec-missing", on_service(configs=["another"])),
    ("job-spec-ambiguous", second_job),
)


@pytest.mark.parametrize(("code", "edit"), CASES)
def test_one_change_is_one_finding(code: str, edit: Edit, render: Render) -> None:
    found = audit_compose(render(edit)).findings
    assert [finding.code for finding in found] == [code]


def test_every_rule_has_a_case() -> None:
    codes = [rule.code for rule in RULES]
    assert set(codes) == {code for code, _ in CASES}
    assert len(codes) == len(set(codes))


def test_clean_file(render: Render) -> None:
    audited = audit_compose(render())
    assert audited.findings == ()
    assert audited.job_spec_sha256 is not None
    assert audited.compose_sha256 is not None


@pytest.mark.parametrize(
    "edit",
    [
        volume("/run/dstack.sock:/var/run/dstack.sock"),
        volume("/data"),
        volume({"type": "tmpfs", "target": "/x"}),
        on_service(environment={"API_KEY_FILE": "/run/secrets/key", "PUBLIC_KEY": "x", "PASSWORD": ""}),
        on_service(command=["echo", "$$HOME"]),
        on_service(privileged=False, restart=False, cap_add=[]),
        on_app(key_provider="kms", kms_enabled=False, pre_launch_script=""),
    ],
)
def test_harmless_changes(edit: Edit, render: Render) -> None:
    assert audit_compose(render(edit)).findings == ()


def test_no_compose_file_inside(render: Render) -> None:
    found = audit_compose(render(on_app(docker_compose_file=None))).findings
    assert {finding.code for finding in found} == {"no-compose", "job-spec-missing"}


def test_secret_values_are_never_in_findings(render: Render) -> None:
    secrets = {"HF_TOKEN": "hunter2", "URL": "https://me:hunter2@host/", "MY_SECRET": "${X:-hunter2}"}
    found = audit_compose(render(on_service(environment=secrets))).findings
    assert [each.code for each in found].count("literal-secret") == 3
    assert "hunter2" not in repr(found)


def test_control_characters_do_not_reach_the_terminal(render: Render) -> None:
    found = audit_compose(render(on_app(**{"\x1b[2J": 1}))).findings
    found += audit_compose(render(on_service(image="\x1b[31mx"))).findings
    assert all(text.isprintable() for each in found for text in (each.path, each.message))
    assert len(found) == 2


def test_the_configuration_that_this_project_ships() -> None:
    configs = Path(__file__).parents[3] / "configs"
    audited = audit_compose((configs / "app-compose.json").read_bytes())
    high = [finding.code for finding in audited.findings if finding.severity.reaches(Severity.HIGH)]
    assert high == ["image-placeholder"]  # a template: its user fills the digest in
    assert audited.job_spec_sha256 is not None
    bare = audit_compose((configs / "docker-compose.yaml").read_bytes())
    assert bare.compose_sha256 is None
    assert {each.code for each in bare.findings} == {"image-placeholder", "port-published"}
