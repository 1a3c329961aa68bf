"""The result of NVIDIA's `nvattest`, which the measured OS ran at boot: parsed, not judged.

Form: the JSON that `nvattest attest --format json` prints, claims version 3.0 (NVIDIA's Claims Guide, GPU and
nvSwitch claims): `claims`, one object per device, `result_code`, and `detached_eat`, the same claims as tokens.
The text is trusted only because the OS measured it. Unknown keys are allowed, as later releases add some.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from trainer.attestation.nvidia.boot_tokens import Claims, as_object, overall_claims
from trainer.encoding import parse_json

MAX_BOOT_CHARS: Final = 1 << 19
MAX_DEVICES: Final = 64
"""GPUs and switches together; the largest machines have 16 of the former."""

Kind = Literal["gpu", "switch"]

_KINDS: Final[dict[str | None, Kind]] = {"gpu": "gpu", "nvswitch": "switch"}
_TOKEN_NAMES: Final[dict[Kind, str]] = {"gpu": "GPU", "switch": "SWITCH"}
_RIMS: Final[dict[Kind, tuple[str, ...]]] = {
    "gpu": ("driver-rim", "vbios-rim"),
    "switch": ("bios-rim",),
}
_REPORT_FLAGS: Final = tuple(
    f"attestation-report-{name}"
    for name in ("parsed", "signature-verified", "nonce-match", "cert-chain-fwid-match")
)
_RIM_FLAGS: Final = ("fetched", "signature-verified", "version-match", "measurements-available")
_OWN_FLAGS: Final[dict[Kind, tuple[str, ...]]] = {"gpu": ("vbios-index-no-conflict",), "switch": ()}
_MISMATCHES: Final = "x-nvidia-mismatch-"
_WORDS: Final = re.compile(r"[ -~]{0,200}")


@dataclass(frozen=True)
class CertificateChain:
    """The claims about one certificate chain; None where there is none.

    Attributes:
        name: such as `driver-rim-cert-chain`.
        status: `valid` if it ended in NVIDIA's root and was in date.
        ocsp_status: `good` if no certificate in it was revoked.
        revocation_reason: the reason for which one was.
        ocsp_response_valid: whether the responder's signatures were valid.
        ocsp_nonce_matches: whether the response had the nonce of the request.
    """

    name: str
    status: str | None
    ocsp_status: str | None
    revocation_reason: str | None
    ocsp_response_valid: bool | None
    ocsp_nonce_matches: bool | None


@dataclass(frozen=True)
class BootDevice:
    """The claims about one GPU or switch; None where there is none.

    Attributes:
        name: `GPU-0`, `SWITCH-0` and so on, counted in the order of the claims.
        kind: GPU or switch.
        nonce: the nonce of its report, in lower case.
        measurements: `success` if all equal NVIDIA's reference values.
        unverified: names of the verifications that are not affirmed.
        mismatches: whether the claims list values that differ from the reference values.
        chains: certificate chains of the report, and of each reference integrity manifest.
        secure_boot: whether its firmware was booted securely.
        debug: `disabled` if it cannot be debugged.
        model: such as `GH100 A01 GSP BROM`.
        ueid: the serial number of its certificate.
        driver_version: such as `550.90.07`; None for a switch.
        vbios_version: such as `96.00.9F.00.01`; None for a switch.
    """

    name: str
    kind: Kind
    nonce: str | None
    measurements: str | None
    unverified: tuple[str, ...]
    mismatches: bool
    chains: tuple[CertificateChain, ...]
    secure_boot: bool | None
    debug: str | None
    model: str | None
    ueid: str | None
    driver_version: str | None
    vbios_version: str | None


@dataclass(frozen=True)
class OverallToken:
    """The claims of the bundle's first token, which are about all devices together."""

    nonce: str | None
    result: bool | None


@dataclass(frozen=True)
class BootResult:
    """One successful run of `nvattest`: at least one GPU among its devices."""

    devices: tuple[BootDevice, ...]
    overall: OverallToken | None
    """None where the release writes no bundle of tokens."""

    @property
    def gpus(self) -> tuple[BootDevice, ...]:
        """The GPUs among the devices."""
        return tuple(device for device in self.devices if device.kind == "gpu")


