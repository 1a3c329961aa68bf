"""Brings a base model into the job's private memory: the files that the job spec lists, each with its digest.

The source is not trusted, whether it is a hub, a mirror or a local directory. A file gets its name only after its
SHA-256 has been found to be the one in the job spec, which is attested.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer.encoding import file_sha256, sha256_hex
from trainer.errors import ErrorCode, JobError
from trainer.fetch.hub_client import download_from_hub, send_token_to_hub_only
from trainer.fetch.url_download import download_url
from trainer.models import Sha256Hex
from trainer.spec import ModelSection

STAGING: Final = ".fetching"
"""Directory below the target for files that have not been checked yet; removed at the end."""

HUB_VARIABLES: Final = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_SHARED_BLOBS": "1",
}
"""Variables that keep the hub's library from telemetry and look-ups. It reads them when it is first imported."""

_BLOCK_BYTES: Final = 1 << 20
_PARALLEL_DOWNLOADS: Final = 4


def fetch_model(
    model: ModelSection, base_dir: Path, into: Path, *, hub_token: str | None = None
) -> None:
    """Brings the listed files into `into`, and nothing else.

    Args:
        model: the job spec's section.
        base_dir: directory that a local model's path is relative to.
        into: existing directory in memory; a file appears under its name once its digest is right.
        hub_token: access to the model at the hub, for files without a URL of their own.

    Raises:
        JobError: a file does not have the digest of the job spec (`model-digest-mismatch`), is missing
            (`model-invalid`), or does not fit (`workspace-full`).
        UnavailableError: the hub, or the file's URL, does not give a file (`model-unavailable`).
        UsageError: the token would be sent without TLS (`hub-token-invalid`).
    """
    with _staging(into) as staging:
        names = sorted(model.model_file_sha256)
        if model.is_local:
            source = (base_dir / model.model_name_or_path).resolve()
            for name in names:
                _copy_checked(source, name, staging, into, model.model_file_sha256[name])
            return

        if hub_token is not None:
            send_token_to_hub_only()

        def download_checked(name: str) -> None:
            if (url := model.model_urls.get(name)) is not None:
                downloaded = download_url(url, name, _flat(staging, name))
            else:
                downloaded = download_from_hub(model, name, staging, hub_token=hub_token)
            # Of the file that is then renamed, not of the stream: a library wrote it, or several attempts.
            _accept(
                downloaded,
                into / name,
                model.model_file_sha256[name],
                file_sha256(downloaded),
                name,
            )

        with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
            list(pool.map(download_checked, names))


@contextmanager
def _staging(into: Path) -> Iterator[Path]:
    staging = into / STAGING
    staging.mkdir(mode=0o700)
    try:
        yield staging
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise JobError(ErrorCode.WORKSPACE_FULL, "no room for the base model") from error
        raise JobError(
            ErrorCode.MODEL_INVALID, f"the base model cannot be stored: {error.strerror}"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _copy_checked(source: Path, name: str, staging: Path, into: Path, expected: Sha256Hex) -> None:
    """Copies a file and hashes what is written, so that a file that changes meanwhile cannot pass."""
    try:
        file = (source / name).open("rb")
    except OSError as error:
        raise JobError(
            ErrorCode.MODEL_INVALID, f"base model file {name} cannot be read: {error.strerror}"
        ) from error
    partial = _flat(staging, name)
    digest = hashlib.sha256()
    with file, partial.open("xb") as copy:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            copy.write(block)
    _accept(partial, into / name, expected, digest.hexdigest(), name)


def _flat(staging: Path, name: str) -> Path:
    """Returns a path without directories for a file whose name may have some."""
    return staging / sha256_hex(name.encode())


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
