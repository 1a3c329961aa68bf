"""Checks of the claims that the measured OS collected about each GPU at boot, with NVIDIA's tool `nvattest`.

The tool verified each GPU's report in the VM. Its claims are unsigned: they are as trustworthy as the OS, whose
event binds their exact text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from trainer.attestation.checks import CheckDefinition, Ledger, Submodule, TrustClaim
from trainer.attestation.nvidia.boot_claims import BootDevice, BootResult, parse_boot_result
from trainer.attestation.nvidia.boot_event import GpuBootEvent
from trainer.attestation.nvidia.versions import reaches
from trainer.attestation.policy import GpuSection

GPU_BOOT_CLAIMS: Final = CheckDefinition(
    "gpu-boot-claims",
    title="the boot evidence is one complete result of nvattest",
    attack="boot evidence that two readers understand differently",
    claim=(Submodule.GPU, TrustClaim.HARDWARE),
)
GPU_BOOT_RESULT: Final = CheckDefinition(
    "gpu-boot-result",
    title="the OS verified every GPU: chain, signature, measurements",
    attack="a GPU that the OS looked at and found wanting",
    claim=(Submodule.GPU, TrustClaim.HARDWARE),
)
GPU_BOOT_SECURE_BOOT: Final = CheckDefinition(
    "gpu-boot-secure-boot",
    title="every GPU booted its firmware securely",
    attack="a GPU with firmware of the attacker's",
    claim=(Submodule.GPU, TrustClaim.EXECUTABLES),
)
GPU_BOOT_DEBUG: Final = CheckDefinition(
    "gpu-boot-debug",
    title="debugging is disabled on every GPU",
    attack="a GPU whose state a debugger reads",
    claim=(Submodule.GPU, TrustClaim.RUNTIME_OPAQUE),
)
GPU_BOOT_NONCE: Final = CheckDefinition(
    "gpu-boot-nonce",
    title="all boot claims answer one nonce, which the OS drew",
    attack="claims of several occasions put together",
    claim=(Submodule.GPU, TrustClaim.INSTANCE_IDENTITY),
)
GPU_BOOT_REVOCATION: Final = CheckDefinition(
    "gpu-boot-revocation",
    title="no certificate behind the boot claims was revoked",
    attack="a GPU or reference values whose certificate was withdrawn",
    claim=(Submodule.GPU, TrustClaim.INSTANCE_IDENTITY),
)
GPU_BOOT_COUNT: Final = CheckDefinition(
    "gpu-boot-count",
    title="as many different GPUs as were measured and are demanded",
    attack="one good GPU that stands for the others",
    claim=(Submodule.GPU, TrustClaim.HARDWARE),
)
GPU_BOOT_MODELS: Final = CheckDefinition(
    "gpu-boot-models",
    title="every GPU in the boot claims is of a model that the policy lists",
    attack="a GPU of a kind that was not reviewed",
    claim=(Submodule.GPU, TrustClaim.HARDWARE),
)
GPU_BOOT_VERSIONS: Final = CheckDefinition(
    "gpu-boot-versions",
    title="driver and VBIOS in the boot claims reach the policy's minimum",
    attack="a driver or VBIOS with known, unpatched holes",
    claim=(Submodule.GPU, TrustClaim.EXECUTABLES),
    hint="ask the operator to update driver or VBIOS",
)

_CHECKS: Final = (
    GPU_BOOT_CLAIMS,
    GPU_BOOT_RESULT,
    GPU_BOOT_SECURE_BOOT,
    GPU_BOOT_DEBUG,
    GPU_BOOT_NONCE,
    GPU_BOOT_REVOCATION,
    GPU_BOOT_COUNT,
    GPU_BOOT_MODELS,
    GPU_BOOT_VERSIONS,
)

OS_WORD: Final = "the measured OS's word; nothing that the GPUs signed themselves"
_COMPLETE_RESULT: Final = "one complete result of a successful run of nvattest"
_NONCE: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class _Verdict:
    """The answer of the boot claims to one check.

    Attributes:
        expected: what would be right; None where the policy demands nothing.
        found: what the claims say.
        holds: whether that is right.
        detail: on whose authority, or why nothing is demanded.
    """

    expected: str | None
    found: str
    holds: bool
    detail: str = OS_WORD


def judge_boot_claims(ledger: Ledger, boot: str, event: GpuBootEvent, demands: GpuSection) -> None:
    """Records every check of this module.

    Args:
        ledger: receives the outcomes.
        boot: the text of the result of `nvattest`, whose digest the OS measured.
        event: the OS's event about the GPUs.
        demands: the policy's section `gpu`. If it does not demand boot claims, what they say is recorded all the
            same, as not demanded.
    """
    try:
        result = parse_boot_result(boot)
    except ValueError as error:
        if demands.boot == "required":
            # Recorded first, so that `leave_boot_claims` marks only the other checks as not reached.
            ledger.judge(GPU_BOOT_CLAIMS, False, expected=_COMPLETE_RESULT, found=str(error))
        leave_boot_claims(ledger, demands, f"the boot claims cannot be read: {error}")
        return
    switches = len(result.devices) - len(result.gpus)
    tokens = "without tokens" if result.overall is None else "tokens that say the same"
    form = f"{len(result.gpus)} GPUs, {switches} switches, {tokens}"
    verdicts = {
        GPU_BOOT_CLAIMS: _Verdict(_COMPLETE_RESULT, form, holds=True),
        **_device_states(result, demands),
        GPU_BOOT_REVOCATION: _revocation(result),
        **_inventory(result, event, demands),
    }
    for definition, verdict in verdicts.items():
        if demands.boot == "any" or verdict.expected is None:
            ledger.leave_open(definition, found=verdict.found, detail=verdict.detail)
        else:
            ledger.judge(
                definition,
                verdict.holds,
                expected=verdict.expected,
                found=verdict.found,
                detail=verdict.detail,
            )


def leave_boot_claims(ledger: Ledger, demands: GpuSection, why: str) -> None:
    """Records that there are no boot claims to judge: not reached where the policy demands some."""
    if demands.boot == "required":
        ledger.unreached(_CHECKS, why)
        return
    for definition in _CHECKS:
        ledger.leave_open(definition, detail=why)


def _device_states(result: BootResult, demands: GpuSection) -> dict[CheckDefinition, _Verdict]:
    """Returns the verdicts on verification, secure boot, debugging and nonce of every device."""
    # Each verification must be affirmed by name: what a release of the tool does not mention is not affirmed.
    # Revocation has a check of its own.
    problems = []
    for device in result.devices:
        faults = (
            []
            if device.measurements == "success"
            else [f"measures {_or_unstated(device.measurements)}"]
        )
        faults += [f"{name} not true" for name in device.unverified]
        faults += [
            f"{chain.name} {_or_unstated(chain.status)}"
            for chain in device.chains
            if chain.status != "valid"
        ]
        faults += ["values that differ from the reference values"] if device.mismatches else []
        problems += [f"{device.name}: {', '.join(faults)}"] if faults else []
    if result.overall is not None and result.overall.result is not True:
        problems.append("the overall result is not true")
    verified = "; ".join(problems) or f"success for {_names(result.devices)}"

    without = [device for device in result.devices if device.secure_boot is not True]
    secure_boot = f"not on {_names(without)}" if without else f"on {_names(result.devices)}"

    debug = "; ".join(f"{device.name}: {_or_unstated(device.debug)}" for device in result.devices)
    debug_demand = "disabled on every device" if demands.devtools == "refused" else None
    debug_off = all(device.debug == "disabled" for device in result.devices)

    # One nonce in all claims, so that the claims of several runs of the tool cannot be put together.
    stated = [device.nonce for device in result.devices]
    stated += [] if result.overall is None else [result.overall.nonce]
    nonces = sorted({_or_unstated(nonce) for nonce in stated})
    one_nonce = len(nonces) == 1 and _NONCE.fullmatch(nonces[0]) is not None
    return {
        GPU_BOOT_RESULT: _Verdict(
            "success in every part of the verification", verified, not problems
        ),
        GPU_BOOT_SECURE_BOOT: _Verdict("on every device", secure_boot, not without),
        GPU_BOOT_DEBUG: _Verdict(debug_demand, debug, debug_off),
        GPU_BOOT_NONCE: _Verdict(
            "one nonce of 32 bytes in all claims", "; ".join(nonces), one_nonce
        ),
    }


def _revocation(result: BootResult) -> _Verdict:
    """Returns the verdict on revocation: demanded of every chain, unless no claim mentions it."""
    chains = [(device.name, chain) for device in result.devices for chain in device.chains]
    mentions = (
        claim
        for _, chain in chains
        for claim in (
            chain.ocsp_status,
            chain.revocation_reason,
            chain.ocsp_response_valid,
            chain.ocsp_nonce_matches,
        )
    )
    # Releases of the tool that ask no responder have no such claims. A result with such claims for some chains
    # only is refused: the others were left out.
    if all(claim is None for claim in mentions):
        return _Verdict(
            None,
            "not stated",
            False,
            "the boot claims do not say whether certificates were revoked",
        )
    # Some releases do not describe the responder's answer itself: only a false there speaks against a chain.
    problems = [
        f"{name}: {chain.name} {_or_unstated(chain.ocsp_status)}"
        for name, chain in chains
        if chain.ocsp_status != "good"
        or chain.revocation_reason is not None
        or False in (chain.ocsp_response_valid, chain.ocsp_nonce_matches)
    ]
    found = "; ".join(problems) or f"{len(chains)} of {len(chains)} chains"
    return _Verdict(
        "every chain good, by a valid and fresh answer of the responder", found, not problems
    )


def _inventory(
    result: BootResult, event: GpuBootEvent, demands: GpuSection
) -> dict[CheckDefinition, _Verdict]:
    """Returns the verdicts on number, models and versions of the GPUs."""
    # The serial number (UEID) of each GPU is its own: one good GPU listed twice does not count as two.
    count, different = len(result.gpus), len({gpu.ueid for gpu in result.gpus} - {None, ""})
    expected = f"{event.devices} different GPUs, as measured"
    if demands.count != "any":
        expected += f"; {demands.count}, as demanded"
    complete = demands.count in ("any", count) and event.devices == count == different

    listed = "; ".join(f"{gpu.name}: {_or_unstated(gpu.model)}" for gpu in result.gpus)
    if demands.models == "any":
        models = _Verdict(None, listed, False)
    else:
        accepted = all((gpu.model or "").startswith(demands.models) for gpu in result.gpus)
        models = _Verdict(" or ".join(demands.models), listed, accepted)

    driver, vbios = demands.min_driver_version, demands.min_vbios_version
    versions = "; ".join(
        f"{gpu.name}: driver {_or_unstated(gpu.driver_version)}, VBIOS {_or_unstated(gpu.vbios_version)}"
        for gpu in result.gpus
    )
    recent = all(
        reaches(gpu.driver_version, driver, base=10) and reaches(gpu.vbios_version, vbios, base=16)
        for gpu in result.gpus
    )
    minimum = None if driver == vbios == "any" else f"driver {driver}, VBIOS {vbios}, or later"
    return {
        GPU_BOOT_COUNT: _Verdict(expected, f"{count} claims about {different} GPUs", complete),
        GPU_BOOT_MODELS: models,
        GPU_BOOT_VERSIONS: _Verdict(minimum, versions, recent),
    }


def _or_unstated(value: str | None) -> str:
    return value or "not stated"


def _names(devices: Sequence[BootDevice]) -> str:
    return ", ".join(device.name for device in devices)
