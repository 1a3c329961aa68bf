"""The provider's appraisal policy as a document: its fields, its digest, and reading it from YAML.

Nothing security-relevant has a default. A point that the provider leaves open is written as `any` and is shown as
not demanded in every result.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import AfterValidator, Field, ValidationError, model_validator

from trainer.attestation.policy.app_section import (
    DERIVED_RECIPIENT,
    DERIVED_RECIPIENT_HINT,
    AppSection,
)
from trainer.attestation.policy.gpu_sources import inline_gpu_files, read_named_text
from trainer.attestation.policy.platform_section import PlatformSection
from trainer.attestation.policy.sections import (
    FreshnessSection,
    GpuSection,
    OsSection,
    TcbSection,
    Unset,
)
from trainer.attestation.tdx.collateral import INTEL_ROOT_KEY_ID
from trainer.attestation.tdx.pem_chain import root_key_id
from trainer.encoding import canonical_json, exact_json, sha256_hex
from trainer.errors import ErrorCode, UsageError
from trainer.models import One, Sha256Hex, Strict
from trainer.strict_yaml import parse_yaml

MAX_POLICY_BYTES: Final = 1 << 20
MAX_TEXT_CHARACTERS: Final = 1 << 19

_HINTS: Final = {
    "missing": "write `any` to leave it open",
    DERIVED_RECIPIENT: DERIVED_RECIPIENT_HINT,
}
"""Kind of a pydantic error → hint."""


def require_plain_text(text: str, name: str) -> str:
    """Returns a text that a policy contains or names, if it is printable ASCII: people compare what they read.

    Raises:
        UsageError: `policy-invalid`; the message calls the text `name`.
    """
    if (problem := _find_text_problem(text)) is None:
        return text
    raise UsageError(
        ErrorCode.POLICY_INVALID,
        name,
        expected=f"printable ASCII text of at most {MAX_TEXT_CHARACTERS} characters",
        found=problem,
        hint="save it as plain text, without a byte order mark and with Unix line ends",
    )


def _find_text_problem(text: str) -> str | None:
    if len(text) > MAX_TEXT_CHARACTERS:
        return f"{len(text)} characters"
    unprintable = re.search(r"[^ -~\n]", text)
    if unprintable is None:
        return None
    names = {"\ufeff": "a byte order mark", "\r": "Windows line ends (CR LF)"}
    line = text.count("\n", 0, unprintable.start()) + 1
    return names.get(unprintable[0], f"the character U+{ord(unprintable[0]):04X} in line {line}")


def _validate_plain_text(text: str) -> str:
    if (problem := _find_text_problem(text)) is not None:
        raise ValueError(
            f"expected printable ASCII text of at most {MAX_TEXT_CHARACTERS} characters, got {problem}"
        )
    return text


PrintableText = Annotated[str, AfterValidator(_validate_plain_text)]


class TrustRoot(Strict):
    """A root certificate other than Intel's, with its fingerprint.

    `sha256` is the fingerprint of the certificate in DER, as certificate tools print it.
    """

    pem: PrintableText
    sha256: Sha256Hex

    @property
    def certificate(self) -> x509.Certificate:
        """The parsed certificate."""
        return x509.load_pem_x509_certificate(self.pem.encode())

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)

    @model_validator(mode="after")
    def _fingerprint_matches(self) -> Self:
        # People compare fingerprints, not PEM: the one that they read must be that of the root that is trusted.
        found = hashlib.sha256(self.der).hexdigest()
        if found != self.sha256:
            raise ValueError(f"the certificate's fingerprint is {found}, not {self.sha256}")
        # Raises if the key is not an EC key, which no quote could chain to.
        root_key_id(self.certificate)
        return self


class CollateralUrl(Strict):
    """Collateral comes from a PCS or PCCS service."""

    url: Annotated[str, Field(pattern=r"^https?://[!-~]{1,1000}$")]


class CollateralDocument(Strict):
    """Collateral comes with the policy: the JSON text of the document."""

    document: PrintableText


class Policy(Strict):
    """One complete policy: the contents of every file that it named are part of it.

    The description of each field is the comment above it in a policy.yaml.
    """

    version: One = Field(
        description="What a job must prove before data is sealed to it. `any` leaves a point open, visibly."
    )
    trust_root: Literal["intel"] | TrustRoot = Field(
        description="Who vouches for the hardware: intel, or one other certificate with its fingerprint."
    )
    collateral: CollateralUrl | CollateralDocument = Field(
        description=(
            "Where the state of the platform is looked up: url, or file. Signatures are checked either way."
        )
    )
    tcb: TcbSection = Field(
        description="Accepted platform states; how many days an accepted out-of-date state may lie back."
    )
    platform: PlatformSection = Field(
        description="Which machines may run it: PPIDs of Intel's certificates; CPU state beyond the usual."
    )
    app: AppSection = Field(
        description=(
            "What may run: SHA-256 of app-compose.json, byte for byte, and of job.yaml in canonical form; "
            "whose keys the VM has."
        )
    )
    os: OsSection | Unset = Field(
        description="Which OS may run below it: registers, or image hashes. Empty lists accept none."
    )
    gpu: GpuSection = Field(
        description=(
            "GPUs: attested by the OS in confidential mode before the app started; fresh: by reports of their own."
        )
    )
    sandbox: (
        Annotated[
            tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")], ...],
            Field(min_length=1),
        ]
        | Unset
    ) = Field(
        description="Which sandbox properties the job must report, such as `worker_no_network`."
    )
    freshness: FreshnessSection = Field(description="How old the job's claims may be, in seconds.")

    def canonical(self) -> bytes:
        """Returns the policy as canonical JSON (RFC 8785)."""
        return canonical_json(self.model_dump(mode="json"))

    def sha256(self) -> str:
        """Returns the SHA-256 of the canonical JSON, in hex."""
        return sha256_hex(self.canonical())

    @property
    def is_development(self) -> bool:
        """Whether another root than Intel's is trusted: whoever holds its key can imitate a TEE."""
        return self.trust_root != "intel"

    @property
    def root_der(self) -> bytes | None:
        """The trusted root in DER; None for Intel's."""
        return None if self.trust_root == "intel" else self.trust_root.der

    @property
    def root_key_id(self) -> bytes:
        """SHA-384 of the trusted root's public key."""
        return (
            INTEL_ROOT_KEY_ID
            if self.trust_root == "intel"
            else root_key_id(self.trust_root.certificate)
        )


