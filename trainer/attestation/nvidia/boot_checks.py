"""Checks 45 to 58: what the measured OS found out about the GPUs when it booted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from trainer.attestation.checks import CheckCode, Ledger
from trainer.attestation.claims.binding import gpu_evidence_sha256
from trainer.attestation.dstack.event_log import Event
from trainer.attestation.evidence import DatasetClaims, GpuEvidence
from trainer.attestation.nvidia.boot_claims import BootDevice, BootResult, CertificateChain, parse_boot_result
from trainer.attestation.nvidia.boot_event import GpuBootEvent, gpu_boot_event
from trainer.attestation.nvidia.versions import reaches
from trainer.attestation.policy import GpuSection, Policy
from trainer.encoding import sha256_hex

OS_WORD: Final = "the measured OS's word; nothing that the GPUs signed themselves"

_BOOT_CODES: Final = (
    CheckCode.GPU_BOOT_CLAIMS,
    CheckCode.GPU_BOOT_RESULT,
    CheckCode.GPU_BOOT_SECURE_BOOT,
    CheckCode.GPU_BOOT_DEBUG,
    CheckCode.GPU_BOOT_NONCE,
    CheckCode.GPU_BOOT_REVOCATION,
    CheckCode.GPU_BOOT_COUNT,
    CheckCode.GPU_BOOT_MODELS,
    CheckCode.GPU_BOOT_VERSIONS,
)
_NONCE: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class _Verdict:
    """What the boot claims say on one check.

    Attributes:
        expected: what would be right; None where the policy demands nothing.
        found: what there is.
        holds: whether that is right.
        detail: whose word it is, or why nothing is demanded.
    """

    expected: str | None
    found: str
    holds: bool
    detail: str = OS_WORD


def judge_gpu(
    ledger: Ledger, claims: DatasetClaims, gpu: GpuEvidence, events: Sequence[Event] | None, policy: Policy
) -> None:
    """Record what the claims, the event log and the OS's own verification say of the GPUs."""
    # check 45 gpu-evidence
    ledger.compare(
        CheckCode.GPU_EVIDENCE,
        expected=claims.gpu_evidence_sha256 or "none",
        found=gpu_evidence_sha256(gpu) or "none",
    )
    if events is None:
        _leave_claims(ledger, policy.gpu, "the event log cannot be read")
        return
    try:
        event = gpu_boot_event(events)
    except ValueError:
        ledger.judge(CheckCode.GPU_BOOT, False, expected="a gpu-attestation event", found="one of another form")
        _leave_claims(ledger, policy.gpu, "the gpu-attestation event cannot be read")
        return
    measured = _judge_boot(ledger, gpu.boot, event)
    _judge_event(ledger, event, policy)
    if event is None:
        _leave_claims(ledger, policy.gpu, "the OS measured no GPU")
    elif not measured:
        _leave_claims(ledger, policy.gpu, "the boot evidence is not the one that the OS measured")
    else:
        _judge_claims(ledger, gpu.boot, event, policy.gpu)


def _judge_boot(ledger: Ledger, boot: str, event: GpuBootEvent | None) -> bool:
    # check 46 gpu-boot
    if event is None and not boot:
        ledger.leave_open(CheckCode.GPU_BOOT, detail="neither measured nor shown")
        return False
    return ledger.compare(
        CheckCode.GPU_BOOT,
        expected=event.evidence_sha256 if event else "nothing, as the OS measured no GPU",
        found=sha256_hex(boot.encode()) if boot else "nothing",
    )


def _judge_event(ledger: Ledger, event: GpuBootEvent | None, policy: Policy) -> None:
    found = "no GPU" if event is None else f"{event.devices} x {event.provider}"
    if not policy.gpu.required:
        ledger.leave_open(CheckCode.GPU_REQUIRED, found=found)
        ledger.leave_open(CheckCode.GPU_CC_MODE, found=None if event is None else event.cc_mode)
    else:
        # check 47 gpu-required
        present = event is not None and event.provider == "nvidia" and event.devices > 0
        ledger.judge(CheckCode.GPU_REQUIRED, present, expected="1 or more x nvidia", found=found)
        # check 48 gpu-cc-mode
        if event is not None:
            ledger.compare(CheckCode.GPU_CC_MODE, expected="on", found=event.cc_mode)
    # check 49 gpu-devtools
    if policy.gpu.devtools == "any" or event is None:
        ledger.leave_open(CheckCode.GPU_DEVTOOLS, found=found)
    else:
        ledger.compare(CheckCode.GPU_DEVTOOLS, expected="off", found="on" if event.devtools else "off")


