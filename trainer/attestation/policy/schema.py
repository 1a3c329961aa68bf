"""The provider's appraisal policy: the reference values that evidence is judged by.

Nothing security-relevant has a default. What a provider leaves open is written as `any` and shows in every result
as not demanded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field, ValidationError, model_validator

from trainer.attestation.evidence import MAX_GPUS
from trainer.attestation.nvidia.gpu_endorsements import GpuEndorsements
from trainer.attestation.policy.gpu_sources import (
    ReferenceManifests,
    RevocationAnswers,
    ServiceUrl,
    inline_gpu_files,
    read_named,
)
from trainer.attestation.tdx.collateral import INTEL_ROOT_KEY_ID, root_key_id
from trainer.encoding import canonical_json, sha256_hex
from trainer.errors import ErrorCode, UsageError
from trainer.models import Sha256Hex, Strict
from trainer.strict_yaml import parse_yaml

MAX_POLICY_BYTES: Final = 1 << 20

Unset = Literal["any"]
"""How a policy says that it does not demand something."""

GpuModel = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _-]{0,63}$")]

Register = Annotated[str, Field(pattern=r"^[0-9a-f]{96}$")]
"""One TDX register (48 bytes) in lower-case hex."""

PrintableText = Annotated[str, Field(pattern=r"^[ -~\n]*$", max_length=1 << 19)]

TcbStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
]
"""Every TCB status of Intel's that can be accepted; `Revoked` cannot."""


class TrustRoot(Strict):
    """A root certificate other than Intel's, with its fingerprint.

    `sha256` is that of the certificate in DER, as certificate tools print it.
    """

    pem: PrintableText
    sha256: Sha256Hex

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate."""
        return x509.load_pem_x509_certificate(self.pem.encode())

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)

    @model_validator(mode="after")
    def _is_the_root_meant(self) -> Self:
        found = hashlib.sha256(self.der).hexdigest()
        if found != self.sha256:
            raise ValueError(f"the certificate's fingerprint is {found}, not {self.sha256}")
        root_key_id(self.certificate)
        return self


class CollateralUrl(Strict):
    """Collateral comes from a PCS or PCCS service."""

    url: Annotated[str, Field(pattern=r"^https?://[!-~]{1,1000}$")]


class CollateralDocument(Strict):
    """Collateral comes with the policy: the JSON text of the document."""

    document: PrintableText


class TcbSection(Strict):
    """What state the platform may be in.

    `grace_days` is for accepted statuses that say out of date: how many days the matched TCB level's date may lie
    back. `min_evaluation_number` is the least TCB evaluation data number of the collateral.
    """

    accepted_statuses: Annotated[tuple[TcbStatus, ...], Field(min_length=1)]
    grace_days: Annotated[int, Field(ge=0, le=3650)]
    min_evaluation_number: Annotated[int, Field(ge=0, le=2**31)] | Unset
    refused_advisories: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")], ...]
    mr_seam: Annotated[tuple[Register, ...], Field(min_length=1)] | Unset
    """Measurements of the TDX modules that may run; collateral names their signer and version only."""


class KeyProviderDemand(Strict):
    """The key provider that the VM must have measured: its name (`kms`, `local-sgx` …) and identity in hex."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]
    id: Annotated[str, Field(pattern=r"^[0-9a-f]*$", max_length=4096)]


class AppSection(Strict):
    """What may run, and which of its two recipients a dataset is sealed to."""

    compose_sha256: Annotated[tuple[Sha256Hex, ...], Field(min_length=1)]
    job_spec_sha256: Annotated[tuple[Sha256Hex, ...], Field(min_length=1)]
    app_id: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | Unset
    key_provider: KeyProviderDemand | Unset
    kms_root_key: Annotated[str, Field(pattern=r"^0[23][0-9a-f]{64}$")] | Unset
    recipient: Literal["derived", "instance"]


class OsMeasurements(Strict):
    """What one OS image on one VM shape measures to before any application starts."""

    mrtd: Register
    rtmr0: Register
    rtmr1: Register
    rtmr2: Register


class OsSection(Strict):
    """Which OS may run below the app: by registers, or by image hash where the VM's evidence allows it.

    Empty lists accept no OS.
    """

    measurements: tuple[OsMeasurements, ...] = ()
    image_sha256: tuple[Sha256Hex, ...] = ()
    development: Literal["refused"] | Unset = "refused"


