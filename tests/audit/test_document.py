"""Reading compose files: lines, anchors, what is refused, and that nothing else than a refusal can happen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.growth import grows_linearly
from trainer.audit import MAX_COMPOSE_BYTES, audit_compose
from trainer.audit.document import read_document
from trainer.errors import UsageError

PINNED = "x@sha256:" + "ab" * 32

ANCHORS = f"""\
x-base: &base
  image: {PINNED}
  privileged: true
  read_only: true
  init: true
services:
  one:
    <<: *base
    privileged: false
  two:
    <<: [*base, {{network_mode: host}}]
"""


def codes(text: str) -> list[tuple[str, int, str]]:
    return [(each.code, each.line, each.path) for each in audit_compose(text.encode()).findings]


def test_merge_keys_never_override_what_stands_beside_them() -> None:
    nodes = read_document(ANCHORS.encode()).compose.get("services")
    assert [nodes.get(name).get("privileged").value for name in ("one", "two")] == [False, True]
    found = [
        each for each in codes(ANCHORS) if each[0] in {"privileged", "shared-namespace", "shape"}
    ]
    assert found == [
        ("privileged", 3, "services.two.privileged"),
        ("privileged", 9, "services.one.privileged"),
        ("shape", 1, "x-base"),
        ("shared-namespace", 11, "services.two.network_mode"),
    ]


def test_lines_in_json_and_in_the_text_inside() -> None:
    inside = f"services:\\n  a:\\n    image: {PINNED}\\n    pid: host\\n"
    text = f'{{\n "runner": "docker-compose",\n "docker_compose_file": "{inside}",\n "public_logs": true}}'
    found = {code: (line, path) for code, line, path in codes(text)}
    assert found["public-logs"] == (4, "public_logs")
    assert found["shared-namespace"] == (4, "docker_compose_file.services.a.pid")


def test_the_hash_is_of_the_exact_bytes(render: Callable[..., bytes]) -> None:
    for data in (render(), render() + b"\n"):
        assert audit_compose(data).compose_sha256 == hashlib.sha256(data).hexdigest()


def test_a_compose_file_may_be_json() -> None:
    document = read_document(b'{"services": {"a": {"image": "x"}}}')
    assert document.app is None
    assert document.compose_sha256 is None


def bomb(aliases: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"a{index}: &a{index} [{', '.join([f'*a{index - 1}'] * 10)}]" for index in range(1, aliases)
    ]
    return "\n".join(lines) + "\nservices: {}\n"


def merge_bomb(aliases: int) -> str:
    lines = ["a0: &a0 {k: v}"]
    for index in range(1, aliases):
        below = ", ".join([f"*a{index - 1}"] * 10)
        lines += [f"a{index}: &a{index} {{<<: [{below}]}}"]
    return "\n".join(lines) + "\nservices: {}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1"),
        (
            "services:\n  a: {image: x}\n  a: {image: y}\n",
            "line 3: not acceptable YAML: the key 'a' occurs twice",
        ),
        ("services:\n  a:\n    image: [\n", "line 4"),
        ("services:\n  a: x\n", "line 2: a service must be a mapping"),
        ("version: 1\n", "not a compose file"),
        ("services: {}\n---\nservices: {}\n", "line 2"),
        (
            "services:\n  a: !!python/name:os.system {}\n",
            "line 2: not acceptable YAML: tags are not accepted",
        ),
        ("services: {}\nx: !reset null\n", "line 2: not acceptable YAML: tags are not accepted"),
        ("services: &s\n  a: *s\n", "too large or too deep"),
        (bomb(12), "too large or too deep"),
        (merge_bomb(12), "too large or too deep"),
        (
            f"x-a: &a {'y' * 100_000}\nx-b: [{', '.join(['*a'] * 100)}]\nservices: {{}}\n",
            "too large once",
        ),
        (
            "services: {}\nx: {<<: {a: 1}, <<: {b: 1}}\n",
            "line 2: not acceptable YAML: the key << occurs twice",
        ),
        ("services: {<<: 1}\n", "<< must name a mapping"),
        ('services: {"<<": {}}\n', "keys must be text"),
        ("services: {? [a] : b}\n", "keys must be text"),
        ('services: {}\nx: "\\UFFFFFFFF"\n', "not acceptable YAML"),
        ('services: {}\nx: "\\ud800"\n', "line 2: not acceptable YAML: half of a surrogate pair"),
        ("[" * 5000, "line 1: not acceptable YAML: too large or too deep"),
        ("- " * 5000, "line 1: not acceptable YAML: too large or too deep"),
        (
            "services: {}\n" + "x: y\n" * 10_000,
            "line 6667: not acceptable YAML: too large or too deep",
        ),
        (
            "services: {}\nx-" + "y" * 3000 + ": {a: b}\n",
            "line 2: not acceptable YAML",
        ),
        (
            f"services: {{}}\n? {'y' * 1000}\n: {{{'z' * 1000}: {{{'w' * 1000}: 1}}}}\n",
            "line 3: not acceptable YAML: too large or too deep",
        ),
        ('{"runner": "x", "' + "y" * 3000 + '": 1}', "nested too deeply"),
        ('{"runner": [' + "1," * 60_000 + "1]}", "line 1: too large"),
        ('{"runner": 1,\n "runner": 2}', "line 1: an object has the same key twice"),
        ('{"runner":\n oops}', "line 2"),
        ('{"runner": "\\ud800"}', "half of a surrogate pair"),
        ('{"runner": ' + "[" * 500 + "]" * 500 + "}", "nested too deeply"),
        ('{"runner": "x",\n "docker_compose_file": 7}', "line 2: docker_compose_file must be text"),
        (
            '{"runner": "x", "docker_compose_file": "services:\\n\\t- a"}',
            "docker_compose_file, line 2",
        ),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        audit_compose(text.encode())


def configs(count: int, lines: int) -> str:
    mounted = "".join(f"      - c{index}\n" for index in range(count))
    content = "".join(f"      k{line}: v\n" for line in range(lines))
    texts = "".join(
        f"  c{index}:\n    content: |\n      model: {{}}\n{content}" for index in range(count)
    )
    return f"services:\n  a:\n    image: {PINNED}\n    configs:\n{mounted}configs:\n{texts}"


def test_configs_that_are_too_large_to_be_searched_are_refused() -> None:
    assert audit_compose(configs(5, 100).encode()).job_spec_sha256 is None
    with pytest.raises(
        UsageError, match="line 6401: the texts that may be job specs are too large"
    ):
        audit_compose(configs(40, 350).encode())


def many(start: str, part: str, end: str = "") -> Callable[[int], str]:
    """As many parts as fit into a size."""
    return lambda size: start + part * ((size - len(start) - len(end)) // len(part)) + end


def numbered(start: str, line: str) -> Callable[[int], str]:
    """Lines that differ by a number, in the size of all of them together."""
    return lambda size: (
        start + "".join(line.format(i) for i in range(size // (len(line.format(9999)) + 1)))
    )


HOSTILE: dict[str, Callable[[int], str]] = {
    "flow": many("services: [", "a,"),
    "flow-map": many("services: {", "a: b,"),
    "brackets": many("", "["),
    "dashes": many("", "- "),
    "block": many("services:\n", "  a:\n    - b\n"),
    "aliases": many("a: &a b\nservices: [", "*a,"),
    "anchored": many("services: [", "&a b,"),
    "plain": many("services: ", "a b "),
    "quoted": many('services: "', "\\x41", '"'),
    "lines": many('services: "', "\n", '"'),
    "comments": many("", "#\n"),
    "literal": many("services:\n  a: |\n", "   b\n"),
    "services": numbered("services:\n", " s{0}: {{privileged: 1}}\n"),
    "ports": numbered("services:\n a:\n  ports:\n", "   - {0}:{0}\n"),
    "environment": numbered("services:\n a:\n  environment:\n", "   T{0}_TOKEN: ${{A}}\n"),
    "commands": numbered("services:\n", f" s{{0}}: {{{{command: [{'a, b, ' * 40}]}}}}\n"),
    "one command": many("services: {a: {command: '", "--token a ", "'}}"),
    "dollars": many("services: {a: {command: '", "$", "'}}"),
    "braces": many("services: {a: {command: '", "${A:?", "'}}"),
    "url": many("services: {a: {environment: {A: '", "://a:", "'}}}"),
    "dots": many("services: {a: {environment: {A: '", "a.-", "'}}}"),
    "digest": many("services: {a: {image: '", "@sha256:", "'}}"),
    "token": many("services: {a: {labels: {A: '", "eyJaaaaaaaaaaaa.", "'}}}"),
    "jobs": lambda size: configs(size // 2048, 150),
    "json": many('{"runner": [', "1,", "1]}"),
    "json-lines": many('{"runner": 1', "\n", "}"),
    "json-depth": many('{"runner": ', "["),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_time_for_the_worst_input_is_linear(name: str) -> None:
    def audit(size: int) -> None:
        data = HOSTILE[name](size).encode()
        assert len(data) <= MAX_COMPOSE_BYTES
        with suppress(UsageError):
            audit_compose(data, against=data)

    assert grows_linearly(audit, MAX_COMPOSE_BYTES // 32)


def test_refused_bytes() -> None:
    with pytest.raises(UsageError, match="line 2: not UTF-8"):
        audit_compose(b"services:\n\xff")
    with pytest.raises(UsageError, match="too large"):
        audit_compose(b" " * (MAX_COMPOSE_BYTES + 1))


WORDS = (
    "services:", "\n  ", "a:", "image:", "x", "&a ", "*a", "<<: ", "[", "]", "{", "}", ", ", "\n", "- ", "ports:",
    "volumes:", '"', "environment:", "KEY=v", "configs:", "job:", "content: |\n", "privileged: true", "${X}", ": ",
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(
    st.binary(max_size=300)
    | st.lists(st.sampled_from(WORDS), max_size=40).map(lambda w: "".join(w).encode())
)
@example(b"{}")
@example(
    b"services:\n  a: {environment: {KEY: {}}, volumes: {a: b}, ports: 1, build: [], extends: x}\n"
)
@example(
    b'{"runner": {}, "allowed_envs": {"a": 1}, "requirements": [], "docker_compose_file": null}'
)
def test_any_bytes_are_audited_or_refused(data: bytes) -> None:
    try:
        audited = audit_compose(data, against=data)
    except UsageError:
        return
    assert audited.changes == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "image",
        "volumes",
        "ports",
        "configs",
        "environment",
        "cap_add",
        "devices",
        "build",
        "deploy",
        "post_start",
    ]
)


@settings(deadline=None, max_examples=150)
@given(
    service=st.dictionaries(KEYS, JSON, max_size=4),
    app=st.dictionaries(
        st.sampled_from(["requirements", "allowed_envs", "init_script", "secure_time"]), JSON
    ),
)
def test_values_of_any_shape_break_no_rule(
    service: dict[str, object], app: dict[str, object], render: Callable[..., bytes]
) -> None:
    def edit(outer: dict[str, object], compose: dict[str, object]) -> None:
        outer.update(app)
        compose["services"] = {"a": service}

    try:
        audit_compose(render(edit), against=render())
    except UsageError:
        return


def test_json_that_yaml_does_not_read_is_refused() -> None:
    """The engine reads a docker-compose file as YAML, and YAML knows no tabs between tokens."""
    with pytest.raises(UsageError, match="line 2"):
        audit_compose(json.dumps({"services": {"trainer": {}}}, indent="\t").encode())