def parse_policy(data: bytes, *, read_file: Callable[[str], bytes]) -> Policy:
    """Parses the bytes of a policy.yaml.

    Args:
        data: the YAML text.
        read_file: returns the bytes of a file that the policy names; the caller decides what names are relative
            to.

    Raises:
        UsageError: not a policy, or a file that it names is missing or does not match its fingerprint.
    """
    # Files are read into the document before it is validated: the policy, its digest and every record then hold
    # them.
    document = parse_yaml(
        data, what="policy", limit=MAX_POLICY_BYTES, code=ErrorCode.POLICY_INVALID
    )
    if not isinstance(document, dict):
        raise UsageError(
            ErrorCode.POLICY_INVALID,
            "the policy",
            expected="a mapping",
            found=type(document).__name__,
        )
    inlined = {**document}
    _inline(inlined, "trust_root", "pem", read_file)
    _inline(inlined, "collateral", "document", read_file)
    if "gpu" in inlined:
        inlined["gpu"] = inline_gpu_files(inlined["gpu"], read_file)
    # Through JSON, as the strict models take a YAML list for a tuple only from there.
    try:
        return Policy.model_validate_json(exact_json(inlined))
    except ValidationError as error:
        raise _policy_error(error) from None


def _inline(
    document: dict[str, object], section: str, key: str, read_file: Callable[[str], bytes]
) -> None:
    """Replaces `{file: …}` in a section by the file's text under `key`: a policy's digest covers its files."""
    value = document.get(section)
    if not isinstance(value, Mapping) or "file" not in value:
        return
    name = value["file"]
    if not isinstance(name, str) or key in value:
        raise UsageError(
            ErrorCode.POLICY_INVALID,
            f"policy: {section}",
            expected="one file name",
            found=repr(name),
        )
    rest = {other: content for other, content in value.items() if other != "file"}
    document[section] = {
        **rest,
        key: require_plain_text(read_named_text(name, read_file, "a text file"), name),
    }


def _policy_error(error: ValidationError) -> UsageError:
    """Returns the most specific of pydantic's errors, with the place named by the policy's own keys."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    # A union such as `KeyProviderDemand | "any"` gives one error for each member: the deepest one is of the
    # member that the provider meant, and "expected 'any'" is never it.
    # Of two of one depth, a wrong value says more than the keys of the other member.
    forms = {"literal_error", "missing", "extra_forbidden"}
    deepest = max(
        errors,
        key=lambda item: (
            len(item["loc"]),
            item["type"] != "literal_error",
            item["type"] not in forms,
        ),
    )
    parts = (str(part) for part in deepest["loc"])
    where = ".".join(
        part for part in parts if part.isdigit() or (part.islower() and part.isidentifier())
    )
    hint = _HINTS.get(deepest["type"])
    message = deepest["msg"].removeprefix("Value error, ")
    return UsageError(
        ErrorCode.POLICY_INVALID, f"policy: {where or 'document'}: {message}", hint=hint
    )
