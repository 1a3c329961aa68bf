"""Checks of the claims that the measured OS collected about each GPU at boot, with NVIDIA's tool `nvattest`.

The tool verified each GPU's report in the VM. Its claims are unsigned: they are as trustworthy as the OS, whose
event binds their exact text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trainer.attestation.checks import CheckDefinition, Ledger, Submodule, TrustClaim
from trainer.attestation.nvidia.boot_claims import BootDevice, BootResult, CertificateChain, parse_boot_result
from trainer.attestation.nvidia.boot_event import GpuBootEvent
from trainer.attestation.nvidia.versions import reaches
from trainer.attestation.policy import GpuSection

GPU_BOOT_CLAIMS: Final = CheckDefinition(
    "gpu-boot-claims",
    title="the boot evidence is one whole result of nvattest",
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

OS_WORD: Final = "the measured OS's word; nothing that the GPUs signed themselves"
_COMPLETE_RESULT: Final = "one whole result of a successful run of nvattest"
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
    verdicts = {GPU_BOOT_CLAIMS: _verdict_on_form(result)}
    verdicts |= {definition: answer(result, event, demands) for definition, answer in _ANSWERS.items()}
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
    """Records that there are no boot claims to look at: not reached where the policy demands some."""
    if demands.boot == "required":
        ledger.unreached(_CHECKS, why)
        return
    for definition in _CHECKS:
        ledger.leave_open(definition, detail=why)


def _verdict_on_form(result: BootResult) -> _Verdict:
    switches = len(result.devices) - len(result.gpus)
    tokens = "without tokens" if result.overall is None else "tokens that say the same"
    return _Verdict(_COMPLETE_RESULT, f"{len(result.gpus)} GPUs, {switches} switches, {tokens}", holds=True)


def _verification(result: BootResult, _: GpuBootEvent, __: GpuSection) -> _Verdict:
    """Demands that every verification is affirmed by name: what a release does not mention is not affirmed."""
    problems = [f"{device.name}: {', '.join(faults)}" for device in result.devices if (faults := _faults(device))]
    if result.overall is not None and result.overall.result is not True:
        problems.append("the overall result is not true")
    found = "; ".join(problems) or f"success for {_names(result.devices)}"
    return _Verdict("success in every part of the verification", found, not problems)


def _faults(device: BootDevice) -> list[str]:
    """Returns what a device's verification does not affirm; revocation has a check of its own."""
    faults = [] if device.measurements == "success" else [f"measures {_or_unstated(device.measurements)}"]
    faults += [f"{name} not true" for name in device.unverified]
    faults += [f"{chain.name} {_or_unstated(chain.status)}" for chain in device.chains if chain.status != "valid"]
    return [*faults, "values that differ from the reference values"] if device.mismatches else faults


def _secure_boot(result: BootResult, _: GpuBootEvent, __: GpuSection) -> _Verdict:
    without = [device for device in result.devices if device.secure_boot is not True]
    found = f"not on {_names(without)}" if without else f"on {_names(result.devices)}"
    return _Verdict("on every device", found, not without)


def _debugging(result: BootResult, _: GpuBootEvent, demands: GpuSection) -> _Verdict:
    found = "; ".join(f"{device.name}: {_or_unstated(device.debug)}" for device in result.devices)
    expected = "disabled on every device" if demands.devtools == "refused" else None
    return _Verdict(expected, found, all(device.debug == "disabled" for device in result.devices))


def _nonces(result: BootResult, _: GpuBootEvent, __: GpuSection) -> _Verdict:
    """Demands one nonce in all claims: claims of several runs of the tool must not be put together."""
    stated = [device.nonce for device in result.devices]
    if result.overall is not None:
        stated.append(result.overall.nonce)
    different = sorted({_or_unstated(nonce) for nonce in stated})
    holds = len(different) == 1 and _NONCE.fullmatch(different[0]) is not None
    return _Verdict("one nonce of 32 bytes in all claims", "; ".join(different), holds)


