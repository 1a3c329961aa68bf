"""Each rule: one thing is changed in a clean file, and exactly its code is found."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from trainer.audit import RULES, Finding, Severity, audit_compose
from trainer.deployment import CLEAN_START
from trainer.simulator.compose_files import JOB
from trainer.spec import parse_job_spec

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


def second_job_in_other_words(app: dict[str, Any], compose: dict[str, Any]) -> None:
    """The same job spec with its keys escaped: no search for words finds it."""
    second_job(app, compose)
    environment = compose["services"]["other"]["environment"]
    environment["TRAINER_JOB"] = environment["TRAINER_JOB"].replace("\nmodel:", '\n"\\x6dodel":')


def job_twice_in_a_list(app: dict[str, Any], compose: dict[str, Any]) -> None:
    """Compose takes the last of two equal names in a list; a reader may stop at the first."""
    service = compose["services"]["trainer"]
    job = service["environment"]["TRAINER_JOB"]
    service["environment"] = [f"TRAINER_JOB={job}", f"TRAINER_JOB={job}# another\n"]


def job_with_variable(app: dict[str, Any], compose: dict[str, Any]) -> None:
    """A job spec that is filled in when it starts is none: the measured text does not fix it."""
    environment = compose["services"]["trainer"]["environment"]
    environment["TRAINER_JOB"] = environment["TRAINER_JOB"].replace("./model", "${MODEL}")


def inline_config(config: object, entry: object) -> Edit:
    """Mounts a config of the compose file into the service."""

    def edit(app: dict[str, Any], compose: dict[str, Any]) -> None:
        compose["configs"] = {"note": config}
        compose["services"]["trainer"]["configs"] = [entry]

    return edit


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
    ("capability-root", on_service(cap_add=["CAP_SYS_ADMIN"])),
    ("capability-root", on_service(cap_add=["all"])),
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
    ("shared-namespace", on_service(pid="host")),
    ("shared-namespace", on_service(ipc="container:other")),
    ("shared-network", on_compose(networks={"n": {"name": "host", "external": True}})),
    ("capability", on_service(cap_add=["NET_ADMIN"])),
    ("capability-users", on_service(cap_add=["SETUID"])),
    ("device", on_service(devices=["/dev/mem:/dev/mem"])),
    ("device", on_service(device_cgroup_rules=["a *:* rwm"])),
    ("unconfined", on_service(security_opt=["seccomp:unconfined"])),
    ("unconfined", on_service(security_opt=["label=disable"])),
    ("host-mount", volume("/etc:/etc:ro")),
    ("host-mount", volume("./data:/data")),
    ("host-mount", volume({"type": "bind", "source": "/dstack", "target": "/x"})),
    ("host-mount", on_compose(secrets={"s": {"file": "./token"}})),
    ("host-gateway", on_service(extra_hosts=["agent:host-gateway"])),
    ("host-gateway", on_service(extra_hosts={"agent": "host-gateway"})),
    ("name-override", on_service(extra_hosts=["hub.example=203.0.113.5"])),
    ("name-override", on_service(dns="203.0.113.5")),
    ("remote-logs", on_service(logging={"driver": "syslog"})),
    ("external-object", on_compose(volumes={"ciphertext": {"external": True}})),
    ("kernel-setting", on_service(sysctls=["net.ipv4.ip_forward=1"])),
    ("kernel-setting", on_service(sysctls={"net.ipv4.ip_forward": 1})),
    ("cgroup-parent", on_service(cgroup_parent="/")),
    ("group-added", on_service(group_add=["docker"])),
    ("own-command", on_service(entrypoint=["/bin/sh"])),
    ("own-command", on_service(healthcheck={"test": ["CMD", "true"]})),
    ("own-command", on_service(post_start=[{"command": "id"}])),
    ("volumes-from", on_service(volumes_from=["other"])),
    ("literal-secret", on_environment({"HF_TOKEN": "hf_abcdef"})),
    ("literal-secret", on_environment(["DB_PASSWORD=12345"])),
    ("literal-secret", on_environment({"DB_PASSWORD": 12345})),
    ("literal-secret", on_environment({"DATABASE": "postgres://me:hunter2@db/x"})),
    ("literal-secret", on_app(docker_config={"username": "me", "password": "hunter2"})),
    ("literal-secret", on_app(docker_config={"password": "47114711"})),
    ("literal-secret", on_service(command=["run", "--token", "hunter2"])),
    ("literal-secret", on_service(command=["run", "--hf-token=hunter2"])),
    ("literal-secret", on_service(command="run --api-key hunter2")),
    ("literal-secret", on_service(command="PUBLIC_KEY=abc SECRET_FILE=/x DB_PASSWORD=hunter2 run")),
    ("literal-secret", on_service(labels={"note": "AKIAABCDEFGHIJKLMNOP"})),
    ("literal-secret", on_service(logging={"options": {"splunk-token": "hunter2"}})),
    ("env-file", on_service(env_file=".env")),
    ("interpolated", on_environment({"HF_TOKEN": "${HF_TOKEN}"})),
    ("interpolated", on_environment({"HF_HOME": "${HF_TOKEN:-}"})),
    ("interpolated", on_environment({"OTHER_TOKEN": "${OTHER_TOKEN:-}"})),
    ("interpolated", on_environment(["HF_HOME"])),
    ("interpolated", on_service(command=["--x", "$X"])),
    ("interpolated", on_compose(secrets={"s": {"environment": "TOKEN"}})),
    ("root-writable", on_service(read_only=False)),
    ("root-writable", lambda app, compose: compose["services"]["trainer"].pop("read_only")),
    ("init-missing", on_service(init=False)),
    ("init-missing", lambda app, compose: compose["services"]["trainer"].pop("init")),
    ("inline-config-read-only", inline_config({"content": "a"}, "note")),
    ("inline-config-read-only", inline_config({"content": "a"}, {"source": "note", "target": "/note"})),
    ("restarted", on_service(restart="unless-stopped")),
    ("restarted", on_service(deploy={"restart_policy": {"condition": "any"}})),
    ("port-published", on_service(ports=["8443:8443"])),
    ("port-published", on_service(ports=[{"target": 8443, "published": 8443}])),
    ("no-compose", on_app(runner="bash")),
    ("root-script", on_app(pre_launch_script="echo hello\n")),
    ("root-script", on_app(init_script=["", "echo hello", CLEAN_START])),
    ("env-steering", on_app(allowed_envs=["LD_PRELOAD"])),
    ("env-steering", on_app(allowed_envs=["DSTACK_ROOT_PASSWORD"])),
    ("root-script", on_app(pre_launch_script=CLEAN_START)),
    ("clean-start", on_app(init_script=[CLEAN_START, CLEAN_START])),
    ("disk-retained", without("init_script")),
    ("disk-retained", on_app(init_script="")),
    ("disk-retained", on_app(init_script=[])),
    ("env-own", on_app(allowed_envs=["HF_TOKEN"])),
    ("env-allowed", on_app(allowed_envs=["OTHER_TOKEN"])),
    ("env-allowed", on_app(allowed_envs=["hf_token"])),
    ("public-logs", on_app(public_logs=True)),
    ("public-sysinfo", on_app(public_sysinfo=True)),
    ("public-tcbinfo", on_app(public_tcbinfo=True)),
    ("public-tcbinfo", without("public_tcbinfo")),
    ("key-provider-local", on_app(kms_enabled=False, local_key_provider_enabled=True)),
    ("key-provider-local", on_app(key_provider="tpm")),
    ("key-provider-none", on_app(kms_enabled=False)),
    ("key-provider-none", on_app(key_provider="none")),
    ("key-provider-unpinned", on_app(key_provider_id="")),
    ("key-provider-unpinned", without("key_provider_id")),
    ("key-provider-unpinned", on_app(key_provider_id="FILL IN")),
    ("key-provider-unpinned", on_app(key_provider_id="abc")),
    ("instance-id-absent", on_app(no_instance_id=True)),
    ("swap", on_app(swap_size="2G")),
    ("storage-unknown", on_app(storage_fs="ntfs")),
    ("registry", on_app(docker_config={"registry": "registry.invalid"})),
    ("features", on_app(features=["kms"])),
    ("gateway", on_app(features=["tproxy-net"])),
    ("gateway", on_app(gateway_enabled=True)),
    ("gateway", on_app(tproxy_enabled=True)),
    ("secure-time-off", on_app(secure_time=False)),
    ("secure-time-absent", without("secure_time")),
    ("gpu-policy-weak", on_app(requirements={"gpu_policy": {"attest_gpu": False}})),
    ("gpu-policy-weak", on_app(requirements={"gpu_policy": {"allow_devtools": True}})),
    ("gpu-policy-absent", without("requirements")),
    ("requirements-ignored", on_app(manifest_version=2)),
    ("unknown-key", on_app(public_log=False)),
    ("unknown-key", on_app(**{"x-note": 1})),
    ("unknown-key", on_service(privilegd=False)),
    ("unknown-key", on_compose(service={})),
    ("extension-key", on_service(**{"x-note": 1})),
    ("extension-key", on_compose(**{"x-note": 1})),
    ("job-spec-missing", on_service(environment={"TRAINER_JOB": "version: 1\n"})),
    ("job-spec-missing", on_service(environment={"TRAINER_JOBS": "version: 1\nmodel: {}\n"})),
    ("job-spec-ambiguous", second_job),
    ("job-spec-ambiguous", second_job_in_other_words),
    ("job-spec-ambiguous", job_twice_in_a_list),
)


def found_in(data: bytes) -> list[Finding]:
    """The findings, apart from the one that the clean file has: that it starts clean."""
    found = list(audit_compose(data).findings)
    own = [each for each in found if each.code == "clean-start"]
    return [each for each in found if each not in own[:1]]


@pytest.mark.parametrize(("code", "edit"), CASES)
def test_one_change_is_one_finding(code: str, edit: Edit, render: Render) -> None:
    found = found_in(render(edit))
    assert [finding.code for finding in found] == [code]


PAIRS_OF_FINDINGS: tuple[tuple[set[str], Edit], ...] = (
    ({"literal-secret", "interpolated"}, on_environment({"HF_TOKEN": "${HF_TOKEN:-hunter2}"})),
    ({"privileged", "own-command"}, on_service(post_start=[{"command": "id", "privileged": True}])),
    ({"literal-secret", "own-command"}, on_service(entrypoint=["x", "--password", "hunter2"])),
    ({"literal-secret", "own-command"}, on_service(healthcheck={"test": "curl --api-key hunter2 localhost"})),
    ({"literal-secret", "own-command"}, on_service(pre_stop=[{"command": ["x", "--token=hunter2"]}])),
    ({"root-script", "disk-retained"}, on_app(init_script=CLEAN_START + "# and more\n")),
    ({"root-script", "disk-retained"}, on_app(init_script=CLEAN_START.rstrip("\n"))),
    ({"root-script", "disk-retained"}, on_app(init_script=["", "echo hello"])),
    ({"inline-config-read-only", "interpolated"}, inline_config({"environment": "NOTE"}, "note")),
    ({"literal-secret", "root-script"}, on_app(pre_launch_script="export HF_TOKEN=hunter2\n")),
    ({"guest-agent-port", "port-published"}, on_service(ports=["8090:8443"])),
    ({"host-mount", "interpolated"}, volume("${DIRECTORY}:/data")),
    ({"interpolated", "job-spec-missing"}, job_with_variable),
    ({"guest-agent-port", "port-published"}, on_service(ports=["127.0.0.1:443:8090/tcp"])),
    ({"guest-agent-port", "port-published"}, on_service(ports=[{"target": 8443, "published": 8090}])),
)


@pytest.mark.parametrize(("expected", "edit"), PAIRS_OF_FINDINGS)
def test_one_change_is_two_findings(expected: set[str], edit: Edit, render: Render) -> None:
    found = found_in(render(edit))
    assert sorted(finding.code for finding in found) == sorted(expected)
    assert "hunter2" not in repr(found)


def test_the_token_of_the_published_list(render: Render) -> None:
    """As this project documents it: expected and explained, in app-compose.json and in the compose file alone."""

    def edit(app: Any, compose: Any) -> None:
        app["allowed_envs"] = ["HF_TOKEN"]
        on_environment({"HF_TOKEN": "${HF_TOKEN:-}"})(app, compose)

    (finding,) = found_in(render(edit))
    assert (finding.code, finding.severity, finding.path) == ("env-own", Severity.INFO, "allowed_envs[0]")
    assert "digests in the job spec decide" in finding.message
    alone = audit_compose(b"services: {a: {environment: {HF_TOKEN: '${HF_TOKEN:-}'}}}")
    own = [finding for finding in alone.findings if "HF_TOKEN" in finding.message]
    assert [finding.code for finding in own] == ["env-own"]


def test_every_rule_has_a_case() -> None:
    codes = [rule.code for rule in RULES]
    covered = {code for code, _ in CASES} | {code for pair, _ in PAIRS_OF_FINDINGS for code in pair}
    assert set(codes) == covered
    assert len(codes) == len(set(codes))


def test_clean_file(render: Render) -> None:
    audited = audit_compose(render())
    assert [each.code for each in audited.findings] == ["clean-start"]
    assert found_in(render()) == []
    assert audited.job_spec_sha256 is not None
    assert audited.compose_sha256 is not None


@pytest.mark.parametrize(
    "edit",
    [
        volume("/run/dstack.sock:/var/run/dstack.sock"),
        volume("/data"),
        volume({"type": "tmpfs", "target": "/x"}),
        on_environment({"API_KEY_FILE": "/run/secrets/key", "PUBLIC_KEY": "x", "PASSWORD": ""}),
        on_service(command=["echo", "$$HOME"]),
        on_service(privileged=False, restart=False, cap_add=[]),
        on_service(command=["run", "--token", "${TOKEN_FILE_IS_ELSEWHERE:?}"][:2]),
        on_service(command=["run", "--key-file", "/run/key", "--token", "--verbose", "--public-key=abc"]),
        on_service(command="PUBLIC_KEY=abc SECRET_FILE=/run/x run"),
        on_service(healthcheck={"test": ["NONE"]}, logging={"driver": "json-file"}),
        on_service(image="host:5000/trainer@sha256:" + "ab" * 32),
        on_app(docker_config={"token_key": "REGISTRY_TOKEN"}, swap_size="0G", storage_fs="ext4"),
        on_app(key_provider="kms", kms_enabled=False, pre_launch_script=""),
    ],
)
def test_harmless_changes(edit: Edit, render: Render) -> None:
    assert found_in(render(edit)) == []


def test_the_job_spec_may_be_a_config_or_an_element_of_a_list(render: Render) -> None:
    digests = {
        audit_compose(render(edit)).job_spec_sha256
        for edit in (lambda _app, _compose: None, job_as_config, on_environment(["A=b"]))
    }
    assert len(digests) == 1
    assert None not in digests


def test_a_doubled_dollar_sign_is_one_in_the_job(render: Render) -> None:
    def edit(app: dict[str, Any], compose: dict[str, Any]) -> None:
        environment = compose["services"]["trainer"]["environment"]
        environment["TRAINER_JOB"] = environment["TRAINER_JOB"].replace("./model", "./mo$$del")

    found = audit_compose(render(edit))
    assert [each.code for each in found.findings] == ["clean-start"]
    job = JOB.replace("./model", "./mo$del")
    assert found.job_spec_sha256 == parse_job_spec(job.encode()).sha256()


def test_no_compose_file_inside(render: Render) -> None:
    found = found_in(render(on_app(docker_compose_file=None)))
    assert {finding.code for finding in found} == {"no-compose", "job-spec-missing"}


def test_secret_values_are_never_in_findings(render: Render) -> None:
    secrets = {"HF_TOKEN": "hunter2", "URL": "https://me:hunter2@host/", "MY_SECRET": "${X:-hunter2}"}
    found = audit_compose(render(on_environment(secrets))).findings
    assert [each.code for each in found].count("literal-secret") == 3
    assert "hunter2" not in repr(found)


def test_control_characters_do_not_reach_the_terminal(render: Render) -> None:
    found = found_in(render(on_app(**{"\x1b[2J": 1})))
    found += found_in(render(on_service(image="\x1b[31mx")))
    assert all(text.isprintable() for each in found for text in (each.path, each.message))
    assert len(found) == 2


CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("name", "to_fill_in"),
    [("sealed", ["image-placeholder"]), ("kms", ["image-placeholder", "key-provider-unpinned"])],
)
def test_the_configuration_that_this_project_ships(name: str, to_fill_in: list[str]) -> None:
    audited = audit_compose((CONFIGS / f"app-compose-{name}.json").read_bytes())
    high = sorted(finding.code for finding in audited.findings if finding.severity.rank <= Severity.HIGH.rank)
    assert audited.reaches(Severity.HIGH) == bool(high)
    assert high == to_fill_in  # a template: its user fills these in
    assert audited.job_spec_sha256 is not None


@pytest.mark.parametrize("name", ["docker-compose.yaml", "docker-compose-cpu.yaml"])
def test_the_compose_files_that_this_project_ships(name: str) -> None:
    bare = audit_compose((CONFIGS / name).read_bytes())
    assert bare.compose_sha256 is None
    assert {each.code for each in bare.findings} == {
        "image-placeholder",
        "port-published",
        "capability-users",
        "own-command",  # the health check
    }


COMPOSE_LINES = """\
services: # 1
  a:
    image: x:latest # image-unpinned
    network_mode: host # shared-namespace
    privileged: true # privileged
    cap_add:
      - NET_ADMIN # capability
      - SYS_ADMIN # capability-root
    volumes:
      - /var/run/dstack.sock:/var/run/dstack.sock
      - named:/data
      - /etc:/etc # host-mount
    ports:
      - "8443:8443" # port-published
    environment:
      A: b
      HF_TOKEN: hunter2 # literal-secret
    command:
      - --token
      - hunter2 # literal-secret
    restart: always # restarted
    privilegd: true # unknown-key
    read_only: false # root-writable
    init: "no" # init-missing