def _leave_claims(ledger: Ledger, demand: GpuSection, why: str) -> None:
    """Record that there are no boot claims to look at."""
    if demand.boot == "required":
        ledger.unreached(_BOOT_CODES, why)
        return
    for code in _BOOT_CODES:
        ledger.leave_open(code, detail=why)


def _judge_claims(ledger: Ledger, boot: str, event: GpuBootEvent, demand: GpuSection) -> None:
    """Record what the claims say; if the policy does not demand them, what is in them all the same."""
    # check 50 gpu-boot-claims
    try:
        result = parse_boot_result(boot)
    except ValueError as error:
        if demand.boot == "required":
            expected = "one whole result of a successful run of nvattest"
            ledger.judge(CheckCode.GPU_BOOT_CLAIMS, False, expected=expected, found=str(error))
        _leave_claims(ledger, demand, f"the boot claims cannot be read: {error}")
        return
    for code, verdict in _verdicts(result, event, demand).items():
        if demand.boot == "any" or verdict.expected is None:
            ledger.leave_open(code, found=verdict.found, detail=verdict.detail)
        else:
            ledger.judge(
                code, verdict.holds, expected=verdict.expected, found=verdict.found, detail=verdict.detail
            )


def _verdicts(result: BootResult, event: GpuBootEvent, demand: GpuSection) -> dict[CheckCode, _Verdict]:
    return {
        CheckCode.GPU_BOOT_CLAIMS: _whole(result),
        # check 51 gpu-boot-result
        CheckCode.GPU_BOOT_RESULT: _verified(result),
        # check 52 gpu-boot-secure-boot
        CheckCode.GPU_BOOT_SECURE_BOOT: _secure_boot(result),
        # check 53 gpu-boot-debug
        CheckCode.GPU_BOOT_DEBUG: _debug(result, demand),
        # check 54 gpu-boot-nonce
        CheckCode.GPU_BOOT_NONCE: _nonce(result),
        # check 55 gpu-boot-revocation
        CheckCode.GPU_BOOT_REVOCATION: _revocation(result),
        # check 56 gpu-boot-count
        CheckCode.GPU_BOOT_COUNT: _count(result, event, demand),
        # check 57 gpu-boot-models
        CheckCode.GPU_BOOT_MODELS: _models(result, demand),
        # check 58 gpu-boot-versions
        CheckCode.GPU_BOOT_VERSIONS: _versions(result, demand),
    }


def _whole(result: BootResult) -> _Verdict:
    switches = len(result.devices) - len(result.gpus)
    tokens = "without tokens" if result.overall is None else "tokens that say the same"
    found = f"{len(result.gpus)} GPUs, {switches} switches, {tokens}"
    return _Verdict("one whole result of a successful run of nvattest", found, holds=True)


def _verified(result: BootResult) -> _Verdict:
    """Every verification must be affirmed by name: nothing holds because a release does not mention it."""
    problems = [f"{device.name}: {', '.join(faults)}" for device in result.devices if (faults := _faults(device))]
    if result.overall is not None and result.overall.result is not True:
        problems.append("the overall result is not true")
    found = "; ".join(problems) or f"success for {_names(result.devices)}"
    return _Verdict("success in every part of the verification", found, not problems)


def _faults(device: BootDevice) -> list[str]:
    """What a device's verification does not affirm; the revocation of certificates is a check of its own."""
    faults = [] if device.measurements == "success" else [f"measures {_said(device.measurements)}"]
    faults += [f"{name} not true" for name in device.unverified]
    faults += [f"{each.name} {_said(each.status)}" for each in device.chains if each.status != "valid"]
    return [*faults, "values that differ from the reference values"] if device.mismatches else faults


