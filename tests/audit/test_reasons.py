"""Reasons: one thing is changed in a shipped file, and the finding says why it matters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from trainer.audit import Finding, Severity, audit_compose
from trainer.audit.app_reasons import APP_REASONS
from trainer.audit.compose_reasons import COMPOSE_REASONS, SERVICE_REASONS
from trainer.deployment import CLEAN_START

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


def on_volumes(**changes: Any) -> Edit:
    return lambda app, compose: compose["volumes"].update(changes)


def capabilities(*names: str) -> Edit:
    return lambda app, compose: compose["services"]["trainer"]["cap_add"].extend(names)


def on_machine(app: dict[str, Any], compose: dict[str, Any]) -> None:
    """Keys of the machine itself, without anything else that belongs to a key service."""
    app |= {"key_provider": "local", "kms_enabled": False, "local_key_provider_enabled": True}
    app |= {"key_provider_id": "", "gateway_enabled": False}


def volume(entry: object) -> Edit:
    return lambda app, compose: compose["services"]["trainer"]["volumes"].append(entry)


def on_environment(variables: Mapping[str, object] | list[str]) -> Edit:
    """Sets the variables beside that of the job spec, in the form in which they are given."""

    def edit(app: dict[str, Any], compose: dict[str, Any]) -> None:
        service = compose["services"]["trainer"]
        job = service["environment"]["TRAINER_JOB"]
        if isinstance(variables, list):
            service["environment"] = [*variables, f"TRAINER_JOB={job}"]
        else:
            service["environment"] = {**variables, "TRAINER_JOB": job}

    return edit


def job_as_config(app: dict[str, Any], compose: dict[str, Any]) -> None:
    """The job spec as a config with inline content, which needs a container that can be written to."""
    service = compose["services"]["trainer"]
    compose["configs"] = {"job": {"content": service["environment"].pop("TRAINER_JOB")}}
    service["configs"] = [{"source": "job", "target": "/etc/trainer/job.yaml"}]


def second_job(app: dict[str, Any], compose: dict[str, Any]) -> None:
    compose["services"]["other"] = copy.deepcopy(compose["services"]["trainer"])


def foreign_service(app: dict[str, Any], compose: dict[str, Any]) -> None:
    """A service of another kind: what is dangerous in it is named as well."""
    compose["services"]["other"] = {
        "image": IMAGE + "cd" * 32,
        "privileged": True,
        "volumes": ["/var/run/docker.sock:/x"],
    }


def job_with_variable(app: dict[str, Any], compose: dict[str, Any]) -> None:
    """A job spec that is filled in when it starts is none: the measured text does not fix it."""
    environment = compose["services"]["trainer"]["environment"]
    environment["TRAINER_JOB"] = environment["TRAINER_JOB"].replace("./model", "${MODEL}")


IMAGE = "trainer@sha256:"
CASES: tuple[tuple[str, Edit], ...] = (
    ("engine-socket", volume("/var/run/docker.sock:/var/run/docker.sock")),
    ("engine-socket", volume("/run/../run/docker.sock:/docker.sock:ro")),
    ("engine-socket", volume("/:/host")),
    ("engine-socket", volume({"type": "bind", "source": "/var/run", "target": "/x"})),
    ("engine-socket", on_service(use_api_socket=True)),
    ("engine-socket", on_compose(secrets={"s": {"file": "/var/run/docker.sock"}})),
    ("engine-socket", on_volumes(v={"driver_opts": {"type": "none", "o": "bind", "device": "/"}})),
    ("volume", on_volumes(v={"driver_opts": {"type": "none", "o": "bind", "device": "/etc"}})),
    ("volume", on_volumes(ciphertext={"external": True})),
    ("privileged", on_service(privileged=True)),
    ("privileged", on_service(privileged="yes")),
    ("privileged", on_service(privileged=False)),
    ("capability-root", capabilities("CAP_SYS_ADMIN")),
    ("capability-root", capabilities("all")),
    ("capability", capabilities("NET_ADMIN")),
    ("capability", on_service(cap_add=[])),
    ("capability", on_service(cap_drop=[])),
    ("image-unpinned", on_service(image="trainer:latest")),
    ("image-unpinned", on_service(image=IMAGE + "ab" * 31)),
    ("image-placeholder", on_service(image=IMAGE + "00" * 32)),
    ("image-tag-ignored", on_service(image="host:5000/trainer:1.2@sha256:" + "ab" * 32)),
    ("image-missing", lambda app, compose: compose["services"]["trainer"].pop("image")),
    ("image-built", on_service(build=".")),
    ("outside-text", on_compose(include=["other.yaml"])),
    ("outside-text", on_service(extends={"file": "base.yaml", "service": "x"})),
    ("outside-text", on_service(provider={"type": "x"})),
    ("shared-namespace", on_service(network_mode="host")),
    ("shared-namespace", on_service(network_mode="service:other")),
    ("shared-namespace", on_service(pid="host")),
    ("shared-namespace", on_service(pid="service:other")),
    ("shared-namespace", on_service(ipc="container:other")),
    ("shared-namespace", on_service(ipc="shareable")),
    ("shared-network", on_compose(networks={"n": {"name": "host", "external": True}})),
    ("shared-network", on_service(networks=["n"])),
    ("device", on_service(devices=["/dev/mem:/dev/mem"])),
    ("device", on_service(device_cgroup_rules=["a *:* rwm"])),
    ("deploy", on_service(deploy={"restart_policy": {"condition": "any"}})),
    ("unconfined", on_service(security_opt=["seccomp:unconfined"])),
    ("unconfined", on_service(security_opt=["no-new-privileges:true", "label=disable"])),
    ("unconfined", lambda app, compose: compose["services"]["trainer"].pop("security_opt")),
    ("host-mount", volume("/etc:/etc:ro")),
    ("host-mount", volume("./data:/data")),
    ("host-mount", volume("/data")),
    ("host-mount", volume("ciphertext:/opt/trainer")),
    ("host-mount", volume({"type": "bind", "source": "/dstack", "target": "/x"})),
    ("host-mount", volume({"type": "tmpfs", "target": "/x"})),
    ("inline-config", on_compose(secrets={"s": {"file": "./token"}})),
    ("inline-config", on_compose(configs={"c": {"content": "a"}})),
    ("inline-config", on_service(configs=[{"source": "c", "target": "/opt/trainer/x.py"}])),
    ("host-gateway", on_service(extra_hosts=["agent:host-gateway"])),
    ("host-gateway", on_service(extra_hosts={"agent": "host-gateway"})),
    ("name-override", on_service(extra_hosts=["hub.example=203.0.113.5"])),
    ("name-override", on_service(dns="203.0.113.5")),
    ("remote-logs", on_service(logging={"driver": "syslog"})),
    ("kernel-setting", on_service(sysctls=["net.ipv4.ip_forward=1"])),
    ("kernel-setting", on_service(sysctls={"net.ipv4.ip_forward": 1})),
    ("cgroup-parent", on_service(cgroup_parent="/")),
    ("user", on_service(group_add=["docker"])),
    ("user", on_service(user="0")),
    ("own-command", on_service(entrypoint=["/bin/sh"])),
    (
        "own-command",
        on_service(command=["--ciphertext-dir", "/var/lib/trainer", "--guest-agent", "/x"]),
    ),
    ("own-command", on_service(healthcheck={"test": ["CMD", "true"]})),
    ("own-command", on_service(post_start=[{"command": "id", "privileged": True}])),
    ("volumes-from", on_service(volumes_from=["other"])),
    ("env-steering", on_environment({"LD_PRELOAD": "/var/lib/trainer/x.so"})),
    ("env-steering", on_environment({"LD_LIBRARY_PATH": "/x"})),
    ("env-steering", on_environment({"PYTHONPATH": "/var/lib/trainer"})),
    ("env-steering", on_environment({"PATH": "/x"})),
    ("environment", on_environment({"TOKENIZERS_PARALLELISM": "false"})),
    ("environment", on_environment({"HTTPS_PROXY": "http://203.0.113.5"})),
    ("job-spec-missing", on_environment(["HF_ENDPOINT=https://hub.example"])),
    ("job-spec-missing", on_service(environment={"TRAINER_JOB": "version: 1\n"})),
    (
        "job-spec-missing environment",
        on_service(environment={"TRAINER_JOBS": "version: 1\nmodel: {}\n"}),
    ),
    ("interpolated", job_with_variable),
    ("interpolated", volume("${DIRECTORY}:/data")),
    ("interpolated", on_environment({"HF_HOME": "${HF_TOKEN:-}"})),
    ("interpolated", on_environment({"HF_HOME": None})),
    ("interpolated", on_service(image="${IMAGE}")),
    ("interpolated", on_compose(networks={"n": {"name": "$X"}})),
    ("literal-secret interpolated", on_environment({"HF_TOKEN": "${HF_TOKEN:-hunter2}"})),
    ("literal-secret environment", on_environment({"HF_TOKEN": "hf_abcdef"})),
    ("literal-secret environment", on_environment({"DB_PASSWORD": 12345})),
    ("literal-secret job-spec-missing", on_environment(["DB_PASSWORD=12345"])),
    ("literal-secret environment", on_environment({"DATABASE": "postgres://me:hunter2@db/x"})),
    ("literal-secret own-command", on_service(command=["run", "--token", "hunter2"])),
    ("literal-secret own-command", on_service(command=["run", "--hf-token=hunter2"])),
    ("literal-secret own-command", on_service(command="run --api-key hunter2")),
    ("literal-secret clean-start-missing", on_app(init_script=["export HF_TOKEN=hunter2"])),
    (
        "literal-secret own-command",
        on_service(command="PUBLIC_KEY=abc SECRET_FILE=/x DB_PASSWORD=hunter2 run"),
    ),
    ("literal-secret own-command", on_service(entrypoint=["x", "--password", "hunter2"])),
    ("literal-secret own-command", on_service(pre_stop=[{"command": ["x", "--token=hunter2"]}])),
    (
        "literal-secret own-command",
        on_service(healthcheck={"test": "curl --api-key hunter2 localhost"}),
    ),
    ("literal-secret shape", on_service(labels={"note": "AKIAABCDEFGHIJKLMNOP"})),
    ("literal-secret remote-logs", on_service(logging={"options": {"splunk-token": "hunter2"}})),
    ("literal-secret registry", on_app(docker_config={"username": "me", "password": "hunter2"})),
    ("literal-secret registry", on_app(docker_config={"password": "47114711"})),
    ("literal-secret root-script", on_app(pre_launch_script="export HF_TOKEN=hunter2\n")),
    ("env-file", on_service(env_file=".env")),
    ("root-writable", on_service(read_only=False)),
    ("root-writable", lambda app, compose: compose["services"]["trainer"].pop("read_only")),
    ("workspace", on_service(tmpfs=["/run/trainer:size=1g,mode=0777,exec", "/tmp:size=64m"])),
    ("workspace", lambda app, compose: compose["services"]["trainer"].pop("tmpfs")),
    ("resource-limits", on_service(ulimits={"core": -1})),
    ("init-missing", on_service(init=False)),
    ("init-missing", lambda app, compose: compose["services"]["trainer"].pop("init")),
    ("restarted", on_service(restart="unless-stopped")),
    ("profiles", on_service(profiles=["x"])),
    ("port-published", on_service(ports=["8443:8443", "22:22"])),
    ("port-published", on_service(ports=[{"target": 8443, "published": 8443}])),
    ("port-published", on_service(expose=[22])),
    ("guest-agent-port", on_service(ports=["8090:8443"])),
    ("guest-agent-port", on_service(ports=["127.0.0.1:443:8090/tcp"])),
    ("guest-agent-port", on_service(ports=[{"target": 8443, "published": 8090}])),
    ("other-service", second_job),
    ("other-service engine-socket host-mount privileged", foreign_service),
    ("shape", on_service(**{"x-note": 1})),
    ("shape", on_service(privilegd=False)),
    ("shape", on_compose(service={})),
    ("shape", on_compose(**{"x-note": 1})),
    ("shape", on_app(public_log=False)),
    ("shape", on_app(**{"x-note": 1})),
    ("shape", on_app(name="a b")),
    ("no-compose", on_app(runner="bash")),
    ("no-compose", on_app(docker_compose_file=None)),
    ("root-script", on_app(pre_launch_script="echo hello\n")),
    ("root-script", on_app(pre_launch_script=CLEAN_START)),
    ("root-script", on_app(pre_launch_script="")),
    ("root-script", on_app(bash_script="")),
    ("clean-start-missing", on_app(init_script=["", "echo hello", CLEAN_START])),
    ("clean-start-missing", on_app(init_script=[CLEAN_START, CLEAN_START])),
    ("clean-start-missing", on_app(init_script=CLEAN_START + "# and more\n")),
    ("clean-start-missing", on_app(init_script=CLEAN_START.rstrip("\n"))),
    ("clean-start-missing", without("init_script")),
    ("clean-start-missing", on_app(init_script="")),
    ("clean-start-missing", on_app(init_script=[])),
    ("root-script", on_app(init_script=[CLEAN_START])),
    ("env-steering", on_app(allowed_envs=["LD_PRELOAD"])),
    ("env-steering", on_app(allowed_envs=["DSTACK_ROOT_PASSWORD"])),
    ("env-allowed", on_app(allowed_envs=["OTHER_TOKEN"])),
    ("env-allowed", on_app(allowed_envs=["hf_token"])),
    ("env-allowed", on_app(allowed_envs=["HF_TOKEN"])),  # which the compose file does not take
    ("public-logs", on_app(public_logs=True)),
    ("public-sysinfo", on_app(public_sysinfo=True)),
    ("public-tcbinfo", on_app(public_tcbinfo=True)),
    ("public-tcbinfo", without("public_tcbinfo")),
    ("key-provider key-provider-open", on_app(kms_enabled=False)),
    ("key-provider key-provider-open", on_app(local_key_provider_enabled=True)),
    ("key-provider key-provider-machine root-script", on_machine),
    ("key-provider-unpinned", on_app(key_provider_id="")),
    ("key-provider-unpinned", without("key_provider_id")),
    ("key-provider-unpinned", on_app(key_provider_id="FILL IN")),
    ("key-provider-unpinned", on_app(key_provider_id="abc")),
    ("key-provider-unpinned", on_app(key_provider_id="AB" * 33)),
    ("key-provider-unpinned", on_app(key_provider_id="ab" * 15)),
    ("instance-id-absent", on_app(no_instance_id=True)),
    ("swap", on_app(swap_size="2G")),
    ("storage", on_app(storage_fs="ntfs")),
    ("registry", on_app(docker_config={"registry": "registry.invalid"})),
    ("features", on_app(features=["kms"])),
    ("features", on_app(features=["tproxy-net"])),
    ("gateway", on_app(tproxy_enabled=True)),
    ("secure-time", on_app(secure_time=False)),
    ("secure-time", without("secure_time")),
    ("requirements", on_app(requirements={"gpu_policy": {"attest_gpu": False}})),
    ("requirements", on_app(requirements={"gpu_policy": {"allow_devtools": True}})),
    ("requirements", on_app(manifest_version=3)),
    ("verity-volume", on_app(verity_volumes=[{"verity_root": "ab" * 32, "target": "docker"}])),
    ("port-policy", on_app(port_policy={"ports": [{"port": 22}]})),
)


def found_in(data: bytes) -> list[Finding]:
    """The findings, apart from notes on what is within the published list."""
    return [each for each in audit_compose(data).findings if each.severity is not Severity.INFO]


@pytest.mark.parametrize(("codes", "edit"), CASES)
def test_one_change_and_its_reasons(codes: str, edit: Edit, render: Render) -> None:
    found = found_in(render(edit))
    assert {finding.code for finding in found} == set(codes.split())
    assert all(finding.severity.rank <= Severity.HIGH.rank for finding in found)
    assert "hunter2" not in repr(found)


def test_every_reason_has_a_case() -> None:
    codes = {reason.code for reason in (*SERVICE_REASONS, *COMPOSE_REASONS, *APP_REASONS)}
    covered = {code for codes, _ in CASES for code in codes.split()}
    assert codes - covered == {"yaml-form"}  # test_yaml_forms.py


@pytest.mark.parametrize(
    "edit",
    [
        on_environment({"API_KEY_FILE": "/run/secrets/key", "PUBLIC_KEY": "x", "PASSWORD": ""}),
        on_environment({"DB_PASSWORD": "${DB_PASSWORD}"}),
        on_service(command=["echo", "$$HOME"]),
        on_service(command=["run", "--token"]),
        on_service(
            command=["run", "--key-file", "/run/key", "--token", "--verbose", "--public-key=abc"]
        ),
        on_service(command="PUBLIC_KEY=abc SECRET_FILE=/run/x run"),
        on_app(docker_config={"token_key": "REGISTRY_TOKEN"}),
    ],
)
def test_what_only_looks_like_a_secret(edit: Edit, render: Render) -> None:
    assert "literal-secret" not in {finding.code for finding in found_in(render(edit))}


def test_a_finding_shows_short_lists_and_the_keys_of_mappings(render: Render) -> None:
    (names,) = found_in(render(on_app(allowed_envs=["OTHER"])))
    (labels,) = found_in(render(on_service(labels={"a": "b", "c": "d"})))
    assert ", got a list: OTHER, because " in names.message
    assert ", got a mapping: a, c, because " in labels.message
    (longer,) = found_in(render(on_service(dns=["203.0.113.5"] * 50)))
    assert ", got a list of 50 entries, because " in longer.message


def test_secret_values_are_never_in_findings(render: Render) -> None:
    secrets = {
        "HF_TOKEN": "hunter2",
        "URL": "https://me:hunter2@host/",
        "MY_SECRET": "${X:-hunter2}",
    }
    found = audit_compose(render(on_environment(secrets))).findings
    assert [each.code for each in found].count("literal-secret") == 3
    assert "hunter2" not in repr(found)


def test_control_characters_do_not_reach_the_terminal(render: Render) -> None:
    found = found_in(render(on_app(**{"\x1b[2J": 1})))
    found += found_in(render(on_service(image="\x1b[31mx")))
    found += found_in(render(on_compose(**{"\x1b[2J": 1})))
    assert all(text.isprintable() for each in found for text in (each.path, each.message))
    assert len(found) == 3


COMPOSE_LINES = """\
services: # 1
  trainer:
    image: x:latest # image-unpinned
    network_mode: host # shared-namespace
    privileged: true # privileged
    cap_add:
      - CHOWN
      - SYS_ADMIN # capability-root
      - DAC_OVERRIDE
      - KILL
      - SETGID
      - SETUID
    volumes:
      - /var/run/dstack.sock:/var/run/dstack.sock
      - ciphertext:/var/lib/trainer
      - /etc:/etc # host-mount
    environment:
      A: b # environment
      HF_ENDPOINT: https://hub.example # model-hub
    command: --verbose # own-command
    restart: always # restarted
    privilegd: true # shape
    read_only: false # root-writable
    init: "no" # init-missing
  other: {} # other-service