volumes:
  named: {}
"""
APP_LINES = """\
{
  "runner": "docker-compose",
  "kms_enabled": false,
  "local_key_provider_enabled": true, key-provider-local
  "gateway_enabled": true, gateway
  "public_logs": true, public-logs
  "pre_launch_script": "echo", root-script
  "init_script": "echo", root-script
  "allowed_envs": [
    "HF_TOKEN", env-own
    "OTHER", env-allowed
    "LD_PRELOAD" env-steering
  ],
  "secure_time": true,
  "public_tcbinfo": false,
  "requirements": {
    "gpu_policy": {
      "attest_gpu": false gpu-policy-weak
    }
  },
  "manifest_version": "3",
  "docker_compose_file": null
}
"""


def test_the_line_of_each_finding_in_yaml() -> None:
    expected = [
        (line.rpartition("# ")[2], number)
        for number, line in enumerate(COMPOSE_LINES.splitlines(), 1)
        if "# " in line and number > 1
    ]
    found = [(each.code, each.line) for each in audit_compose(COMPOSE_LINES.encode()).findings]
    assert sorted(found) == sorted([*expected, ("job-spec-missing", 1)])


def test_the_line_of_each_finding_in_json() -> None:
    lines = APP_LINES.splitlines()
    expected = [(line.rsplit(" ", 1)[1], number) for number, line in enumerate(lines, 1) if line[-1].isalpha()]
    expected = [(code, number) for code, number in expected if code in {rule.code for rule in RULES}]
    assert len(expected) == 9
    text = "\n".join(
        line.removesuffix(f" {line.rsplit(' ', 1)[-1]}") if any(number == where for _, where in expected) else line
        for number, line in enumerate(lines, 1)
    )
    found = [(each.code, each.line) for each in audit_compose(text.encode()).findings]
    assert sorted(found) == sorted([*expected, ("no-compose", 22), ("job-spec-missing", 22), ("disk-retained", 8)])


@pytest.mark.parametrize(
    ("edit", "code", "line"),
    [
        (without("requirements"), "gpu-policy-absent", 1),
        (on_app(kms_enabled=False), "key-provider-none", 6),
    ],
)
def test_the_line_of_what_is_absent(edit: Edit, code: str, line: int, render: Render) -> None:
    assert [(each.code, each.line) for each in found_in(render(edit))] == [(code, line)]
