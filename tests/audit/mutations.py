"""Mutants of the shipped files: one change each, made by rule over every key, value and element that they have.

The rules know nothing of what is dangerous: they remove, replace, repeat, reorder and add, at every place.
Whatever the published list does not allow has to be refused.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from trainer.deployment import DeploymentProfile, render_app_compose, render_compose
from trainer.simulator.compose_files import JOB

CONFIGS = Path(__file__).parents[2] / "configs"
COMPOSE_FILES = ("docker-compose.yaml", "docker-compose-cpu.yaml")
COMPOSE = "docker_compose_file"
KEY_SERVICE = "ab" * 91
NO_IMAGE, IMAGE = "@sha256:" + "00" * 32, "@sha256:" + "ab" * 32

Path_: TypeAlias = tuple[str | int, ...]

# ruff: noqa: SIM905 -- tables of words

# What the Compose Specification has for a service and dstack for an app, as far as the shipped files have it not.
SERVICE_KEYS = """annotations attach blkio_config build cgroup cgroup_parent configs container_name cpu_count cpus
    cpuset credential_spec depends_on develop device_cgroup_rules devices dns dns_opt dns_search domainname
    entrypoint env_file expose extends external_links extra_hosts gpus group_add hostname ipc isolation label_file
    labels links logging mac_address mem_limit memswap_limit models network_mode networks oom_kill_disable
    oom_score_adj pid platform post_start pre_stop privileged profiles provider pull_policy runtime scale secrets
    shm_size stdin_open stop_signal storage_opt sysctls tty use_api_socket user userns_mode uts volumes_from
    working_dir""".split()
COMPOSE_KEYS = "version name include networks configs secrets models".split()
APP_KEYS = """features snapshotter docker_config pre_launch_script bash_script tproxy_enabled storage_fs swap_size
    event_log_version port_policy requirements verity_volumes events""".split()
ADDED: dict[Path_, list[str]] = {("services", "trainer"): SERVICE_KEYS, (): COMPOSE_KEYS}


@dataclass(frozen=True)
class Mutant:
    """A changed file: the rule, the place that it changed, and the bytes."""

    rule: str
    place: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.rule} {self.place}"


def shipped(compose: str, profile: DeploymentProfile) -> bytes:
    """What `trainer job render` makes of a shipped compose file, with the image and the key service filled in."""
    text = render_compose((CONFIGS / compose).read_text("utf-8"), JOB).replace(NO_IMAGE, IMAGE)
    key_service = KEY_SERVICE if profile is DeploymentProfile.KMS else None
    return render_app_compose(text, profile, key_provider_id=key_service)


def app_mutants(data: bytes) -> Iterator[Mutant]:
    """Mutants of an app-compose.json, apart from the compose file in it."""
    for rule, place, changed in changes(json.loads(data), {(): APP_KEYS}):
        yield Mutant(rule, shown(place), json.dumps(changed).encode())


def compose_mutants(data: bytes) -> Iterator[Mutant]:
    """Mutants of the compose file in an app-compose.json."""
    app = json.loads(data)
    compose = yaml.safe_load(app[COMPOSE])
    for rule, place, changed in changes(compose, ADDED):
        inner = json.dumps(app | {COMPOSE: json.dumps(changed)}).encode()
        yield Mutant(rule, shown((COMPOSE, *place)), inner)


def changes(tree: Any, added: dict[Path_, list[str]]) -> Iterator[tuple[str, Path_, Any]]:
    """Every change of one place of a tree, as rule, place and changed tree."""
    return (change for change in _changes(tree, added) if json.dumps(change[2]) != json.dumps(tree))


def _changes(tree: Any, added: dict[Path_, list[str]]) -> Iterator[tuple[str, Path_, Any]]:
    for path, value in places(tree):
        for rule, new in replacements(value):
            yield rule, path, replaced(tree, path, new)
        if isinstance(value, dict):
            for key in (*added.get(path, ()), "x-unknown", "unknown"):
                yield "add", (*path, key), replaced(tree, path, {**value, key: "host"})
            for key in value:
                rest = {name: each for name, each in value.items() if name != key}
                yield "remove", (*path, key), replaced(tree, path, rest)
                if isinstance(value[key], dict):
                    yield (
                        "repeat",
                        (*path, key),
                        replaced(tree, path, {**value, f"{key}2": value[key]}),
                    )
        if isinstance(value, list):
            yield "append", path, replaced(tree, path, [*value, "host"])
            yield "prepend", path, replaced(tree, path, ["host", *value])
            yield "repeat", path, replaced(tree, path, [*value, *value[-1:]])
            yield "reverse", path, replaced(tree, path, value[::-1])
            for index in range(len(value)):
                yield (
                    "remove",
                    (*path, index),
                    replaced(tree, path, value[:index] + value[index + 1 :]),
                )


def replacements(value: Any) -> Iterator[tuple[str, Any]]:
    """Other values for a place, by kind; the last ones change the kind."""
    if isinstance(value, bool):
        yield "other value", not value
    elif isinstance(value, int):
        yield "other value", value + 1
    elif isinstance(value, str):
        yield "other value", f"{value}x"
        yield "interpolated", "${VALUE:-" + value + "}"
        yield "empty", ""
    yield "null", None
    yield "other kind", {"value": value} if isinstance(value, list) else [value]
    if not isinstance(value, str | list | dict):
        yield "text", str(value).lower()


def places(tree: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every place of a tree with its value."""
    yield path, tree
    inside = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in inside:
        if (*path, key) != (COMPOSE,):
            yield from places(value, (*path, key))


def replaced(tree: Any, path: Path_, value: Any) -> Any:
    """A copy of a tree with another value at one place."""
    if not path:
        return value
    changed = copy.deepcopy(tree)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return changed


def shown(path: Path_) -> str:
    """A place as the review writes it."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")
