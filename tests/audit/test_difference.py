"""Differences in meaning: what counts, what does not, and what is never shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from trainer.audit import audit_compose

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
        compose["services"]["trainer"]["ports"].append("22:22")

    assert changes(render(), render(edit)) == [
        (f"{TRAINER}.ports.22/tcp", None, "22:22"),
        ("public_logs", "false", "true"),
        ("secure_time", "true", None),
    ]


def test_true_is_not_one_and_not_the_word(render: Render) -> None:
    values: tuple[object, ...] = (True, 1, "true")
    shown = [
        changes(render(), render(lambda app, compose, value=value: app.update(x=value)))[0][2]
        for value in values
    ]
    assert shown == ["true", "1", '"true"']


def test_the_job_spec_is_compared_by_its_keys(render: Render) -> None:
    def edit(app: dict[str, Any], compose: dict[str, Any]) -> None:
        environment = compose["services"]["trainer"]["environment"]
        environment["TRAINER_JOB"] = (
            "# edited\n" + environment["TRAINER_JOB"] + "lora: {lora_r: 64}\n"
        )

    path = "docker_compose_file.services.trainer.environment.TRAINER_JOB.lora.lora_r"
    assert changes(render(), render(edit)) == [(path, None, "64")]


def test_secrets_are_masked(render: Render) -> None:
    old = render(environment(["HF_TOKEN=hunter2", "A=https://me:hunter2@host/"]))
    new = render(
        environment(
            {"HF_TOKEN": "hunter3", "A": "https://me:hunter3@host/", "DB_PASSWORD": 47114711}
        )
    )
    found = changes(old, new)
    assert [path.rpartition(".")[2] for path, _, _ in found] == ["A", "DB_PASSWORD", "HF_TOKEN"]
    assert "hunter" not in repr(found)
    assert "47114711" not in repr(found)


def test_long_text_is_shown_by_its_digest(render: Render) -> None:
    (change,) = changes(
        render(), render(lambda app, compose: app.update(pre_launch_script="echo a\necho b"))
    )
    assert change[2] is not None
    assert change[2].startswith("2 lines, sha256 ")


def test_a_bare_compose_file_is_compared_with_the_one_inside(render: Render) -> None:
    bare = (
        json.loads(render())["docker_compose_file"]
        .replace("restart: 'no'", "restart: always")
        .encode()
    )
    assert changes(render(), bare) == [("services.trainer.restart", "no", "always")]


def on_service(**values: object) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda app, compose: compose["services"]["trainer"].update(values)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (["a", "b", "c"], ["a", "x", "b", "c"], [("command[1]", None, "x")]),
        (["a", "b", "c"], ["b", "c"], [("command[0]", "a", None)]),
        (["a", "b", "c", "d"], ["a", "x", "y", "d"], [("command[1]", "b", "x"), ("command[2]", "c", "y")]),
        (["a", "b"], ["b", "a"], [("command[0]", "a", None), ("command[1]", None, "a")]),
        (["a", "y"], ["x", "a"], [("command[0]", None, "x"), ("command[1]", "y", None)]),
        (["x", "a"], ["a", "y"], [("command[0]", "x", None), ("command[1]", None, "y")]),
        (["a"], "a", [("command", None, "a"), ("command[0]", "a", None)]),
        ([], ["a"], [("command[0]", None, "a")]),
        ([], None, [("command", "(empty)", "null")]),
        ("a", "b", [("command", "a", "b")]),
    ],
)  # fmt: skip
def test_an_inserted_argument_is_one_change(
    render: Render, old: object, new: object, expected: list[tuple[str, str | None, str | None]]
) -> None:
    found = changes(render(on_service(command=old)), render(on_service(command=new)))
    assert sorted(found, key=str) == sorted(
        [(f"{TRAINER}.{path}", *values) for path, *values in expected], key=str
    )


@pytest.mark.parametrize(
    ("key", "old", "new", "expected"),
    [
        ("cap_add", ["A", "B"], ["B", "A"], []),
        ("cap_add", ["A", "B"], ["C", "B", "A"], [("cap_add[0]", None, "C")]),
        ("cap_add", ["A", "B"], ["C", "B"], [("cap_add[0]", "A", "C")]),
        ("cap_add", ["A", "A"], ["A"], [("cap_add[1]", "A", None)]),
        ("ports", ["1:2"], [{"target": 2, "published": "1"}], []),
        ("ports", ["1:2/udp"], [{"target": 2, "published": 1, "protocol": "udp"}], []),
        ("ports", ["1:2", "3:4"], ["0.0.0.0:3:4", "1:2"], [("ports.4/tcp", "3:4", "0.0.0.0:3:4")]),
        ("ports", ["1:2"], ["1:2", "1:2"], [('ports["2/tcp+"]', None, "1:2")]),
        ("ports", ["a/b/c"], [{"target": 2, "mode": "host"}],
         [("ports.2/tcp.mode", None, "host"), ("ports.2/tcp.target", None, "2"), ("ports.a/b/c", "a/b/c", None)]),
        ("volumes", ["v:/a", "/b"], ["w:/c", "v:/a:ro"],
         [("volumes./a", "v:/a", "v:/a:ro"), ("volumes./b", "/b", None), ("volumes./c", None, "w:/c")]),
        ("volumes", [{"type": "tmpfs", "target": "/a"}], [{"type": "volume", "target": "/a"}],
         [("volumes./a.type", "tmpfs", "volume")]),
        ("secrets", ["a", {"source": "b"}], [{"source": "b"}], [("secrets.a", "a", None)]),
    ],
)  # fmt: skip
def test_elements_are_matched_by_what_they_are_about(
    render: Render,
    key: str,
    old: object,
    new: object,
    expected: list[tuple[str, str | None, str | None]],
) -> None:
    found = changes(render(on_service(**{key: old})), render(on_service(**{key: new})))
    assert found == [(f"{TRAINER}.{path}", *values) for path, *values in expected]


def test_long_lists_without_anything_in_common_are_compared_by_position(render: Render) -> None:
    one, other = [f"a{index}" for index in range(200)], [f"b{index}" for index in range(201)]
    assert len(changes(render(on_service(command=one)), render(on_service(command=other)))) == 201
    assert (
        len(changes(render(on_service(command=one)), render(on_service(command=["x", *one])))) == 1
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["run", "--token", "hunter2"], ["run", "--token", "hunter3"]),
        (["run", "--db-password=hunter2"], ["run", "--db-password=hunter3"]),
        ("run --api-key hunter2 -v", "run --api-key hunter3 -v"),
        (["sh", "-c", "run --token 'hunter2 x'"], ["sh", "-c", "run --token 'hunter3 x'"]),
        (None, ["--secret", "hunter2"]),
        (["--secret", "hunter2"], "hf_hunterhunterhunterhunter"),
    ],
)
def test_secrets_in_command_lines_are_masked(render: Render, old: object, new: object) -> None:
    found = changes(render(on_service(command=old)), render(on_service(command=new)))
    assert found
    assert "hunter" not in repr(found)
    assert "(hidden)" in repr(found)


def test_a_config_that_is_no_mapping_is_compared_as_text(render: Render) -> None:
    def config(text: str) -> Callable[[dict[str, Any], dict[str, Any]], object]:
        return lambda app, compose: compose.update(configs={"extra": {"content": text}})

    assert changes(render(config("a: [")), render(config("- a"))) == [
        ("docker_compose_file.configs.extra.content", "a: [", "- a")
    ]
