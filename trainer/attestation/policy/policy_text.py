"""Policies for people: a strict one made from what was reviewed, its commented YAML, and its meaning in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel

from trainer.attestation.dstack.compose import compose_hash
from trainer.attestation.policy.gpu_sources import EndorsementFiles, explain_reference_values, explain_revocation
from trainer.attestation.policy.schema import (
    AppSection,
    CollateralDocument,
    CollateralUrl,
    FreshnessSection,
    GpuSection,
    OsMeasurements,
    OsSection,
    Policy,
    TcbSection,
    TrustRoot,
)
from trainer.errors import ErrorCode, UsageError
from trainer.spec import JobSpec


class CollateralFile(BaseModel):
    """How YAML names collateral that lies in a file beside the policy."""

    file: str | None


DEFAULT_MAX_AGE_SECONDS: Final = 86400
"""As long as a job's claims are valid by default."""


def strict_policy(
    app_compose: str,
    job_specs: Sequence[JobSpec],
    *,
    trust_root_pem: str | None = None,
    collateral: CollateralUrl | CollateralDocument | None = None,
    os: OsSection | None = None,
    gpu_required: bool = True,
    sandbox: Sequence[str] = (),
    recipient: Literal["derived", "instance"] = "instance",
) -> Policy:
    """A policy that demands exactly what was reviewed.

    Args:
        app_compose: exact text of app-compose.json.
        job_specs: the job specs that may run; at least one.
        trust_root_pem: a root certificate to trust in place of Intel's.
        collateral: where collateral comes from; Intel's service where left out.
        os: the OS images that may run; where left out none may, until the provider lists one. Development images
            are refused, except under another root: nothing else runs there.
        gpu_required: whether the OS must have attested a GPU, and each GPU must answer with a fresh report.
        sandbox: names of sandbox claims that must be true; not demanded where empty.
        recipient: the instance recipient is out of reach for later versions of the app.

    Raises:
        UsageError: no job spec, or the root is not a PEM certificate with an EC key.
    """
    if not job_specs:
        raise UsageError(ErrorCode.USAGE, "a strict policy", expected="at least one job spec", found="none")
    return Policy(
        version=1,
        trust_root="intel" if trust_root_pem is None else _trust_root(trust_root_pem),
        collateral=collateral or CollateralUrl(url=dcap_qvl.INTEL_PCS_URL),
        tcb=TcbSection(
            accepted_statuses=("UpToDate",),
            grace_days=0,
            min_evaluation_number="any",
            refused_advisories=(),
            mr_seam="any",
        ),
        app=AppSection(
            compose_sha256=(compose_hash(app_compose),),
            job_spec_sha256=tuple(spec.sha256() for spec in job_specs),
            app_id="any",
            key_provider="any",
            kms_root_key="any",
            recipient=recipient,
        ),
        os=(os or OsSection()).model_copy(update={"development": "refused" if trust_root_pem is None else "any"}),
        gpu=_strict_gpu(gpu_required),
        sandbox=tuple(sandbox) or "any",
        freshness=FreshnessSection(max_age_seconds=DEFAULT_MAX_AGE_SECONDS),
    )


def _strict_gpu(required: bool) -> GpuSection:
    """How many GPUs and which versions is for the provider to add: the reviewed files do not say it."""
    return GpuSection(
        required=required,
        boot="required" if required else "any",
        fresh="required" if required else "any",
        count="any",
        models="any",
        min_driver_version="any",
        min_vbios_version="any",
        devtools="refused",
        reference_values="any",
        revocation="any",
    )


def _trust_root(pem: str) -> TrustRoot:
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        fingerprint = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
        return TrustRoot(pem=pem, sha256=fingerprint)
    except ValueError:
        raise UsageError(
            ErrorCode.USAGE, "the trust root", expected="a PEM certificate with an EC key", found="something else"
        ) from None