def parse_boot_result(text: str) -> BootResult:
    """Parses the text of `nvattest`'s result.

    Raises:
        ValueError: not one complete result of a successful run; the message is one line without control
            characters.
    """
    if len(text) > MAX_BOOT_CHARS:
        raise ValueError(f"more than {MAX_BOOT_CHARS} characters")
    document = as_object(parse_json(text), "the result")
    code = document.get("result_code")
    if type(code) is not int or code != 0:  # `False == 0`, but false is no result code
        raise ValueError("result_code is not 0")
    listed = document.get("claims")
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_DEVICES:
        raise ValueError(f"claims is no list of 1 to {MAX_DEVICES} devices")
    claims: dict[str, Claims] = {}
    devices = []
    counts: dict[Kind, int] = {"gpu": 0, "switch": 0}
    for index, each in enumerate(listed):
        claim = as_object(each, f"claim {index}")
        kind = _KINDS.get(_text(claim, "x-nvidia-device-type"))
        if kind is None:
            raise ValueError(f"claim {index}: x-nvidia-device-type is neither gpu nor nvswitch")
        # The claims have no name for a device; the bundle of tokens names it by its kind and a count from 0.
        name = f"{_TOKEN_NAMES[kind]}-{counts[kind]}"
        counts[kind] += 1
        claims[name] = claim
        devices.append(_device(claim, kind, name))
    if not counts["gpu"]:
        raise ValueError("claims about no GPU")
    overall = overall_claims(document.get("detached_eat"), claims)
    if overall is None:
        return BootResult(tuple(devices), None)
    result = _flag(overall, "x-nvidia-overall-att-result")
    return BootResult(tuple(devices), OverallToken(nonce=_nonce(overall), result=result))


def _device(claim: Claims, kind: Kind, name: str) -> BootDevice:
    # Names of the verifications that must have succeeded, without their common prefix.
    rims = (f"{rim}-{flag}" for rim in _RIMS[kind] for flag in _RIM_FLAGS)
    flags = ("arch-check", *_REPORT_FLAGS, *rims, *_OWN_FLAGS[kind])
    chains = [f"{subject}-cert-chain" for subject in ("attestation-report", *_RIMS[kind])]
    try:
        return BootDevice(
            name=name,
            kind=kind,
            nonce=_nonce(claim),
            measurements=_text(claim, "measres"),
            unverified=tuple(
                flag for flag in flags if _flag(claim, f"x-nvidia-{kind}-{flag}") is not True
            ),
            mismatches=any(
                key.startswith(_MISMATCHES) and claim[key] not in (None, []) for key in claim
            ),
            chains=tuple(_chain(chain, claim.get(f"x-nvidia-{kind}-{chain}")) for chain in chains),
            secure_boot=_flag(claim, "secboot"),
            debug=_text(claim, "dbgstat"),
            model=_text(claim, "hwmodel"),
            ueid=_text(claim, "ueid"),
            driver_version=_text(claim, "x-nvidia-gpu-driver-version"),
            vbios_version=_text(claim, "x-nvidia-gpu-vbios-version"),
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _chain(name: str, value: object) -> CertificateChain:
    chain = {} if value is None else as_object(value, name)
    return CertificateChain(
        name=name,
        status=_text(chain, "x-nvidia-cert-status"),
        ocsp_status=_text(chain, "x-nvidia-cert-ocsp-status"),
        revocation_reason=_text(chain, "x-nvidia-cert-revocation-reason"),
        ocsp_response_valid=_flag(chain, "x-nvidia-cert-ocsp-response-valid"),
        ocsp_nonce_matches=_flag(chain, "x-nvidia-cert-ocsp-nonce-matches"),
    )


def _nonce(claim: Claims) -> str | None:
    """Returns the nonce in lower case: releases differ in the case of hex."""
    nonce = _text(claim, "eat_nonce")
    return None if nonce is None else nonce.lower()


def _text(claim: Claims, key: str) -> str | None:
    value = claim.get(key)
    if value is not None and not (isinstance(value, str) and _WORDS.fullmatch(value)):
        raise ValueError(f"{key} is no short printable text")
    return value


def _flag(claim: Claims, key: str) -> bool | None:
    value = claim.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{key} is neither true nor false")
    return value
