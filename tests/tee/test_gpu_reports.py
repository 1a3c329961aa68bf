"""GPU evidence over a stand-in for NVML that has the real module's structures, where that is installed."""

import ctypes
import hashlib
from pathlib import Path
from typing import Any

import pytest

from trainer.attestation.nvidia.spdm_report import gpu_nonce
from trainer.errors import ErrorCode, UnavailableError
from trainer.tee.gpu_reports import collect_fresh, collect_gpu_evidence, find_nvml

NONCE = "5a" * 32
CHAIN = b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"


class Settings(ctypes.Structure):
    """Layout of `nvmlSystemConfComputeSettings_v1_t`."""

    _fields_ = tuple(
        (name, ctypes.c_uint)
        for name in ("version", "environment", "ccFeature", "devToolsMode", "multiGpuMode")
    )


class Filled:
    """Fields of one of NVML's structures."""

    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


def buffer(data: bytes, size: int) -> Any:
    return (ctypes.c_uint8 * size)(*data)


class FakeNvml:
    """A driver with confidential GPUs; `failing` maps a function's name to the error code that it raises."""

    NVML_SUCCESS = 0
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_FUNCTION_NOT_FOUND = 13
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25
    NVML_CC_SYSTEM_FEATURE_DISABLED = 0
    NVML_CC_SYSTEM_MULTIGPU_NONE = 0
    c_nvmlSystemConfComputeSettings_v1_t = Settings  # noqa: N815

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            super().__init__(f"error {value}")
            self.value = value

    def __init__(
        self, gpus: int = 1, *, cc: int = 1, multi: int = 0, failing: dict[str, int] | None = None
    ) -> None:
        self.gpus, self.cc, self.multi, self.failing = gpus, cc, multi, failing or {}
        self.open = 0
        self.report_size: int | None = None
        self.stale_nonce: bytes | None = None
        self.chain = CHAIN

    def _may_fail(self, name: str) -> None:
        if name in self.failing:
            raise self.NVMLError(self.failing[name])

    def nvmlInit(self) -> None:  # noqa: N802
        self._may_fail("nvmlInit")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetConfComputeState(self) -> Filled:  # noqa: N802
        self._may_fail("nvmlSystemGetConfComputeState")
        return Filled(ccFeature=self.cc, devToolsMode=0)

    def nvmlSystemGetConfComputeSettings(self, settings: Any) -> int:  # noqa: N802
        # The real binding returns the error code here instead of raising it.
        if "nvmlSystemGetConfComputeSettings" in self.failing:
            return self.failing["nvmlSystemGetConfComputeSettings"]
        settings._obj.multiGpuMode = self.multi
        return 0

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._may_fail("nvmlDeviceGetCount")
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self._may_fail("nvmlDeviceGetHandleByIndex")
        return index

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, device: int, nonce: bytes) -> Filled:  # noqa: N802
        self._may_fail("nvmlDeviceGetConfComputeGpuAttestationReport")
        data = b"\x11\xe0\x01\xff" + (self.stale_nonce or nonce) + bytes([device]) + b"signed"
        size = len(data) if self.report_size is None else self.report_size
        return Filled(attestationReport=buffer(data, 0x2000), attestationReportSize=size)

    def nvmlDeviceGetConfComputeGpuCertificate(self, device: int) -> Filled:  # noqa: N802
        self._may_fail("nvmlDeviceGetConfComputeGpuCertificate")
        return Filled(
            attestationCertChain=buffer(self.chain, 0x1400),
            attestationCertChainSize=len(self.chain),
        )


class Agent:
    """A guest agent with this boot evidence."""

    def __init__(self, boot: str) -> None:
        self._boot = boot

    def gpu_attestation(self) -> str:
        return self._boot


def test_nonce_is_as_documented() -> None:
    message = b"confidential-trainer/gpu-nonce/v1" + b"\0" + bytes.fromhex(NONCE)
    assert gpu_nonce(NONCE) == hashlib.sha256(message).digest()
    assert gpu_nonce(NONCE) != gpu_nonce("5b" * 32)


@pytest.mark.parametrize("nonce", ["", "5A" * 32, "5a" * 31, "5a" * 33])
def test_other_nonces_are_refused(nonce: str) -> None:
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        collect_fresh(nonce, nvml=None)


def test_one_report_for_each_gpu() -> None:
    nvml = FakeNvml(gpus=3)
    reports = [bytes.fromhex(item.report) for item in collect_fresh(NONCE, nvml=nvml)]
    prefix = b"\x11\xe0\x01\xff" + gpu_nonce(NONCE)
    assert reports == [prefix + bytes([index]) + b"signed" for index in range(3)]
    assert nvml.open == 0


def test_certificate_chain_ends_where_nvml_says() -> None:
    (item,) = collect_fresh(NONCE, nvml=FakeNvml())
    assert item.certificate_chain == CHAIN.decode()


def test_boot_and_fresh_together() -> None:
    evidence = collect_gpu_evidence(Agent("boot\n"), NONCE, nvml=FakeNvml(gpus=2))
    assert evidence.boot == "boot\n"
    assert len(evidence.fresh) == 2


