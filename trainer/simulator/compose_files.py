"""Compose files as this project ships them for the profile `kms`, and a way to change one thing in them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any, Final

import yaml

from trainer.deployment import SHIPPED_COMPOSE, DeploymentProfile, render_compose
from trainer.deployment import render_app_compose as render_shipped_app

IMAGE = "trainer@sha256:" + "ab" * 32
JOB = (
    "version: 1\nmodel:\n  model_name_or_path: ./model\n  model_file_sha256:\n"
    f'    config.json: "{"00" * 32}"\n    model.safetensors: "{"11" * 32}"\n'
)
KEY_PROVIDER_ID: Final = "02" + "ab" * 32

COMPOSE: dict[str, Any] = yaml.safe_load(render_compose(SHIPPED_COMPOSE, JOB))
COMPOSE["services"]["trainer"]["image"] = IMAGE
APP: dict[str, Any] = json.loads(
    render_shipped_app(SHIPPED_COMPOSE, DeploymentProfile.KMS, key_provider_id=KEY_PROVIDER_ID)
)
del APP["docker_compose_file"]

Edit = Callable[[dict[str, Any], dict[str, Any]], object]


def render_app_compose(edit: Edit = lambda _app, _compose: None) -> bytes:
    """Returns app-compose.json after `edit(app, compose)`; `app` may bring a `docker_compose_file` of its own."""
    app, compose = copy.deepcopy(APP), copy.deepcopy(COMPOSE)
    edit(app, compose)
    return json.dumps(
        {"docker_compose_file": yaml.safe_dump(compose, sort_keys=False), **app}, indent=1
    ).encode()
