"""A pair of compose files in which the audit finds the clean start alone, and a way to change one thing in it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import yaml

from trainer.deployment import CLEAN_START
from trainer.spec import JOB_VARIABLE, to_compose

IMAGE = "trainer@sha256:" + "ab" * 32
JOB = (
    "version: 1\nmodel:\n  model_name_or_path: ./model\n  model_file_sha256:\n"
    f'    config.json: "{"00" * 32}"\n    model.safetensors: "{"11" * 32}"\n'
)
COMPOSE: dict[str, Any] = {
    "services": {
        "trainer": {
            "image": IMAGE,
            "volumes": ["/var/run/dstack.sock:/var/run/dstack.sock", "ciphertext:/var/lib/trainer"],
            "environment": {"TOKENIZERS_PARALLELISM": "false", JOB_VARIABLE: to_compose(JOB)},
            "read_only": True,
            "init": True,
            "security_opt": ["no-new-privileges:true"],
            "restart": "no",
        }
    },
    "volumes": {"ciphertext": {}},
}
APP: dict[str, Any] = {
    "manifest_version": "3",
    "name": "demo",
    "runner": "docker-compose",
    "kms_enabled": True,
    "key_provider_id": "02" + "ab" * 32,
    "gateway_enabled": False,
    "public_logs": False,
    "public_sysinfo": False,
    "public_tcbinfo": False,
    "allowed_envs": [],
    "secure_time": True,
    "requirements": {"gpu_policy": {"attest_gpu": True}},
    "init_script": CLEAN_START,
}

Edit = Callable[[dict[str, Any], dict[str, Any]], object]


def render_app_compose(edit: Edit = lambda _app, _compose: None) -> bytes:
    """Returns app-compose.json after `edit(app, compose)`; `app` may bring a `docker_compose_file` of its own."""
    app, compose = copy.deepcopy(APP), copy.deepcopy(COMPOSE)
    edit(app, compose)
    return json.dumps({"docker_compose_file": yaml.safe_dump(compose, sort_keys=False), **app}, indent=1).encode()
