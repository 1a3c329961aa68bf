"""Bringing the base model in: a short-lived child has the network, this process only reads its verdict."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from trainer.errors import ErrorCode, JobError, UnavailableError
from trainer.models import Strict
from trainer.spec import JobSpec
from trainer.supervisor import children
from trainer.supervisor.workspace import Workspace

FETCH_SECONDS: Final = 6 * 3600
_HUB_VARIABLES: Final = ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE")


class _Verdict(Strict):
    error: ErrorCode | None = None
    message: str | None = None
    expected: str | None = None
    found: str | None = None


def fetch_base_model(spec: JobSpec, spec_folder: Path, workspace: Workspace) -> None:
    """Fill `workspace.model` with exactly the files that the spec lists, each with the digest it names.

    Args:
        spec: the job spec.
        spec_folder: what a relative `model_name_or_path` is relative to.
        workspace: the job's workspace.

    Raises:
        JobError: `model-digest-mismatch` or `model-invalid`.
        UnavailableError: the source does not answer.
    """
    order = {
        "model": spec.model.model_dump(mode="json", exclude_unset=True),
        "base_dir": str(spec_folder.resolve()),
        "into": str(workspace.model),
    }
    hub = {name: os.environ[name] for name in _HUB_VARIABLES if name in os.environ}
    with workspace.private_log.open("ab") as log:
        process = children.start_module(
            "trainer.exchange.base_model",
            [],
            environment=children.clean_environment(workspace.scratch, hub),
            log=log,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    try:
        answer, _ = process.communicate(json.dumps(order).encode(), timeout=FETCH_SECONDS)
    except subprocess.TimeoutExpired:
        raise UnavailableError(
            ErrorCode.MODEL_UNAVAILABLE,
            "the base model did not arrive in time",
            expected=f"{FETCH_SECONDS} s",
            found="more",
        ) from None
    finally:
        children.end(process)
    _judge(answer)


def _judge(answer: bytes) -> None:
    try:
        verdict = _Verdict.model_validate_json(answer)
    except ValidationError as error:
        raise JobError(ErrorCode.MODEL_INVALID, "the base model could not be brought in") from error
    if verdict.error is None:
        return
    kind = UnavailableError if verdict.error is ErrorCode.MODEL_UNAVAILABLE else JobError
    raise kind(verdict.error, verdict.message or "base model", expected=verdict.expected, found=verdict.found)
