"""Policies for people: a strict policy from the reviewed files, commented YAML, and an explanation in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel

from trainer.attestation.policy.app_section import AppSection
from trainer.attestation.policy.gpu_sources import EndorsementFiles
from trainer.attestation.policy.platform_section import PlatformSection
from trainer.attestation.policy.schema import CollateralDocument, CollateralUrl, Policy, TrustRoot
from trainer.attestation.policy.sections import (
    DEFAULT_MAX_AGE_SECONDS,
    FreshnessSection,
    GpuSection,
    OsMeasurements,
    OsSection,
    TcbSection,
)
from trainer.errors import ErrorCode, UsageError

_CAUTION: Final = "CAUTION: "


class CollateralFile(BaseModel):
    """The YAML form of collateral that is in a file next to the policy."""

    file: str | None


def strict_policy(
    app: AppSection,
    *,
    trust_root_pem: str | None = None,
    collateral: CollateralUrl | CollateralDocument | None = None,
    os: OsSection | None = None,
    gpu_required: bool = True,
    sandbox: Sequence[str] = (),
) -> Policy:
    """Returns a policy that demands exactly what was reviewed.

    Args:
        app: what may run, from `strict_app`.
        trust_root_pem: a root certificate to trust in place of Intel's.
        collateral: where collateral comes from; Intel's service by default.
        os: the OS images that may run; by default none, until the provider lists one. Development images are
            refused, except under another root, where nothing else runs.
        gpu_required: whether the OS must have attested a GPU, and each GPU must answer with a fresh report.
        sandbox: names of sandbox claims that must be true; empty to demand none.

    Raises:
        UsageError: the root is not a PEM certificate with an EC key.
    """
    # Under another root than Intel's only simulators run, and their images are development images.
    development: Literal["refused", "any"] = "refused" if trust_root_pem is None else "any"
    root: Literal["intel"] | TrustRoot = "intel"
    if trust_root_pem is not None:
        try:
            certificate = x509.load_pem_x509_certificate(trust_root_pem.encode())
            fingerprint = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
            root = TrustRoot(pem=trust_root_pem, sha256=fingerprint)
        except ValueError:
            raise UsageError(
                ErrorCode.USAGE,
                "the trust root",
                expected="a PEM certificate with an EC key",
                found="something else",
            ) from None
    return Policy(
        version=1,
        trust_root=root,
        collateral=collateral or CollateralUrl(url=dcap_qvl.INTEL_PCS_URL),
        tcb=TcbSection.strict(),
        platform=PlatformSection.strict(),
        app=app,
        os=(os or OsSection()).model_copy(update={"development": development}),
        gpu=GpuSection.strict(required=gpu_required),
        sandbox=tuple(sandbox) or "any",
        freshness=FreshnessSection(max_age_seconds=DEFAULT_MAX_AGE_SECONDS),
    )


def read_measurements(data: bytes) -> OsMeasurements:
    """Reads one tuple of OS measurements from JSON, such as the simulator's measurements.json.

    Raises:
        UsageError: not such a document.
    """
    try:
        return OsMeasurements.model_validate_json(data)
    except ValueError:
        raise UsageError(
            ErrorCode.POLICY_INVALID,
            "the OS measurements",
            expected="a JSON object of mrtd, rtmr0, rtmr1 and rtmr2, 96 hex digits each",
            found="something else",
        ) from None


def policy_yaml(
    policy: Policy,
    *,
    collateral_file: str | None = None,
    reference_files: Sequence[str] = (),
    revocation_files: Sequence[str] = (),
) -> str:
    """Returns the policy as commented YAML, from which `parse_policy` reads an equal policy.

    Long documents that nobody reads can be replaced by the names of the files that hold them.

    Args:
        policy: the policy.
        collateral_file: name of the file that holds the policy's collateral document.
        reference_files: names of the files that hold the policy's reference manifests of GPUs.
        revocation_files: names of the files that hold the policy's OCSP responses.
    """
    files = {"reference_values": reference_files, "revocation": revocation_files}
    named = {key: EndorsementFiles(files=tuple(names)) for key, names in files.items() if names}
    written = policy.model_copy(update={"gpu": policy.gpu.model_copy(update=named)})
    lines: list[str] = []
    for name, value in written:
        # The comment above each key is its description; only the first has no blank line before it.
        lines += ("", f"# {Policy.model_fields[name].description}")[name == "version" :]
        by_file = name == "collateral" and collateral_file is not None
        lines += _entry(name, CollateralFile(file=collateral_file) if by_file else value, "")
    return "\n".join(lines) + "\n"


def _entry(name: str, value: object, indent: str) -> Iterator[str]:
    """Yields the lines of one key: block style for sections, lists of sections and texts of several lines."""
    deeper = indent + "  "
    if isinstance(value, BaseModel):
        yield f"{indent}{name}:"
        for key, inner in value:
            yield from _entry(key, inner, deeper)
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        yield f"{indent}{name}:"
        for item in value:
            yield f"{deeper}- {json.dumps(item.model_dump(mode='json'))}"
    elif isinstance(value, str) and value.endswith("-----\n"):
        yield f"{indent}{name}: |"
        yield from (f"{deeper}{line}" for line in value.splitlines())
    else:
        # JSON is YAML, and its quotes keep texts such as `no` and `1.10` texts.
        yield f"{indent}{name}: {json.dumps(value)}"


def explain(policy: Policy) -> list[str]:
    """Returns what the policy demands and what it leaves open, one plain sentence each."""
    if policy.trust_root == "intel":
        root = "Only hardware that Intel vouches for is accepted."
    else:
        root = (
            f"{_CAUTION}the root with fingerprint {policy.trust_root.sha256} is trusted in place of Intel's; "
            "whoever holds its key can imitate a TEE."
        )
    if policy.os == "any":
        os_sentences = [
            f"{_CAUTION}not demanded: an OS. A changed OS can lie about everything above it."
        ]
    else:
        os_sentences = list(policy.os.explain())
    if policy.sandbox == "any":
        sandbox = "Not demanded: any sandbox around training."
    else:
        sandbox = f"The job must report these sandbox properties: {', '.join(policy.sandbox)}."
    return [
        root,
        *policy.tcb.explain(),
        *policy.platform.explain(),
        *policy.app.explain(),
        *os_sentences,
        *policy.gpu.explain(),
        sandbox,
        f"The job's claims may be at most {policy.freshness.max_age_seconds} seconds old.",
    ]


def cautions(policy: Policy) -> tuple[str, ...]:
    """Returns what somebody who relies on a pass under this policy must know: the cautions of `explain`."""
    return tuple(
        line.removeprefix(_CAUTION) for line in explain(policy) if line.startswith(_CAUTION)
    )
