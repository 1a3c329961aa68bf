"""GPU evidence: what the measured OS collected at boot, and reports that the job asks for itself through NVML.

NVML comes with NVIDIA's driver, its bindings with the `job` extra (`nvidia-ml-py`); both may be absent. A GPU that
runs in confidential mode and cannot be asked is an error: evidence that is silently empty would read as "no GPU".
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from trainer.attestation.evidence import MAX_GPUS, FreshGpuEvidence, GpuEvidence
from trainer.attestation.nvidia.spdm_report import gpu_nonce
from trainer.errors import ErrorCode, UnavailableError

Nvml = Any
"""The module `pynvml` of `nvidia-ml-py`, or something that behaves like it."""


class GpuAgent(Protocol):
    """The part of the guest agent that GPU evidence needs."""

    def gpu_attestation(self) -> str:
        """Returns the exact text of the OS's GPU attestation at boot; empty where there is none."""


def collect_gpu_evidence(agent: GpuAgent, nonce: str, *, nvml: Nvml | None = None) -> GpuEvidence:
    """Collects the boot evidence from the guest agent and a fresh report of each GPU.

    Args:
        agent: the guest agent.
        nonce: the provider's nonce, 64 hex digits.
        nvml: the NVML module; by default `pynvml`, where it is installed.

    Raises:
        UnavailableError: the agent does not answer, or a GPU in confidential mode gives no report.
    """
    boot = agent.gpu_attestation()
    return GpuEvidence(
        boot=boot, fresh=collect_fresh(nonce, nvml=nvml if nvml is not None else find_nvml())
    )


def find_nvml() -> Nvml | None:
    """Returns the installed NVML bindings, or None."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def collect_fresh(nonce: str, *, nvml: Nvml | None) -> tuple[FreshGpuEvidence, ...]:
    """Collects a signed report of each GPU over `gpu_nonce(nonce)`, in the order of NVML's indices.

    Returns no report where there is no NVML or no driver, or where GPUs do not run in confidential mode.

    Args:
        nonce: the provider's nonce, 64 hex digits.
        nvml: the NVML module, or None where there is none.

    Raises:
        UnavailableError: a GPU in confidential mode gives no report (GPU_EVIDENCE_UNAVAILABLE).
    """
    wanted = gpu_nonce(nonce)
    if nvml is None:
        return ()
    with _session(nvml) as has_driver:
        if not has_driver or not _is_confidential(nvml):
            return ()
        with _failures(nvml, "list GPUs"):
            count = nvml.nvmlDeviceGetCount()
        if not 1 <= count <= MAX_GPUS:
            raise _unavailable(
                "confidential mode is on", expected=f"1 to {MAX_GPUS} GPUs", found=count
            )
        return tuple(_report(nvml, index, wanted) for index in range(count))


@contextmanager
def _session(nvml: Nvml) -> Iterator[bool]:
    """Opens NVML; yields False where there is no driver."""
    no_driver = (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED)
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if error.value not in no_driver:
            raise _unavailable(f"NVML cannot open NVML: {error}") from error
        yield False
        return
    try:
        yield True
    finally:
        nvml.nvmlShutdown()


def _is_confidential(nvml: Nvml) -> bool:
    """Returns whether GPUs run in confidential mode: single ones, or several with protected links between them."""
    # What a driver or GPU from before confidential computing answers.
    not_offered = (
        nvml.NVML_ERROR_NOT_SUPPORTED,
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    )
    try:
        feature = nvml.nvmlSystemGetConfComputeState().ccFeature
    except nvml.NVMLError as error:
        if error.value not in not_offered:
            raise _unavailable(
                f"NVML cannot read the confidential computing state: {error}"
            ) from error
        feature = nvml.NVML_CC_SYSTEM_FEATURE_DISABLED
    if feature != nvml.NVML_CC_SYSTEM_FEATURE_DISABLED:
        return True
    # Several GPUs with protected PCIe or encrypted NVLink between them have a mode of their own.
    settings = nvml.c_nvmlSystemConfComputeSettings_v1_t()
    try:
        code = nvml.nvmlSystemGetConfComputeSettings(ctypes.byref(settings))
    except nvml.NVMLError as error:
        code = error.value
    if code in not_offered:
        return False
    if code != nvml.NVML_SUCCESS:
        raise _unavailable(f"NVML cannot read the confidential computing settings: error {code}")
    return bool(settings.multiGpuMode != nvml.NVML_CC_SYSTEM_MULTIGPU_NONE)


def _report(nvml: Nvml, index: int, nonce: bytes) -> FreshGpuEvidence:
    with _failures(nvml, f"get the attestation report of GPU {index}"):
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        report = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(device, nonce)
        certificate = nvml.nvmlDeviceGetConfComputeGpuCertificate(device)
    signed = _filled(report.attestationReport, report.attestationReportSize, index)
    # Only a slip of driver or bindings is caught here; the verifier checks nonce and signature.
    if nonce not in signed:
        raise _unavailable(f"GPU {index}: the report does not hold the nonce that was asked for")
    chain = _filled(certificate.attestationCertChain, certificate.attestationCertChainSize, index)
    try:
        text = chain.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError:
        raise _unavailable(f"GPU {index}: the certificate chain is not PEM") from None
    return FreshGpuEvidence(report=signed.hex(), certificate_chain=text)


def _filled(buffer: Any, size: int, index: int) -> bytes:
    """Returns the part of a fixed buffer that NVML says it wrote."""
    data = bytes(buffer)
    if not 0 < size <= len(data):
        raise _unavailable(
            f"GPU {index}: size of an answer", expected=f"1 to {len(data)}", found=size
        )
    return data[:size]


@contextmanager
def _failures(nvml: Nvml, what: str) -> Iterator[None]:
    try:
        yield
    except nvml.NVMLError as error:
        raise _unavailable(f"NVML cannot {what}: {error}") from error


def _unavailable(
    message: str, *, expected: object = None, found: object = None
) -> UnavailableError:
    return UnavailableError(
        ErrorCode.GPU_EVIDENCE_UNAVAILABLE,
        message,
        expected=expected,
        found=found,
        hint="a GPU in confidential mode must be able to attest: check the driver, and that the container has all "
        "GPUs and the `utility` driver capability",
    )