def _revocation(result: BootResult, _: GpuBootEvent, __: GpuSection) -> _Verdict:
    """Demands that no certificate was revoked, unless no claim mentions revocation.

    Releases of the tool that ask no responder have no such claims. A result with such claims for some chains
    only is refused: the others were left out.
    """
    chains = [(device.name, chain) for device in result.devices for chain in device.chains]
    if not any(_mentions_revocation(chain) for _, chain in chains):
        return _Verdict(None, "not stated", False, "the boot claims do not say whether certificates were revoked")
    problems = [
        f"{name}: {chain.name} {_or_unstated(chain.ocsp_status)}"
        for name, chain in chains
        if not _is_unrevoked(chain)
    ]
    found = "; ".join(problems) or f"{len(chains)} of {len(chains)} chains"
    return _Verdict("every chain good, by a valid and fresh answer of the responder", found, not problems)


def _mentions_revocation(chain: CertificateChain) -> bool:
    claims = (chain.ocsp_status, chain.revocation_reason, chain.ocsp_response_valid, chain.ocsp_nonce_matches)
    return any(claim is not None for claim in claims)


def _is_unrevoked(chain: CertificateChain) -> bool:
    """Returns whether no certificate of the chain was revoked; some releases do not describe the answer itself."""
    answer = (chain.ocsp_response_valid, chain.ocsp_nonce_matches)
    return chain.ocsp_status == "good" and chain.revocation_reason is None and False not in answer


def _gpu_count(result: BootResult, event: GpuBootEvent, demands: GpuSection) -> _Verdict:
    """Demands as many GPUs as were measured and are demanded, each with its own serial number (UEID)."""
    count, different = len(result.gpus), len({gpu.ueid for gpu in result.gpus} - {None, ""})
    expected = f"{event.devices} different GPUs, as measured"
    if demands.count != "any":
        expected += f"; {demands.count}, as demanded"
    holds = demands.count in ("any", count) and event.devices == count == different
    return _Verdict(expected, f"{count} claims about {different} GPUs", holds)


def _models(result: BootResult, _: GpuBootEvent, demands: GpuSection) -> _Verdict:
    found = "; ".join(f"{gpu.name}: {_or_unstated(gpu.model)}" for gpu in result.gpus)
    if demands.models == "any":
        return _Verdict(None, found, False)
    holds = all((gpu.model or "").startswith(demands.models) for gpu in result.gpus)
    return _Verdict(" or ".join(demands.models), found, holds)


def _versions(result: BootResult, _: GpuBootEvent, demands: GpuSection) -> _Verdict:
    driver, vbios = demands.min_driver_version, demands.min_vbios_version
    found = "; ".join(
        f"{gpu.name}: driver {_or_unstated(gpu.driver_version)}, VBIOS {_or_unstated(gpu.vbios_version)}"
        for gpu in result.gpus
    )
    holds = all(
        reaches(gpu.driver_version, driver, base=10) and reaches(gpu.vbios_version, vbios, base=16)
        for gpu in result.gpus
    )
    expected = None if driver == vbios == "any" else f"driver {driver}, VBIOS {vbios}, or later"
    return _Verdict(expected, found, holds)


def _or_unstated(value: str | None) -> str:
    return value or "not stated"


def _names(devices: Sequence[BootDevice]) -> str:
    return ", ".join(device.name for device in devices)


_ANSWERS: Final[Mapping[CheckDefinition, Callable[[BootResult, GpuBootEvent, GpuSection], _Verdict]]] = {
    GPU_BOOT_RESULT: _verification,
    GPU_BOOT_SECURE_BOOT: _secure_boot,
    GPU_BOOT_DEBUG: _debugging,
    GPU_BOOT_NONCE: _nonces,
    GPU_BOOT_REVOCATION: _revocation,
    GPU_BOOT_COUNT: _gpu_count,
    GPU_BOOT_MODELS: _models,
    GPU_BOOT_VERSIONS: _versions,
}
"""The checks of claims that could be read → what the claims say."""

_CHECKS: Final = (GPU_BOOT_CLAIMS, *_ANSWERS)
