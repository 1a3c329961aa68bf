"""Base models: exactly the files that the job spec lists, each by its digest, into the job's private memory.

`python -m trainer.fetch.base_model` does it in a process of its own (an `FetchOrder` on stdin, a `FetchReport` on
stdout), so that the supervisor opens no socket. Where the bytes come from does not matter: their
digests are measured.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated, Final

from pydantic import Field, ValidationError

from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, JobError, TrainerError, UnavailableError
from trainer.models import Sha256Hex, Strict
from trainer.sandbox.confine import confine
from trainer.sandbox.plan import SandboxPlan
from trainer.spec import ModelSection

_BLOCK: Final = 1 << 20
_PARALLEL: Final = 4
_STAGING: Final = ".fetching"
_MAX_REPORT_BYTES: Final = 1 << 16

QUIET_HUB: Final = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_SHARED_BLOBS": "1",
}
"""Environment of the hub's library, which reads it when first imported: so in the child, before that."""


class FetchOrder(Strict):
    """What the child is to fetch: `model` relative to `base_dir`, into the existing directory `into`.

    `plan` is what it confines itself to before it looks for the first byte.
    """

    model: ModelSection
    base_dir: Annotated[str, Field(max_length=4096)]
    into: Annotated[str, Field(max_length=4096)]
    plan: SandboxPlan | None = None


class FetchReport(Strict):
    """How it went; `error` is None where every file is there. Its texts hold file names and digests only."""

    error: ErrorCode | None = None
    message: Annotated[str, Field(max_length=4096)] | None = None
    expected: Annotated[str, Field(max_length=1024)] | None = None
    found: Annotated[str, Field(max_length=1024)] | None = None


def fetch_model(model: ModelSection, base_dir: Path, into: Path) -> None:
    """Bring the listed files into `into`, and nothing else.

    Args:
        model: the job spec's section.
        base_dir: what a local model's path is relative to.
        into: existing directory, on memory; files appear under their names once their digest is right.

    Raises:
        JobError: a file is not what the spec says (`model-digest-mismatch`), absent (`model-invalid`), or there is
            no room (`workspace-full`).
        UnavailableError: the hub does not give a file (`model-unavailable`).
    """
    with _staging(into) as staging:
        names = sorted(model.model_file_sha256)
        if model.is_local:
            source = (base_dir / model.model_name_or_path).resolve()
            for name in names:
                _copy_checked(source, name, staging, into, model.model_file_sha256[name])
            return

        def one(name: str) -> None:
            downloaded = _download(model, name, staging)
            _move_checked(downloaded, into / name, model.model_file_sha256[name], name)

        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(one, names))


@contextmanager
def _staging(into: Path) -> Iterator[Path]:
    staging = into / _STAGING
    staging.mkdir(mode=0o700)
    try:
        yield staging
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise JobError(ErrorCode.WORKSPACE_FULL, "no room for the base model") from error
        raise JobError(ErrorCode.MODEL_INVALID, f"the base model cannot be stored: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _copy_checked(source: Path, name: str, staging: Path, into: Path, expected: Sha256Hex) -> None:
    """Copy a file while hashing it; it gets its name only if the digest is right."""
    try:
        file = (source / name).open("rb")
    except OSError as error:
        raise JobError(
            ErrorCode.MODEL_INVALID, f"base model file {name} cannot be read: {error.strerror}"
        ) from error
    partial = staging / sha256_hex(name.encode())
    digest = hashlib.sha256()
    with file, partial.open("xb") as copy:
        while block := file.read(_BLOCK):
            digest.update(block)
            copy.write(block)
    _accept(partial, into / name, expected, digest.hexdigest(), name)


def _move_checked(source: Path, target: Path, expected: Sha256Hex, name: str) -> None:
    with source.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    _accept(source, target, expected, found, name)


def _accept(partial: Path, target: Path, expected: str, found: str, name: str) -> None:
    if found != expected:
        partial.unlink()
        raise JobError(
            ErrorCode.MODEL_DIGEST_MISMATCH,
            f"base model file {name} is not the one the job spec pins (SHA-256)",
            expected=expected,
            found=found,
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(target)


def _download(model: ModelSection, name: str, staging: Path) -> Path:
    """One file of the pinned revision from the hub that `HF_ENDPOINT` names; without a token."""
    import httpx  # noqa: PLC0415 -- only a hub id needs these
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 -- reads its environment when imported
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    try:
        path = hf_hub_download(
            model.model_name_or_path, name, revision=model.model_revision, local_dir=staging, token=False
        )
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise UnavailableError(
            ErrorCode.MODEL_UNAVAILABLE,
            f"base model file {name}: the hub did not give it ({type(error).__name__})",
            hint="is the hub id right, the revision still there, and the hub reachable from the job?",
        ) from error
    return Path(path)


class Fetch:
    """`fetch_model` in a process of its own, which gets nothing of this one but the names of its files.

    Started and waited for apart, so that the process that starts it can give up the right to start any before the
    first byte arrives.

    Args:
        order: what to fetch.
        environment: the child's variables; this process's own where left out.
        log: takes what the child and its libraries print; this process's stderr where left out.
    """

    def __init__(
        self, order: FetchOrder, *, environment: Mapping[str, str] | None = None, log: IO[bytes] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trainer.fetch.base_model"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
        )
        # An explicit dump of what was written: defaults stay unset, as in the spec.
        self._order = order.model_dump_json(exclude_unset=True).encode()

    def begin(self) -> None:
        """Hand the order over; once is enough."""
        stream, self._process.stdin = self._process.stdin, None
        if stream is None:
            return
        with suppress(BrokenPipeError):  # it died: `wait` will say so
            stream.write(self._order)
        with suppress(BrokenPipeError):
            stream.close()

    def wait(self, timeout: float) -> None:
        """Wait for the files; begins where `begin` was not called.

        Args:
            timeout: seconds.

        Raises:
            TrainerError: as `fetch_model`; `timeout` after as many seconds, `model-unavailable` if the child died.
        """
        try:
            self.begin()
            answer, _ = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(
                ErrorCode.TIMEOUT, f"the base model did not arrive in {timeout:.0f} s"
            ) from error
        finally:
            self.end()
        try:
            report = FetchReport.model_validate_json(answer[:_MAX_REPORT_BYTES])
        except ValidationError:
            raise UnavailableError(
                ErrorCode.MODEL_UNAVAILABLE, "the process that fetches the model died"
            ) from None
        if report.error is not None:
            raise _as_error(report.error, report)

    def end(self) -> None:
        """End the child, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def _as_error(code: ErrorCode, report: FetchReport) -> TrainerError:
    kind = UnavailableError if code in {ErrorCode.MODEL_UNAVAILABLE, ErrorCode.TIMEOUT} else JobError
    return kind(code, report.message or "base model", expected=report.expected, found=report.found)


def main() -> int:
    """Entry point of the child: an order on stdin, a report on stdout."""
    sys.stdout.flush()
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print is no report
    order = FetchOrder.model_validate_json(sys.stdin.buffer.read())
    if order.plan is not None:
        confine(order.plan)
    os.environ.update(QUIET_HUB, HF_HOME=str(Path(order.into) / _STAGING))
    report = FetchReport()
    try:
        fetch_model(order.model, Path(order.base_dir), Path(order.into))
    except TrainerError as error:
        report = FetchReport(
            error=error.code,
            message=error.message,
            expected=None if error.expected is None else str(error.expected),
            found=None if error.found is None else str(error.found),
        )
    with answer:
        answer.write(report.model_dump_json().encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
