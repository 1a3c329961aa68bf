"""Differences in meaning: what counts, what does not, and what is never shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from trainer.attestation.audit import audit_compose

Render = Callable[..., bytes]
TRAINER = "docker_compose_file.services.trainer"


def changes(old: bytes, new: bytes) -> list[tuple[str, str | None, str | None]]:
    return [(each.path, each.old, each.new) for each in audit_compose(new, against=old).changes]


def environment(value: object) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda app, compose: compose["services"]["trainer"].update(environment=value)


def test_formatting_and_comments_do_not_count(render: Render) -> None:
    app = json.loads(render())
    app["docker_compose_file"] = "# a comment\n" + app["docker_compose_file"].replace(
        "restart: 'no'", 'restart: "no"'
    )
    assert changes(render(), json.dumps(dict(reversed(app.items()))).encode()) == []


def test_both_forms_of_an_environment_mean_the_same(render: Render) -> None:
    assert changes(render(environment({"A": "b"})), render(environment(["A=b"]))) == []


def test_values_that_came_went_and_changed(render: Render) -> None:
    def edit(app: dict[str, Any], compose: dict[str, Any]) -> None:
        app["public_logs"] = True
        del app["secure_time"]
        compose["services"]["trainer"]["ports"] = ["8443:8443"]

    assert changes(render(), render(edit)) == [
        (f"{TRAINER}.ports[0]", None, "8443:8443"),
        ("public_logs", "false", "true"),
        ("secure_time", "true", None),
    ]


def test_true_is_not_one_and_not_the_word(render: Render) -> None:
    values: tuple[object, ...] = (True, 1, "true")
    shown = [
        changes(render(), render(lambda app, compose, value=value: app.update(x=value)))[0][2] for value in values
    ]
    assert shown == ["true", "1", '"true"']


def test_the_job_spec_is_compared_by_its_keys(render: Render) -> None:
    def edit(app: dict[str, Any], compose: dict[str, Any]) -> None:
        job = compose["configs"]["job"]
        job["content"] = "# edited\n" + job["content"] + "lora: {lora_r: 64}\n"

    assert changes(render(), render(edit)) == [("docker_compose_file.configs.job.content.lora.lora_r", None, "64")]


def test_secrets_are_masked(render: Render) -> None:
    old = render(environment(["HF_TOKEN=hunter2", "A=https://me:hunter2@host/"]))
    new = render(environment({"HF_TOKEN": "hunter3", "A": "https://me:hunter3@host/", "DB_PASSWORD": 47114711}))
    found = changes(old, new)
    assert [path.rpartition(".")[2] for path, _, _ in found] == ["A", "DB_PASSWORD", "HF_TOKEN"]
    assert "hunter" not in repr(found)
    assert "47114711" not in repr(found)


def test_long_text_is_shown_by_its_digest(render: Render) -> None:
    (change,) = changes(render(), render(lambda app, compose: app.update(pre_launch_script="echo a\necho b")))
    assert change[2] is not None
    assert change[2].startswith("2 lines, sha256 ")


def test_a_bare_compose_file_is_compared_with_the_one_inside(render: Render) -> None:
    bare = json.loads(render())["docker_compose_file"].replace("restart: 'no'", "restart: always").encode()
    assert changes(render(), bare) == [("services.trainer.restart", "no", "always")]
