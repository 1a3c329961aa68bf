"""Where the endorsements of GPUs come from under a policy: files that become part of it, or a service."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from trainer.attestation.nvidia.gpu_endorsements import (
    MAX_ANSWERS,
    MAX_MANIFESTS,
    AnswerText,
    ManifestText,
)
from trainer.errors import ErrorCode, UsageError
from trainer.models import Strict


class ServiceUrl(Strict):
    """A service that is queried before each appraisal. Its answers are signed: it can withhold, but not forge."""

    url: Annotated[str, Field(pattern=r"^https://[!-~]{1,1000}$")]


class ReferenceManifests(Strict):
    """NVIDIA's signed reference integrity manifests as part of the policy: the XML text of each."""

    documents: Annotated[tuple[ManifestText, ...], Field(min_length=1, max_length=MAX_MANIFESTS)]


class RevocationAnswers(Strict):
    """OCSP responses as part of the policy: base64 of the DER form of each."""

    responses: Annotated[tuple[AnswerText, ...], Field(min_length=1, max_length=MAX_ANSWERS)]

    def decoded(self) -> tuple[bytes, ...]:
        """Returns the responses in DER."""
        return tuple(base64.b64decode(response) for response in self.responses)


class EndorsementFiles(BaseModel):
    """The YAML form of endorsements that are in files next to the policy."""

    files: tuple[str, ...]


def read_named(name: str, read_file: Callable[[str], bytes]) -> bytes:
    """Returns the bytes of a file that a policy names.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return read_file(name)
    except OSError as error:
        raise UsageError(
            ErrorCode.FILE_NOT_FOUND, f"cannot read {name}: {error.strerror}"
        ) from error


def read_named_text(name: str, read_file: Callable[[str], bytes], expected: str) -> str:
    """Returns the text of a file that a policy names.

    Args:
        name: the file's name, as in the policy.
        read_file: returns the bytes of the file of this name.
        expected: what the file should be, for the message.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    try:
        return read_named(name, read_file).decode()
    except UnicodeDecodeError:
        raise UsageError(
            ErrorCode.POLICY_INVALID, name, expected=expected, found="binary data"
        ) from None


def inline_gpu_files(section: object, read_file: Callable[[str], bytes]) -> object:
    """Replaces `{files: […]}` in the section `gpu` of a parsed YAML policy by the contents of the files.

    Raises:
        UsageError: a file cannot be read, or is not of its kind.
    """
    if not isinstance(section, Mapping):
        return section
    # A policy's digest must cover what it judges by, so files become part of it: a changed file is another
    # policy.
    inlined = dict(section)
    for name, key, limit in (
        ("reference_values", "documents", MAX_MANIFESTS),
        ("revocation", "responses", MAX_ANSWERS),
    ):
        value, where = inlined.get(name), f"policy: gpu.{name}"
        if not isinstance(value, Mapping) or "files" not in value:
            continue
        files = value["files"]
        if (
            not isinstance(files, list)
            or not all(isinstance(file, str) for file in files)
            or len(value) != 1
        ):
            raise UsageError(
                ErrorCode.POLICY_INVALID,
                where,
                expected="files: a list of names",
                found=repr(files),
            )
        if not 1 <= len(files) <= limit:
            raise UsageError(
                ErrorCode.POLICY_INVALID, where, expected=f"1 to {limit} files", found=len(files)
            )
        if name == "reference_values":
            inlined[name] = {
                key: [read_named_text(file, read_file, "an XML file") for file in files]
            }
        else:
            inlined[name] = {
                key: [base64.b64encode(read_named(file, read_file)).decode() for file in files]
            }
    return inlined


def explain_reference_values(source: ReferenceManifests | ServiceUrl | Literal["any"]) -> str:
    """Returns what `gpu.reference_values` demands, in one sentence."""
    if source == "any":
        return "Not demanded: that GPUs measure what NVIDIA published for their driver and VBIOS."
    where = source.url if isinstance(source, ServiceUrl) else f"{len(source.documents)} files"
    return f"GPUs must measure what NVIDIA published and signed for their driver and VBIOS, as found in {where}."


def explain_revocation(source: RevocationAnswers | ServiceUrl | Literal["any"]) -> str:
    """Returns what `gpu.revocation` demands, in one sentence."""
    if source == "any":
        return "Not demanded: that GPUs' certificates are not revoked."
    where = source.url if isinstance(source, ServiceUrl) else f"{len(source.responses)} files"
    return f"NVIDIA's responder must say that GPUs' certificates are not revoked, in answers found in {where}."