def _secure_boot(result: BootResult) -> _Verdict:
    others = [device for device in result.devices if device.secure_boot is not True]
    found = f"not on {_names(others)}" if others else f"on {_names(result.devices)}"
    return _Verdict("on every device", found, not others)


def _debug(result: BootResult, demand: GpuSection) -> _Verdict:
    found = "; ".join(f"{device.name}: {_said(device.debug)}" for device in result.devices)
    expected = "disabled on every device" if demand.devtools == "refused" else None
    return _Verdict(expected, found, all(device.debug == "disabled" for device in result.devices))


def _nonce(result: BootResult) -> _Verdict:
    stated = [device.nonce for device in result.devices]
    if result.overall is not None:
        stated.append(result.overall.nonce)
    different = sorted({_said(nonce) for nonce in stated})
    holds = len(different) == 1 and _NONCE.fullmatch(different[0]) is not None
    return _Verdict("one nonce of 32 bytes in all claims", "; ".join(different), holds)


def _revocation(result: BootResult) -> _Verdict:
    """Releases that ask no responder say nothing; a result that says it of some chains only affirms nothing."""
    chains = [(device.name, chain) for device in result.devices for chain in device.chains]
    if not any(_speaks_of_revocation(chain) for _, chain in chains):
        return _Verdict(None, "not stated", False, "the boot claims do not say whether certificates were revoked")
    problems = [f"{name}: {chain.name} {_said(chain.ocsp_status)}" for name, chain in chains if not _good(chain)]
    found = "; ".join(problems) or f"{len(chains)} of {len(chains)} chains"
    return _Verdict("every chain good, by a valid and fresh answer of the responder", found, not problems)


def _speaks_of_revocation(chain: CertificateChain) -> bool:
    words = (chain.ocsp_status, chain.revocation_reason, chain.ocsp_response_valid, chain.ocsp_nonce_matches)
    return any(word is not None for word in words)


def _good(chain: CertificateChain) -> bool:
    """Whether no certificate of the chain was revoked. Not all releases describe the responder's answer."""
    answer = (chain.ocsp_response_valid, chain.ocsp_nonce_matches)
    return chain.ocsp_status == "good" and chain.revocation_reason is None and False not in answer


def _count(result: BootResult, event: GpuBootEvent, demand: GpuSection) -> _Verdict:
    """As many GPUs as were measured and are demanded; each has a number of its own."""
    number, different = len(result.gpus), len({gpu.ueid for gpu in result.gpus} - {None, ""})
    wanted = demand.count in ("any", number)
    expected = f"{event.devices} different GPUs, as measured"
    if demand.count != "any":
        expected += f"; {demand.count}, as demanded"
    return _Verdict(
        expected, f"{number} claims about {different} GPUs", wanted and event.devices == number == different
    )


def _models(result: BootResult, demand: GpuSection) -> _Verdict:
    models = [gpu.model or "" for gpu in result.gpus]
    found = "; ".join(f"{gpu.name}: {_said(gpu.model)}" for gpu in result.gpus)
    if demand.models == "any":
        return _Verdict(None, found, False)
    return _Verdict(" or ".join(demand.models), found, all(model.startswith(demand.models) for model in models))


def _versions(result: BootResult, demand: GpuSection) -> _Verdict:
    driver, vbios = demand.min_driver_version, demand.min_vbios_version
    found = "; ".join(
        f"{gpu.name}: driver {_said(gpu.driver_version)}, VBIOS {_said(gpu.vbios_version)}" for gpu in result.gpus
    )
    reached = all(
        reaches(gpu.driver_version, driver, base=10) and reaches(gpu.vbios_version, vbios, base=16)
        for gpu in result.gpus
    )
    demanded = f"driver {driver}, VBIOS {vbios}, or later"
    return _Verdict(None if driver == vbios == "any" else demanded, found, reached)


def _said(value: str | None) -> str:
    return value or "not stated"


def _names(devices: Sequence[BootDevice]) -> str:
    return ", ".join(device.name for device in devices)
