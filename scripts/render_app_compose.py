"""Put a job spec into a compose file and the compose file into dstack's app-compose.json.

The VM measures the exact bytes of app-compose.json, and the job spec inside is measured with them. The output is
canonical JSON (RFC 8785): the same job and compose file give the same bytes, and a deployment tool that sorts keys
and removes white space does not change them.

Usage: python scripts/render_app_compose.py JOB COMPOSE [-o APP_COMPOSE | --check APP_COMPOSE]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import yaml

from trainer.encoding import canonical_json, sha256_hex
from trainer.errors import TrainerError
from trainer.spec import parse_job_spec

NAME: Final = "confidential-trainer"

SETTINGS: Final[Mapping[str, object]] = {
    "manifest_version": 2,
    "name": NAME,
    "runner": "docker-compose",
    "kms_enabled": True,
    "gateway_enabled": True,
    "local_key_provider_enabled": False,
    "key_provider_id": "",
    "public_logs": False,
    "public_sysinfo": False,
    "public_tcbinfo": False,
    "allowed_envs": [],
    "no_instance_id": False,
    "secure_time": True,
}
"""dstack's settings besides the compose file. The operator can set no environment variable (`allowed_envs`), and
the clock is set from authenticated time servers before the app starts (`secure_time`)."""

_INDENT: Final = " " * 6
_JOB_BLOCK: Final = re.compile(r"(?m)^(configs:\n  job:\n    content: \|\n)((?: {6}.*\n|[ ]*\n)*)")


def render_compose(compose: str, job: str) -> str:
    """Return the compose file with `job` as the content of its config `job`.

    Raises:
        ValueError: there is no such config, or the job would not receive the same text.
    """
    job = job.rstrip("\n") + "\n"
    if "$" in job:
        raise ValueError("the job spec contains '$', which compose would replace by a variable")
    block = "".join(f"{_INDENT}{line}" if line.strip() else "\n" for line in job.splitlines(keepends=True))
    rendered, count = _JOB_BLOCK.subn(lambda match: match[1] + block, compose)
    if count != 1:
        raise ValueError("expected one top-level `configs:` that begins with `job:` and `content: |`")
    if embedded_job(rendered) != job:
        raise ValueError(
            "the job spec does not survive being a block of YAML: tabs, or space at the ends of lines?"
        )
    return rendered


def embedded_job(compose: str) -> str:
    """Return the text of the job spec in a compose file."""
    content = yaml.safe_load(compose)["configs"]["job"]["content"]
    if not isinstance(content, str):
        raise TypeError("configs.job.content must be text")
    return content


def render_app_compose(compose: str) -> bytes:
    """Return the bytes of app-compose.json, which the VM measures."""
    return canonical_json({**SETTINGS, "docker_compose_file": compose})


def render(job: str, compose: str) -> bytes:
    """Return the bytes of app-compose.json for the texts of job.yaml and docker-compose.yaml.

    Raises:
        UsageError: the job spec is not valid.
        ValueError: the job spec cannot be put into the compose file.
    """
    parse_job_spec(job.encode())
    return render_app_compose(render_compose(compose, job))


def main(arguments: list[str]) -> int:
    """Run the command line; returns 1 if `--check` finds a difference, and 2 if rendering fails."""
    parser = argparse.ArgumentParser(description="Render dstack's app-compose.json from a job and a compose file.")
    parser.add_argument("job", type=Path, help="job.yaml")
    parser.add_argument("compose", type=Path, help="docker-compose.yaml with a config named `job`")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("-o", "--output", type=Path, help="write app-compose.json here (default: standard output)")
    target.add_argument("--check", type=Path, help="compare with this file; 1 if it differs")
    parser.add_argument("--write-compose", action="store_true", help="put the job into COMPOSE itself, too")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except (TrainerError, OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        sys.stderr.write(f"render_app_compose: {error}\n")
        return 2


def _run(options: argparse.Namespace) -> int:
    job, compose = (path.read_text(encoding="utf-8") for path in (options.job, options.compose))
    data = render(job, compose)
    if options.check:
        return _compare(options.check, data)
    if options.write_compose:
        options.compose.write_text(render_compose(compose, job), encoding="utf-8")
    if options.output is None:
        sys.stdout.buffer.write(data)
    else:
        options.output.write_bytes(data)
        sys.stderr.write(f"{options.output}: compose hash sha256:{sha256_hex(data)}\n")
    return 0


def _compare(path: Path, data: bytes) -> int:
    if path.read_bytes() == data:
        return 0
    sys.stderr.write(f"{path} is not what its job spec and compose file render to; write it with -o {path}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