def read_measurements(data: bytes) -> OsMeasurements:
    """One tuple of OS measurements from its JSON form, such as the simulator's measurements.json.

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


_COMMENTS: Final = {
    "version": "What a job must prove before data is sealed to it. `any` leaves a point open, visibly.",
    "trust_root": "Who vouches for the hardware: intel, or one other certificate with its fingerprint.",
    "collateral": "Where the state of the platform is looked up: url, or file. Signatures are checked either way.",
    "tcb": "Accepted platform states; how many days an accepted out-of-date state may lie back.",
    "app": "What may run: SHA-256 of app-compose.json, byte for byte, and of job.yaml in canonical form.",
    "os": "Which OS may run below it: registers, or image hashes. Empty lists accept none.",
    "gpu": "GPUs: attested by the OS in confidential mode before the app started; fresh: by reports of their own.",
    "sandbox": "Which walls the job must report to have put up around training.",
    "freshness": "How old the job's claims may be, in seconds.",
}


def policy_yaml(
    policy: Policy,
    *,
    collateral_file: str | None = None,
    reference_files: Sequence[str] = (),
    revocation_files: Sequence[str] = (),
) -> str:
    """The policy as commented YAML; `parse_policy` reads it back as the same policy.

    Args:
        policy: the policy.
        collateral_file: name of the file that holds the policy's collateral document, to be named in its place:
            the document is long, and nobody reads it.
        reference_files: names of the files that hold the policy's reference manifests of GPUs, likewise.
        revocation_files: names of the files that hold its OCSP responses, likewise.
    """
    files = {"reference_values": reference_files, "revocation": revocation_files}
    named = {key: EndorsementFiles(files=tuple(names)) for key, names in files.items() if names}
    written = policy.model_copy(update={"gpu": policy.gpu.model_copy(update=named)})
    return "\n".join(_lines(written, collateral_file)) + "\n"


def _lines(policy: Policy, collateral_file: str | None) -> Iterator[str]:
    for name, value in policy:
        yield from ("", f"# {_COMMENTS[name]}")[name == "version" :]
        by_file = name == "collateral" and collateral_file is not None
        yield from _entry(name, CollateralFile(file=collateral_file) if by_file else value, "")


def _entry(name: str, value: object, indent: str) -> Iterator[str]:
    """One key with its value, block style for sections, lists of sections and texts of several lines."""
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
        yield f"{indent}{name}: {json.dumps(value)}"


def explain(policy: Policy) -> list[str]:
    """What the policy demands and what it leaves open, one plain sentence each."""
    return [
        _explain_root(policy),
        *_explain_tcb(policy.tcb),
        *_explain_app(policy.app),
        _explain_os(policy.os),
        *_explain_gpu(policy.gpu),
        "Not demanded: any sandbox around training."
        if policy.sandbox == "any"
        else f"The job must report these walls: {', '.join(policy.sandbox)}.",
        f"The job's claims may be at most {policy.freshness.max_age_seconds} seconds old.",
    ]


def _explain_root(policy: Policy) -> str:
    if policy.trust_root == "intel":
        return "Only hardware that Intel vouches for is accepted."
    return (
        f"CAUTION: the root with fingerprint {policy.trust_root.sha256} is trusted in place of Intel's; "
        "whoever holds its key can imitate a TEE."
    )


def _explain_tcb(tcb: TcbSection) -> Iterator[str]:
    yield f"The platform's TCB status must be {' or '.join(tcb.accepted_statuses)}."
    if any(status.startswith("OutOfDate") for status in tcb.accepted_statuses):
        yield f"An out-of-date level may date back at most {tcb.grace_days} days."
    if tcb.min_evaluation_number == "any":
        yield "Not demanded: a least TCB evaluation data number."
    else:
        yield f"The TCB evaluation data number must be at least {tcb.min_evaluation_number}."
    if tcb.mr_seam == "any":
        yield "Not demanded: a particular TDX module; any that Intel signed and calls up to date will do."
    else:
        yield f"The TDX module must be one of {len(tcb.mr_seam)} listed."
    if tcb.refused_advisories:
        yield f"Platforms open to {', '.join(tcb.refused_advisories)} are refused."


def _explain_app(app: AppSection) -> Iterator[str]:
    yield f"The measured app-compose.json must be one of {len(app.compose_sha256)} listed."
    yield f"The job spec must be one of {len(app.job_spec_sha256)} listed."
    if app.recipient == "instance":
        yield "Data is sealed to a key that lives in this VM's memory only; after a restart it is sealed anew."
    else:
        yield "Data is sealed to a key that the key service also gives to later versions of the same app."
    for name, value in (("app id", app.app_id), ("key service root key", app.kms_root_key)):
        yield f"Not demanded: a particular {name}." if value == "any" else f"The {name} must be {value}."
    provider = app.key_provider
    if provider == "any":
        yield "Not demanded: a key provider."
    else:
        yield f"The key provider must be {provider.name} with identity {provider.id}."


def _explain_os(section: OsSection | Literal["any"]) -> str:
    if section == "any":
        return "CAUTION: not demanded: an OS. A changed OS can lie about everything above it."
    if not section.measurements and not section.image_sha256:
        return "No OS is accepted yet: list the measurements or the image hash of the one that you reviewed."
    development = (
        "Development images are refused." if section.development == "refused" else "Even development ones."
    )
    return (
        f"The OS must measure to one of {len(section.measurements)} listed tuples "
        f"or be one of {len(section.image_sha256)} listed images. {development}"
    )


def _explain_gpu(gpu: GpuSection) -> Iterator[str]:
    if gpu.required:
        yield "The OS must have attested NVIDIA GPUs in confidential mode."
    else:
        yield "Not demanded: GPUs in confidential mode."
    if gpu.boot == "required":
        yield "What the OS found out about each GPU at boot must be good."
    else:
        yield "Not demanded: what the OS found out about each GPU at boot."
    if gpu.devtools == "any":
        yield "CAUTION: GPUs may be open to developer tools, and through them to the host."
    if gpu.fresh == "required":
        yield (
            "GPUs must answer with fresh reports that chain to NVIDIA's root. They show that genuine GPUs "
            "answered, not that these are the ones wired to the VM."
        )
    else:
        yield "Not demanded: fresh reports of GPUs; those that are shown must be genuine all the same."
    yield from _explain_gpu_values(gpu)
    if gpu.fresh == "required":
        yield explain_reference_values(gpu.reference_values)
        yield explain_revocation(gpu.revocation)


def _explain_gpu_values(gpu: GpuSection) -> Iterator[str]:
    if gpu.boot == gpu.fresh == "any":
        return
    if gpu.count == "any":
        yield "Not demanded: a number of GPUs."
    else:
        yield f"There must be exactly {gpu.count} different GPUs."
    if gpu.models == "any":
        yield "Not demanded: a GPU model."
    else:
        yield f"Each GPU must be a {' or '.join(gpu.models)}."
    for name, value in (("driver", gpu.min_driver_version), ("VBIOS", gpu.min_vbios_version)):
        yield (
            f"Not demanded: a least {name} version." if value == "any" else f"The {name} must be at least {value}."
        )
