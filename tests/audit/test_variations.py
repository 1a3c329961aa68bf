"""The published list of what may vary: each grammar from both sides, and the page that shows it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.audit import EMBEDDED, VARIATIONS, Severity, audit_compose
from trainer.deployment import OPERATOR_VARIABLES, operator_reference
from trainer.simulator.compose_files import JOB
from trainer.spec import MAX_VARIABLE_BYTES, parse_job_spec

Render = Callable[..., bytes]

PAGE = Path(__file__).parents[2] / "docs" / "audit.md"
SERVICE = f"{EMBEDDED}.services.trainer"
ENVIRONMENT = f"{SERVICE}.environment"
DIGEST = "sha256:" + "ab" * 32
ABSENT = object()

# Place → values within the grammar, and values outside of it.
VALUES: dict[str, tuple[list[object], list[object]]] = {
    f"{SERVICE}.image": (
        [f"trainer@{DIGEST}", f"store.example/team/trainer@{DIGEST}", f"localhost:5000/trainer@{DIGEST}"],
        ["trainer", "trainer:1", f"trainer:1@{DIGEST}", "trainer@sha256:" + "00" * 32, f"trainer@{DIGEST}\n",
         f"TRAINER@{DIGEST}", f"trainer@{DIGEST.upper()}", DIGEST, f"${{X}}@{DIGEST}", f"a b@{DIGEST}", None,
         ABSENT],
    ),
    f"{ENVIRONMENT}.TRAINER_JOB": (
        [JOB, f"# comment\n{JOB}", JOB.replace("./model", "./mo$$del")],
        ["", "version: 1\n", JOB.replace("./model", "${MODEL}"), JOB.replace("./model", "$MODEL"), f"{JOB}x: 1\n",
         f"{JOB}#{'x' * MAX_VARIABLE_BYTES}\n", None, ABSENT],
    ),
    f"{ENVIRONMENT}.HF_ENDPOINT": (
        ["https://hub.example", "https://hub.example:8443/models/", ABSENT],
        ["http://hub.example", "https://me:secret@hub.example", "https://hub.example/?a=b", "https://$HUB", "",
         "https://hub.example\n", None],
    ),
    f"{ENVIRONMENT}.SSL_CERT_FILE": (
        ["/etc/ssl/certs/ca-certificates.crt", "/usr/share/ca.pem", ABSENT],
        ["/var/lib/trainer/ca.pem", "/run/trainer/ca.pem", "/tmp/ca.pem", "/etc/../var/lib/trainer/ca.pem",
         "ca.pem", "/etc", "", None],
    ),
    **{
        f"{ENVIRONMENT}.{name}": (
            [f"${{{name}:-}}", ABSENT],
            [f"${{{name}}}", f"${name}", f"${{{name}:-x}}", "${OTHER:-}", "hf_x", "", None],
        )
        for name in OPERATOR_VARIABLES
    },
    f"{SERVICE}.ports[0]": (
        ["8443:8443", "443:8443", "127.0.0.1:9443:8443"],
        ["8443", "8443:443", "8443:8443/udp", "8443-8450:8443", "0:8443", "65536:8443", "8090:8443",
         "[::]:8443:8443", 8443, {"target": 8443, "published": 8443}, None, ABSENT],
    ),
    f"{SERVICE}.tmpfs[0]": (
        ["/run/trainer:size=6g,mode=0711,exec", "/run/trainer:size=500000k,mode=0711,exec"],
        ["/run/trainer:size=6g,mode=0777,exec", "/run/trainer:size=6g,mode=0711", "/run/trainer:mode=0711,exec",
         "/run/trainer:size=50%,mode=0711,exec", "/run/trainer:size=6g,mode=0711,exec,suid", "/run/trainer",
         ABSENT],
    ),
    f"{SERVICE}.tmpfs[1]": (
        ["/tmp:size=1g"],
        ["/tmp", "/tmp:size=1g,exec", "/opt:size=1g", "/tmp:size=0g", "/tmp:size=1", ABSENT],
    ),
    f"{SERVICE}.pids_limit": ([1024, 65536], [1023, 65537, 0, -1, "4096", "4096.0", True, None, ABSENT]),
    f"{SERVICE}.deploy": ([ABSENT], [None, {}, {"replicas": 2}, {"resources": {}}]),
    f"{SERVICE}.deploy.resources.reservations.devices[0].count": (
        ["all", 1, 64],
        ["ALL", "1", 0, 65, True, None, ABSENT],
    ),
    "name": (
        ["a", "confidential-trainer", "Job_7.b"],
        ["", "a b", "-a", "a" * 65, "$(id)", "a\n", 7, None, ABSENT],
    ),
    "key_provider": (["kms"], ["none", "local", "tpm", "KMS", "", None, ABSENT]),
    "key_provider_id": (
        ["ab" * 16, "ab" * 91],
        ["", "ab" * 15, "abc", "AB" * 16, "FILL IN", "ab" * 2049, ["ab" * 16], None, ABSENT],
    ),
    "gateway_enabled": ([True, False], [None, "true", 1, ABSENT]),
    "allowed_envs": ([[]], [["HF_TOKEN"], ["LD_PRELOAD"], "", None, {}, ABSENT]),
    EMBEDDED: ([], [None, ABSENT, "services: {}"]),
}  # fmt: skip


def put(tree: Any, place: str, value: object) -> None:
    """Puts a value at a place of a tree of plain values, or takes it away."""
    *path, last = [
        int(key[1:]) if key.startswith("#") else key
        for key in place.replace("[", ".#").replace("]", "").split(".")
    ]
    holder: Any = tree
    for key in path:
        holder = holder[key]
    if value is not ABSENT:
        holder[last] = value
    elif isinstance(last, int) or last in holder:
        holder.pop(last)


def review(render: Render, place: str, value: object) -> Any:
    def edit(app: dict[str, Any], compose: dict[str, Any]) -> None:
        inside = place.removeprefix(f"{EMBEDDED}.")
        put(app if inside == place else compose, inside, value)
        # The two belong together, as `trainer job render` makes them.
        name = place.removeprefix(f"{ENVIRONMENT}.")
        if name in OPERATOR_VARIABLES and value is not ABSENT:
            app["allowed_envs"] = [name] if value == operator_reference(name) else []

    if place == EMBEDDED and value is ABSENT:
        return audit_compose(render(lambda app, compose: app.update(docker_compose_file=None)))
    return audit_compose(render(edit))


@pytest.mark.parametrize("place", VALUES)
def test_the_grammar_of_each_place(place: str, render: Render) -> None:
    within, outside = VALUES[place]
    refused = [value for value in within if review(render, place, value).reaches(Severity.LOW)]
    accepted = [
        value for value in outside if not review(render, place, value).reaches(Severity.HIGH)
    ]
    assert (refused, accepted) == ([], [])


def test_every_place_of_the_list_has_values() -> None:
    assert set(VALUES) == set(VARIATIONS)


def test_the_profile_sealed_takes_nothing_from_outside() -> None:
    """Neither a token, nor a gateway, nor an identity: all three need a key service."""
    import json

    from tests.audit.mutations import shipped
    from trainer.deployment import DeploymentProfile

    app = json.loads(shipped("docker-compose.yaml", DeploymentProfile.SEALED))
    with_token = app[EMBEDDED].replace("# HF_TOKEN:", "HF_TOKEN:")
    assert with_token != app[EMBEDDED]
    changes: tuple[dict[str, object], ...] = (
        {EMBEDDED: with_token},
        {EMBEDDED: with_token, "allowed_envs": ["HF_TOKEN"]},
        {"gateway_enabled": True},
        {"key_provider_id": "ab" * 33},
    )
    assert not audit_compose(json.dumps(app).encode()).reaches(Severity.LOW)
    for change in changes:
        assert audit_compose(json.dumps(app | change).encode()).reaches(Severity.HIGH), change


def test_the_token_of_the_published_list(render: Render) -> None:
    """As this project documents it: expected and explained, in app-compose.json and in the compose file alone."""
    (finding,) = [each for each in review(render, f"{ENVIRONMENT}.HF_TOKEN", "${HF_TOKEN:-}").findings
                  if each.code == "env-own"]  # fmt: skip
    assert (finding.severity, finding.path) == (Severity.INFO, f"{ENVIRONMENT}.HF_TOKEN")
    assert "digests in the job spec decide" in finding.message
    alone = audit_compose(b"services: {trainer: {environment: {HF_TOKEN: '${HF_TOKEN:-}'}}}")
    assert [each.code for each in alone.findings if "HF_TOKEN" in each.path] == ["env-own"]


def test_a_doubled_dollar_sign_is_one_in_the_job(render: Render) -> None:
    found = review(render, f"{ENVIRONMENT}.TRAINER_JOB", JOB.replace("./model", "./mo$$del"))
    job = JOB.replace("./model", "./mo$del")
    assert found.job_spec_sha256 == parse_job_spec(job.encode()).sha256()


def rows() -> str:
    """The table of docs/audit.md."""
    lines = ["| place | may be | absent |", "|---|---|---|"]
    for variation in VARIATIONS.values():
        place = variation.place.removeprefix(f"{SERVICE}.")
        lines.append(
            f"| `{place}` | {variation.grammar} | {'yes' if variation.is_optional else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def test_the_page_shows_the_list() -> None:
    """With UPDATE_DOCS=1 in the environment, it writes the table."""
    text = PAGE.read_text("utf-8")
    start = text.index("| place | may be | absent |")
    end = text.index("\n\n", start) + 1
    if os.environ.get("UPDATE_DOCS") == "1":
        PAGE.write_text(text[:start] + rows() + text[end:], "utf-8")
        return
    assert text[start:end] == rows()