volumes:
  ciphertext:
    name: confidential-trainer-ciphertext
    external: true # volume
"""
APP_LINES = """\
{
  "runner": "docker-compose",
  "kms_enabled": false,
  "local_key_provider_enabled": true, key-provider
  "public_logs": true, public-logs
  "bash_script": "echo", root-script
  "allowed_envs": [ env-steering
    "HF_TOKEN",
    "LD_PRELOAD"
  ],
  "secure_time": true,
  "public_tcbinfo": false,
  "requirements": { requirements
    "gpu_policy": {}
  },
  "manifest_version": "3", requirements
  "docker_compose_file": null no-compose
}
"""


def present(text: str) -> list[tuple[str, int]]:
    """Code and line of the findings about what is there."""
    return sorted(
        (each.code, each.line)
        for each in audit_compose(text.encode()).findings
        if ", got nothing, " not in each.message
    )


def test_the_line_of_each_finding_in_yaml() -> None:
    expected = [
        (line.rpartition("# ")[2], number)
        for number, line in enumerate(COMPOSE_LINES.splitlines(), 1)
        if "# " in line and number > 1
    ]
    assert present(COMPOSE_LINES) == sorted(expected)


def test_the_line_of_each_finding_in_json() -> None:
    lines = [line.rpartition(" ") for line in APP_LINES.splitlines()]
    codes = {reason.code for reason in APP_REASONS}
    expected = [(word, number) for number, (_, _, word) in enumerate(lines, 1) if word in codes]
    assert len(expected) == 7
    text = "\n".join(rest if word in codes else f"{rest} {word}" for rest, _, word in lines)
    assert present(text) == sorted([*expected, ("clean-start-missing", 1)])


def test_the_line_of_what_is_absent(render: Render) -> None:
    found = found_in(render(without("secure_time")))
    assert [(each.code, each.line, each.path) for each in found] == [
        ("secure-time", 1, "secure_time")
    ]
