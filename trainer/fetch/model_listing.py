"""What a model hub, or a directory, says about the files of a base model, on a user's machine.

It serves `trainer job pin` and `trainer try`; no job uses it.

A hub states the SHA-256 of large files, so that nothing large is downloaded. It is trusted no further than the
operator's own look at the model: the job compares every file with the digest that job.yaml names.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from trainer.errors import ErrorCode, UnavailableError, UsageError, missing_package
from trainer.fetch.base_model import HUB_VARIABLES
from trainer.models import Sha256Hex

_SHA256: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelListing:
    """The files of one model, and how to get the digest and the content of each.

    Args:
        revision: the commit, 40 hex digits; None for a directory.
        names: names of all files, relative to the model's directory.
        stated_sha256: name of each file whose digest the hub states → SHA-256 in hex.
        fetch: returns the path of a file on this machine; downloads it if necessary.
    """

    revision: str | None
    names: tuple[str, ...]
    fetch: Callable[[str], Path] = field(repr=False)
    stated_sha256: Mapping[str, Sha256Hex] = field(default_factory=dict)

    def at(self, revision: str) -> ModelListing:
        """Returns the same files as those of a commit."""
        return replace(self, revision=revision)

    def read(self, name: str) -> bytes | None:
        """Returns the content of a small file; None if there is no such file."""
        return self.fetch(name).read_bytes() if name in self.names else None

    def sha256(self, name: str) -> Sha256Hex:
        """Returns the digest of a file: as the hub states it, or of the content."""
        if (stated := self.stated_sha256.get(name)) is not None:
            return stated
        with self.fetch(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def list_directory(directory: Path) -> ModelListing:
    """Lists the files of a model in a directory.

    Raises:
        UsageError: there is no such directory.
    """
    if not directory.is_dir():
        raise UsageError(ErrorCode.FILE_NOT_FOUND, f"{directory} is not a directory")
    names = (
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    )
    return ModelListing(None, tuple(sorted(names)), lambda name: directory / name)


def list_hub_model(name: str, revision: str | None, downloads: Path) -> ModelListing:
    """Asks the hub that `HF_ENDPOINT` names about a model, without a token.

    Args:
        name: hub id.
        revision: a commit, branch or tag; None for the default branch.
        downloads: directory for the small files, which are downloaded to be hashed.

    Raises:
        UsageError: the hub's client is not installed.
        UnavailableError: the hub does not answer, or does not have the model or revision.
    """
    # Read when the client is imported.
    os.environ.update(HUB_VARIABLES, HF_HOME=str(downloads / "home"))
    try:
        from huggingface_hub import HfApi, hf_hub_download  # noqa: PLC0415 -- reads its environment when imported
    except ModuleNotFoundError as error:
        purpose, otherwise = "asking a model hub", "name a directory with --from"
        raise missing_package(error.name, "job", purpose, otherwise=otherwise) from error
    info = _ask_hub(
        name, lambda: HfApi(token=False).model_info(name, revision=revision, files_metadata=True)
    )
    files = {file.rfilename: file for file in info.siblings or ()}
    stated = {key: file.lfs.sha256 for key, file in files.items() if file.lfs}

    def fetch(file: str) -> Path:
        return Path(
            _ask_hub(
                f"{name}: {file}",
                lambda: hf_hub_download(
                    name, file, revision=info.sha, local_dir=downloads, token=False
                ),
            )
        )

    return ModelListing(
        str(info.sha),
        tuple(sorted(files)),
        fetch,
        {key: digest for key, digest in stated.items() if _SHA256.fullmatch(digest)},
    )


def download_hub_files(name: str, revision: str, patterns: Sequence[str]) -> Path:
    """Downloads files of a model into the cache of the hub's client, or finds them there.

    Args:
        name: hub id.
        revision: the commit.
        patterns: names of the files, or patterns of them.

    Returns:
        The directory of that commit.

    Raises:
        UnavailableError: the hub does not answer, or does not have the model or revision.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415 -- reads its environment when imported

    return Path(
        _ask_hub(
            f"{name} at {revision}",
            lambda: snapshot_download(name, revision=revision, allow_patterns=list(patterns)),
        )
    )


def _ask_hub(what: str, ask: Callable[[], Any]) -> Any:
    import httpx  # noqa: PLC0415 -- only a model on a hub needs these
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    try:
        return ask()
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        raise UnavailableError(
            ErrorCode.MODEL_UNAVAILABLE,
            f"the hub did not answer about {what} ({type(error).__name__})",
            hint="are the hub id and the revision right, and is the hub that HF_ENDPOINT names reachable?",
        ) from error
