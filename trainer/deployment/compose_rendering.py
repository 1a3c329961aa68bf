"""Puts the text of a job spec into the environment of a compose file's service, and reads it back."""

from __future__ import annotations

import re
from typing import Final

from trainer.errors import ErrorCode, UsageError
from trainer.spec import JOB_VARIABLE, MAX_VARIABLE_BYTES, from_compose, to_compose
from trainer.strict_yaml import YamlError, load_yaml_tree

_JOB_BLOCK: Final = re.compile(rf"(?m)^( +){JOB_VARIABLE}: \|\n((?:\1 +\S.*\n|[ ]*\n)*)")
"""The variable's key and the lines of its block: those that are indented further, and empty ones."""


def render_compose(compose: str, job: str) -> str:
    """Returns the compose file with `job` as the value of `TRAINER_JOB`.

    Dollar signs are doubled, since compose replaces variables; the container receives `job` itself.

    Raises:
        UsageError: the job spec is too long for an environment variable, the compose file has not exactly one such
            entry, or the container would receive another text.
    """
    job = job.rstrip("\n") + "\n"
    _require_length(job)
    found = _JOB_BLOCK.findall(compose)
    if len(found) != 1:
        raise UsageError(
            ErrorCode.USAGE,
            "the compose file",
            expected=f"one service with `{JOB_VARIABLE}: |` in the mapping `environment`",
            found=f"{len(found)} of them",
            hint="start from configs/docker-compose.yaml",
        )
    rendered = _JOB_BLOCK.sub(lambda match: _render_block(match[1], job), compose)
    if read_embedded_job(rendered) != job:
        raise UsageError(
            ErrorCode.USAGE,
            "the job spec would not arrive unchanged as a block of YAML",
            hint="remove carriage returns, control characters, and spaces before the first key",
        )
    return rendered


def _require_length(job: str) -> None:
    if (length := len(job.encode())) > MAX_VARIABLE_BYTES:
        raise UsageError(
            ErrorCode.SPEC_TOO_LARGE,
            "the job spec is too long for an environment variable",
            expected=f"at most {MAX_VARIABLE_BYTES} bytes",
            found=f"{length} bytes",
        )


def _render_block(indent: str, job: str) -> str:
    deeper = f"{indent}  "
    lines = to_compose(job).splitlines(keepends=True)
    block = "".join(f"{deeper}{line}" if line.strip() else "\n" for line in lines)
    return f"{indent}{JOB_VARIABLE}: |\n{block}"


def read_embedded_job(compose: str) -> str:
    """Returns the text of the job spec that the container of a compose file receives.

    Raises:
        UsageError: not acceptable YAML, or not exactly one service has the variable as fixed text.
    """
    try:
        document = load_yaml_tree(compose, compose_features=True).plain_value()
    except YamlError as error:
        raise UsageError(
            ErrorCode.USAGE,
            f"the compose file, line {error.line}: not acceptable YAML: {error.problem}",
        ) from error
    services = document.get("services") if isinstance(document, dict) else None
    environments = [
        service.get("environment")
        for service in (services.values() if isinstance(services, dict) else ())
        if isinstance(service, dict)
    ]
    texts = [
        each[JOB_VARIABLE]
        for each in environments
        if isinstance(each, dict) and JOB_VARIABLE in each
    ]
    text = from_compose(texts[0]) if len(texts) == 1 and isinstance(texts[0], str) else None
    if text is None:
        raise UsageError(
            ErrorCode.USAGE,
            "the compose file",
            expected=f"one service with {JOB_VARIABLE} in its environment, without variables in the value",
            found="another number of them, or variables",
        )
    return text