def test_nothing_without_nvml() -> None:
    assert collect_fresh(NONCE, nvml=None) == ()


@pytest.mark.parametrize("code", [9, 12])
def test_nothing_without_a_driver(code: int) -> None:
    nvml = FakeNvml(failing={"nvmlInit": code})
    assert collect_fresh(NONCE, nvml=nvml) == ()
    assert nvml.open == 0


def test_nothing_of_gpus_outside_confidential_mode() -> None:
    nvml = FakeNvml(cc=0)
    assert collect_fresh(NONCE, nvml=nvml) == ()
    assert nvml.open == 0


@pytest.mark.parametrize("code", [3, 13])
def test_nothing_of_drivers_from_before(code: int) -> None:
    names = ("nvmlSystemGetConfComputeState", "nvmlSystemGetConfComputeSettings")
    assert collect_fresh(NONCE, nvml=FakeNvml(failing=dict.fromkeys(names, code))) == ()


@pytest.mark.parametrize("mode", [1, 2])
def test_gpus_joined_in_confidence_count(mode: int) -> None:
    assert len(collect_fresh(NONCE, nvml=FakeNvml(gpus=8, cc=0, multi=mode))) == 8


@pytest.mark.parametrize(
    "name",
    [
        "nvmlInit",
        "nvmlSystemGetConfComputeState",
        "nvmlDeviceGetCount",
        "nvmlDeviceGetHandleByIndex",
        "nvmlDeviceGetConfComputeGpuAttestationReport",
        "nvmlDeviceGetConfComputeGpuCertificate",
    ],
)
def test_failure_is_never_silent(name: str) -> None:
    nvml = FakeNvml(failing={name: FakeNvml.NVML_ERROR_GPU_IS_LOST})
    with pytest.raises(UnavailableError, match=r"NVML cannot .* error 15") as caught:
        collect_fresh(NONCE, nvml=nvml)
    assert caught.value.code is ErrorCode.GPU_EVIDENCE_UNAVAILABLE
    assert nvml.open == 0


def test_unreadable_settings_are_not_taken_for_off() -> None:
    nvml = FakeNvml(
        cc=0, failing={"nvmlSystemGetConfComputeSettings": FakeNvml.NVML_ERROR_GPU_IS_LOST}
    )
    with pytest.raises(UnavailableError, match="error 15"):
        collect_fresh(NONCE, nvml=nvml)


@pytest.mark.parametrize("name", ["Report", "Certificate"])
def test_gpu_that_cannot_attest_in_confidential_mode(name: str) -> None:
    function = f"nvmlDeviceGetConfComputeGpu{'Attestation' if name == 'Report' else ''}{name}"
    with pytest.raises(UnavailableError, match="GPU 0"):
        collect_fresh(NONCE, nvml=FakeNvml(failing={function: FakeNvml.NVML_ERROR_NOT_SUPPORTED}))


@pytest.mark.parametrize("count", [0, 17])
def test_confidential_mode_needs_gpus(count: int) -> None:
    with pytest.raises(UnavailableError, match=f"expected 1 to 16 GPUs, got {count}"):
        collect_fresh(NONCE, nvml=FakeNvml(gpus=count))


@pytest.mark.parametrize("size", [0, 0x2001])
def test_impossible_sizes(size: int) -> None:
    nvml = FakeNvml()
    nvml.report_size = size
    with pytest.raises(UnavailableError, match=f"got {size}"):
        collect_fresh(NONCE, nvml=nvml)


def test_report_over_an_old_nonce() -> None:
    nvml = FakeNvml()
    nvml.stale_nonce = bytes(32)
    with pytest.raises(UnavailableError, match="nonce"):
        collect_fresh(NONCE, nvml=nvml)


def test_chain_that_is_not_text() -> None:
    nvml = FakeNvml()
    nvml.chain = b"\xff\xfe"
    with pytest.raises(UnavailableError, match="not PEM"):
        collect_fresh(NONCE, nvml=nvml)


def test_stand_in_has_the_shape_of_the_real_module() -> None:
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    for name in dir(FakeNvml):
        if name.startswith("NVML_"):
            assert getattr(real, name) == getattr(FakeNvml, name), name
        elif name.startswith(("nvml", "NVML", "c_nvml")):
            assert hasattr(real, name), name
    real_fields = [name for name, _ in real.c_nvmlSystemConfComputeSettings_v1_t._fields_]
    assert real_fields == [name for name, *_ in Settings._fields_]
    report = real.c_nvmlConfComputeGpuAttestationReport_t()
    assert {"attestationReport", "attestationReportSize"} <= set(dir(report))
    certificate = real.c_nvmlConfComputeGpuCertificate_t()
    assert {"attestationCertChain", "attestationCertChainSize"} <= set(dir(certificate))
    assert real.NVMLError(15).value == 15


def test_real_module_on_a_machine_without_a_driver() -> None:
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has an NVIDIA GPU")
    assert find_nvml() is real
    assert collect_fresh(NONCE, nvml=real) == ()
