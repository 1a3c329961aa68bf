"""The sections of a policy: for each, its fields, the strictest values, and what they demand in words.

A new demand is a field here, with its value in `strict` and its sentence in `explain`; the module that judges it
reads the field.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from trainer.attestation.evidence import MAX_GPUS
from trainer.attestation.nvidia.gpu_endorsements import GpuEndorsements
from trainer.attestation.policy.gpu_sources import (
    ReferenceManifests,
    RevocationAnswers,
    ServiceUrl,
    explain_reference_values,
    explain_revocation,
)
from trainer.models import Sha256Hex, Strict

DEFAULT_MAX_AGE_SECONDS: Final = 86400
"""The default validity of a job's claims."""

Unset = Literal["any"]
"""The value that leaves a point open: the check is shown as not demanded."""

# A prefix of the certified name, such as `GH100` of `GH100 A01 GSP BROM`.
GpuModel = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _-]{0,63}$")]

Register = Annotated[str, Field(pattern=r"^[0-9a-f]{96}$")]
"""One TDX register (48 bytes) in lower-case hex."""

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


class TcbSection(Strict):
    """What state the platform may be in.

    `grace_days` applies to accepted out-of-date statuses: how many days ago the date of the matched TCB level may
    be. `min_evaluation_number` is the lowest accepted TCB evaluation data number of the collateral.
    """

    accepted_statuses: Annotated[tuple[TcbStatus, ...], Field(min_length=1)]
    grace_days: Annotated[int, Field(ge=0, le=3650)]
    min_evaluation_number: Annotated[int, Field(ge=0, le=2**31)] | Unset
    refused_advisories: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")], ...]
    mr_seam: Annotated[tuple[Register, ...], Field(min_length=1)] | Unset
    """Measurements of the TDX modules that may run; collateral names their signer and version only."""

    @classmethod
    def strict(cls) -> Self:
        """Returns the section that accepts only platforms that Intel calls up to date."""
        return cls(
            accepted_statuses=("UpToDate",),
            grace_days=0,
            min_evaluation_number="any",
            refused_advisories=(),
            mr_seam="any",
        )

    def explain(self) -> Iterator[str]:
        """Yields what this section demands and leaves open, one sentence each."""
        yield f"The platform's TCB status must be {' or '.join(self.accepted_statuses)}."
        if any(status.startswith("OutOfDate") for status in self.accepted_statuses):
            yield f"An out-of-date level may date back at most {self.grace_days} days."
        if self.min_evaluation_number == "any":
            yield "Not demanded: a least TCB evaluation data number."
        else:
            yield f"The TCB evaluation data number must be at least {self.min_evaluation_number}."
        if self.mr_seam == "any":
            yield "Not demanded: a particular TDX module; any that Intel signed and calls up to date will do."
        else:
            yield f"The TDX module must be one of {len(self.mr_seam)} listed."
        if self.refused_advisories:
            yield f"Platforms open to {', '.join(self.refused_advisories)} are refused."


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

    def explain(self) -> Iterator[str]:
        """Yields what this section demands, in one sentence."""
        if not self.measurements and not self.image_sha256:
            yield "No OS is accepted yet: list the measurements or the image hash of the one that you reviewed."
            return
        if self.development == "refused":
            development = "Development images are refused."
        else:
            development = "Even development ones."
        yield (
            f"The OS must measure to one of {len(self.measurements)} listed tuples "
            f"or be one of {len(self.image_sha256)} listed images. {development}"
        )