class GpuSection(Strict):
    """Whether there must be NVIDIA GPUs in confidential mode, by the OS's word and by their own.

    `required` is about what the measured OS put into its event; `boot` demands that the claims behind its word
    hold, device by device; `fresh` demands reports that GPUs sign for the provider's nonce. `count`, `models` and
    the least versions are about whichever of these two is required. `reference_values` (RIM) and `revocation`
    (OCSP) are about fresh reports: in the boot claims, both belong to `boot`.
    """

    required: bool
    boot: Literal["required"] | Unset
    fresh: Literal["required"] | Unset
    count: Annotated[int, Field(ge=1, le=MAX_GPUS)] | Unset
    models: Annotated[tuple[GpuModel, ...], Field(min_length=1)] | Unset
    """Starts of model names, such as `GH100`; a GPU must be of one of them."""
    min_driver_version: Annotated[str, Field(pattern=r"^[0-9]{1,4}(\.[0-9]{1,4}){1,3}$")] | Unset
    """Such as `550.90.07`; compared number by number."""
    min_vbios_version: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{2}(\.[0-9a-fA-F]{2}){4}$")] | Unset
    """Such as `96.00.9F.00.01`; compared byte by byte, in hex."""
    devtools: Literal["refused"] | Unset
    """Devtools mode by the event's word, and debugging by that of the boot claims, where these are required."""
    reference_values: ReferenceManifests | ServiceUrl | Unset
    revocation: RevocationAnswers | ServiceUrl | Unset

    @model_validator(mode="after")
    def _rests_on_evidence(self) -> Self:
        rest = (self.count, self.models, self.min_driver_version, self.min_vbios_version)
        if self.boot == self.fresh == "any" and rest != ("any",) * len(rest):
            raise ValueError("count, models and least versions need `boot: required` or `fresh: required`")
        if self.boot == "required" and not self.required:
            raise ValueError("`boot: required` needs `required: true`")
        if self.fresh == "any" and (self.reference_values, self.revocation) != ("any", "any"):
            raise ValueError("reference_values and revocation need `fresh: required`")
        return self


def endorsements_of(section: GpuSection, *, fetched: GpuEndorsements) -> GpuEndorsements:
    """What fresh GPU reports are judged with: the policy's own files, or what was fetched."""
    values, answers = section.reference_values, section.revocation
    return GpuEndorsements(
        reference_values=values.documents if isinstance(values, ReferenceManifests) else fetched.reference_values,
        revocation=answers.decoded() if isinstance(answers, RevocationAnswers) else fetched.revocation,
    )


class FreshnessSection(Strict):
    """How old claims may be, in seconds."""

    max_age_seconds: Annotated[int, Field(ge=1, le=30 * 86400)]


class Policy(Strict):
    """One policy, whole: every file that it named is part of it."""

    version: Literal[1]
    trust_root: Literal["intel"] | TrustRoot
    collateral: CollateralUrl | CollateralDocument
    tcb: TcbSection
    app: AppSection
    os: OsSection | Unset
    gpu: GpuSection
    sandbox: (
        Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")], ...], Field(min_length=1)]
        | Unset
    )
    freshness: FreshnessSection

    def canonical(self) -> bytes:
        """RFC 8785 form."""
        return canonical_json(self.model_dump(mode="json"))

    def sha256(self) -> str:
        """The policy's digest, in hex."""
        return sha256_hex(self.canonical())

    @property
    def root_der(self) -> bytes | None:
        """The trusted root in DER; None for Intel's."""
        return None if self.trust_root == "intel" else self.trust_root.der

    @property
    def root_key_id(self) -> bytes:
        """SHA-384 of the trusted root's public key."""
        return INTEL_ROOT_KEY_ID if self.trust_root == "intel" else root_key_id(self.trust_root.certificate)


def parse_policy(data: bytes, *, read_file: Callable[[str], bytes]) -> Policy:
    """Parse the bytes of a policy.yaml.

    Args:
        data: the YAML text.
        read_file: gives the bytes of a file that the policy names, relative to wherever the caller wants.

    Raises:
        UsageError: not a policy, or a file that it names is missing or not the one meant.
    """
    document = parse_yaml(data, what="policy", limit=MAX_POLICY_BYTES, code=ErrorCode.POLICY_INVALID)
    if not isinstance(document, dict):
        raise UsageError(
            ErrorCode.POLICY_INVALID, "the policy", expected="a mapping", found=type(document).__name__
        )
    inlined = {**document}
    _inline(inlined, "trust_root", "pem", read_file)
    _inline(inlined, "collateral", "document", read_file)
    if "gpu" in inlined:
        inlined["gpu"] = inline_gpu_files(inlined["gpu"], read_file)
    try:
        return Policy.model_validate_json(canonical_json(inlined))
    except ValidationError as error:
        raise _policy_error(error) from None


def _inline(document: dict[str, object], section: str, key: str, read_file: Callable[[str], bytes]) -> None:
    """Replace `{file: …}` in a section by the file's text under `key`."""
    value = document.get(section)
    if not isinstance(value, Mapping) or "file" not in value:
        return
    name = value["file"]
    if not isinstance(name, str) or key in value:
        raise UsageError(
            ErrorCode.POLICY_INVALID, f"policy: {section}", expected="one file name", found=repr(name)
        )
    rest = {other: content for other, content in value.items() if other != "file"}
    document[section] = {**rest, key: _text(name, read_file)}


def _text(name: str, read_file: Callable[[str], bytes]) -> str:
    try:
        return read_named(name, read_file).decode()
    except UnicodeDecodeError:
        raise UsageError(ErrorCode.POLICY_INVALID, name, expected="a text file", found="binary data") from None


def _policy_error(error: ValidationError) -> UsageError:
    """The most specific complaint, in the policy's own terms."""
    complaints = error.errors(include_url=False, include_context=False, include_input=False)
    first = max(complaints, key=lambda each: (len(each["loc"]), each["type"] != "literal_error"))
    known = (str(part) for part in first["loc"])
    where = ".".join(part for part in known if part.isdigit() or (part.islower() and part.isidentifier()))
    hint = "write `any` to leave it open" if first["type"] == "missing" else None
    message = first["msg"].removeprefix("Value error, ")
    return UsageError(ErrorCode.POLICY_INVALID, f"policy: {where or 'document'}: {message}", hint=hint)
