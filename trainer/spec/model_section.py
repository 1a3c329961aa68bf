"""Section `model`: which base model, file by file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from trainer.encoding import canonical_json, sha256_hex
from trainer.models import NO_NUMBER, Sha256Hex, Strict

MODEL_FILE_SUFFIXES: Final = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Suffixes of the files of a base model. Pickles and code have other suffixes and are refused by name."""


_Url = Annotated[str, Field(max_length=4096)]


class Dtype(StrEnum):
    """Element type of the frozen base weights in memory."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class ModelSection(Strict):
    """Which base model: a local directory (`./…` or `/…`) or a hub id with a revision; every file by digest.

    `model_file_sha256` maps each file's name, relative to the model's directory, to its SHA-256. Files that
    are not listed are neither fetched nor shown to the worker. `model_urls` maps the names of some or all of
    them to URLs that they are downloaded from instead of the hub.
    """

    model_name_or_path: Annotated[str, Field(min_length=1, max_length=512)]
    model_revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    model_file_sha256: Annotated[dict[str, Sha256Hex], Field(min_length=2, max_length=1024)]
    model_urls: Annotated[dict[str, _Url], Field(max_length=1024)] = {}  # noqa: RUF012 -- frozen, and copied
    dtype: Dtype = Dtype.BFLOAT16
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    trust_remote_code: Annotated[Literal[False], NO_NUMBER] = False
    license: Annotated[str, Field(pattern=r"^[\w. +-]{1,128}$")] | None = None
    """Licence of the base model, for the adapter's model card."""

    @property
    def is_local(self) -> bool:
        """Whether the model is a directory rather than a hub id."""
        return self.model_name_or_path.startswith(("./", "../", "/"))

    @property
    def public_name(self) -> str:
        """The base model's name outside the operator's machine: its hub id, or the digest of its weights."""
        if not self.is_local:
            return self.model_name_or_path
        weights = {
            name: digest
            for name, digest in self.model_file_sha256.items()
            if name.endswith(".safetensors")
        }
        name, digest = min(weights.items())
        more = f" and {len(weights) - 1} more files" if len(weights) > 1 else ""
        return f"a local model, {name} of SHA-256 {digest}{more}"

    @property
    def base_sha256(self) -> str:
        """The digest by which an adapter names the base model that it was trained on, in hex.

        SHA-256 of the RFC 8785 form of name → SHA-256, of config.json and the files with weights. Tokenizer and
        chat template may change without making another base model.
        """
        return base_digest(self.model_file_sha256)

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other")
        if not self.is_local:
            if not re.fullmatch(
                r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", self.model_name_or_path
            ):
                raise ValueError(
                    "model_name_or_path must be ./DIR, /DIR or a hub id such as org/name"
                )
            # A branch moves; a commit names one state of the repository, whose files then have these digests.
            if self.model_revision is None:
                raise ValueError(
                    "a hub id needs model_revision: the 40 hex digits of a commit, not a branch"
                )
        for name in self.model_file_sha256:
            _check_model_file_name(name)
        self._check_urls()
        names = self.model_file_sha256
        if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
            raise ValueError(
                "model_file_sha256 must list config.json and at least one .safetensors file"
            )
        return self

    def _check_urls(self) -> None:
        for name, url in self.model_urls.items():
            if name not in self.model_file_sha256:
                raise ValueError(
                    f"model_urls: {name!r} is not in model_file_sha256, so it would not be loaded"
                )
            _check_model_url(name, url)


def base_digest(file_sha256: Mapping[str, Sha256Hex]) -> Sha256Hex:
    """Returns `ModelSection.base_sha256` of files: name → SHA-256 in hex. Only `is_base_file` ones count."""
    return sha256_hex(
        canonical_json(
            {name: file_sha256[name] for name in sorted(file_sha256) if is_base_file(name)}
        )
    )


def is_base_file(name: str) -> bool:
    """Returns whether a file of a base model decides what the model computes from token ids."""
    return name == "config.json" or name.endswith((".safetensors", ".safetensors.index.json"))


def is_protected_url(url: str) -> bool:
    """Returns whether a URL is https, or http to this machine itself, where nobody else can listen."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (
        parts.scheme == "http" and parts.hostname in {"127.0.0.1", "localhost", "::1"}
    )


def _check_model_url(name: str, url: str) -> None:
    # No message quotes a URL: a presigned one is an access right.
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises an error for one that is no number
    except ValueError:
        raise ValueError(f"model_urls: the value for {name!r} is not a URL") from None
    if not re.fullmatch(r"[!-~]+", url) or not parts.hostname or parts.fragment:
        raise ValueError(
            f"model_urls: the value for {name!r} is not a URL of printable ASCII without a fragment"
        )
    if not is_protected_url(url):
        raise ValueError(f"model_urls: the URL for {name!r} must begin with https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            f"model_urls: the URL for {name!r} has credentials, and the job spec is public"
        )


def _check_model_file_name(name: str) -> None:
    # Names become paths below the model's directory and parts of URLs: `..` or `/x` would lead elsewhere, and with
    # `a//b` one file would have two names.
    path = PurePosixPath(name)
    parts_safe = all(re.fullmatch(r"[A-Za-z0-9_][\w.-]*", part) for part in path.parts)
    if path.is_absolute() or str(path) != name or not parts_safe:
        raise ValueError(f"model_file_sha256: {name!r} is not a plain relative file name")
    if path.suffix not in MODEL_FILE_SUFFIXES:
        raise ValueError(
            f"model_file_sha256: {name!r} is not of a kind that can be loaded safely; "
            f"expected one of {', '.join(MODEL_FILE_SUFFIXES)}"
        )