class GpuSection(Strict):
    """Whether there must be NVIDIA GPUs in confidential mode, and by which evidence.

    `required` demands the measured OS's event about GPUs. `boot` demands that the claims that the OS collected at
    boot are good for each device. `fresh` demands reports that the GPUs sign for the provider's nonce. `count`,
    `models` and the minimum versions apply to each of these two that is required. `reference_values` (RIM) and
    `revocation` (OCSP) apply to fresh reports only; for the boot claims, `boot` includes both.
    """

    required: bool
    boot: Literal["required"] | Unset
    fresh: Literal["required"] | Unset
    count: Annotated[int, Field(ge=1, le=MAX_GPUS)] | Unset
    models: Annotated[tuple[GpuModel, ...], Field(min_length=1)] | Unset
    """Prefixes of model names, such as `GH100`; each GPU's model must begin with one of them."""
    min_driver_version: Annotated[str, Field(pattern=r"^[0-9]{1,4}(\.[0-9]{1,4}){1,3}$")] | Unset
    """Such as `550.90.07`; compared number by number."""
    min_vbios_version: (
        Annotated[str, Field(pattern=r"^[0-9a-fA-F]{2}(\.[0-9a-fA-F]{2}){4}$")] | Unset
    )
    """Such as `96.00.9F.00.01`; compared byte by byte, in hex."""
    devtools: Literal["refused"] | Unset
    """Refuses devtools mode in the OS's event, and debugging in the boot claims where these are required."""
    firmware_id: Literal["required"] | Unset
    """Refuses fresh reports that do not name the firmware that signed them, as those of older firmware."""
    reference_values: ReferenceManifests | ServiceUrl | Unset
    revocation: RevocationAnswers | ServiceUrl | Unset

    @model_validator(mode="after")
    def _values_need_evidence(self) -> Self:
        # Without the evidence nothing would be compared with these values: the policy would demand less than it
        # says.
        rest = (self.count, self.models, self.min_driver_version, self.min_vbios_version)
        if self.boot == self.fresh == "any" and rest != ("any",) * len(rest):
            raise ValueError(
                "count, models and least versions need `boot: required` or `fresh: required`"
            )
        if self.boot == "required" and not self.required:
            raise ValueError("`boot: required` needs `required: true`")
        if self.fresh == "any" and (self.reference_values, self.revocation) != ("any", "any"):
            raise ValueError("reference_values and revocation need `fresh: required`")
        return self

    @classmethod
    def strict(cls, *, required: bool) -> Self:
        """Returns the section that demands every kind of GPU evidence if GPUs are required.

        The provider adds how many GPUs, which models and which versions: the reviewed files do not contain it.
        """
        return cls(
            required=required,
            boot="required" if required else "any",
            fresh="required" if required else "any",
            count="any",
            models="any",
            min_driver_version="any",
            min_vbios_version="any",
            devtools="refused",
            firmware_id="required",
            reference_values="any",
            revocation="any",
        )

    def explain(self) -> Iterator[str]:
        """Yields what this section demands and leaves open, one sentence each."""
        if self.required:
            yield "The OS must have attested NVIDIA GPUs in confidential mode."
        else:
            yield "Not demanded: GPUs in confidential mode."
        if self.boot == "required":
            yield "What the OS found out about each GPU at boot must be good."
        else:
            yield "Not demanded: what the OS found out about each GPU at boot."
        if self.devtools == "any":
            yield "CAUTION: GPUs may be open to developer tools, and through them to the host."
        if self.fresh == "required":
            yield (
                "GPUs must answer with fresh reports that chain to NVIDIA's root. They show that genuine GPUs "
                "answered, not that these are the ones wired to the VM."
            )
        else:
            yield "Not demanded: fresh reports of GPUs; those that are shown must be genuine all the same."
        if self.firmware_id == "any":
            yield "Not demanded: that a GPU's report names the firmware that signed it."
        yield from self._explain_values()
        if self.fresh == "required":
            yield explain_reference_values(self.reference_values)
            yield explain_revocation(self.revocation)

    def _explain_values(self) -> Iterator[str]:
        """Yields what is demanded of GPUs by either kind of evidence."""
        if self.boot == self.fresh == "any":
            return
        if self.count == "any":
            yield "Not demanded: a number of GPUs."
        else:
            yield f"There must be exactly {self.count} different GPUs."
        if self.models == "any":
            yield "Not demanded: a GPU model."
        else:
            yield f"Each GPU must be a {' or '.join(self.models)}."
        for name, value in (("driver", self.min_driver_version), ("VBIOS", self.min_vbios_version)):
            if value == "any":
                yield f"Not demanded: a least {name} version."
            else:
                yield f"The {name} must be at least {value}."


def endorsements_of(section: GpuSection, *, fetched: GpuEndorsements) -> GpuEndorsements:
    """Returns what fresh GPU reports are judged with: the policy's own files, else what was fetched."""
    values, answers = section.reference_values, section.revocation
    return GpuEndorsements(
        reference_values=values.documents
        if isinstance(values, ReferenceManifests)
        else fetched.reference_values,
        revocation=answers.decoded()
        if isinstance(answers, RevocationAnswers)
        else fetched.revocation,
    )


class FreshnessSection(Strict):
    """How old claims may be, in seconds."""

    max_age_seconds: Annotated[int, Field(ge=1, le=30 * 86400)]
