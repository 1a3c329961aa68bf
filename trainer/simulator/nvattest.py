"""Writer of results in the format of NVIDIA's `nvattest`, which a measured OS stores at boot.

The format is that of `trainer.attestation.nvidia.boot_claims`. Real results are unsigned too: they are trusted
because the measured event log contains their digest.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

Claims = Mapping[str, object]

BOOT_TIME: Final = 1_784_207_862
TOKEN_SECONDS: Final = 3600

_REPORT_FLAGS: Final = ("parsed", "signature-verified", "nonce-match", "cert-chain-fwid-match")
_RIM_FLAGS: Final = ("fetched", "signature-verified", "version-match", "measurements-available")

GOOD_CHAIN: Final[Claims] = {
    "x-nvidia-cert-expiration-date": "9999-12-31T23:59:59Z",
    "x-nvidia-cert-ocsp-nonce-matches": True,
    "x-nvidia-cert-ocsp-response-valid": True,
    "x-nvidia-cert-ocsp-status": "good",
    "x-nvidia-cert-revocation-reason": None,
    "x-nvidia-cert-status": "valid",
}
"""Claims about a certificate chain without a problem."""


@dataclass(frozen=True)
class SimulatedGpu:
    """A GPU that passes verification, apart from its changes.

    Args:
        ueid: unique id of the GPU.
        hwmodel: hardware model.
        driver_version: decimal numbers separated by dots.
        vbios_version: five bytes in hex, separated by dots.
        changes: claims with other values, by their full names; in the list of claims and in the token.
        missing: names of claims that are left out.
    """

    ueid: str = "1"
    hwmodel: str = "GH100 A01 GSP BROM"
    driver_version: str = "550.90.07"
    vbios_version: str = "96.00.9F.00.01"
    changes: Claims = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def claims(self, nonce: str) -> dict[str, object]:
        """Returns the claims that `nvattest` makes about it."""
        special = {
            "hwmodel": self.hwmodel,
            "ueid": self.ueid,
            "oemid": "5703",
            "x-nvidia-device-type": "gpu",
            "x-nvidia-gpu-claims-version": "3.0",
            "x-nvidia-gpu-driver-version": self.driver_version,
            "x-nvidia-gpu-vbios-version": self.vbios_version,
            "x-nvidia-gpu-vbios-index-no-conflict": True,
        }
        claims = {
            **_verification_claims("gpu", ("driver-rim", "vbios-rim"), nonce),
            **special,
            **self.changes,
        }
        return {name: value for name, value in claims.items() if name not in self.missing}


@dataclass(frozen=True)
class SimulatedSwitch:
    """An NVSwitch that passes verification, apart from its changes; the arguments are those of a GPU."""

    ueid: str = "1001"
    hwmodel: str = "LS10 A01 FSP BROM"
    bios_version: str = "96.10.73.00.01"
    changes: Claims = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def claims(self, nonce: str) -> dict[str, object]:
        """Returns the claims that `nvattest` makes about it."""
        special = {
            "hwmodel": self.hwmodel,
            "ueid": self.ueid,
            "x-nvidia-device-type": "nvswitch",
            "x-nvidia-switch-bios-version": self.bios_version,
            "x-nvidia-version": "3.0",
        }
        claims = {**_verification_claims("switch", ("bios-rim",), nonce), **special, **self.changes}
        return {name: value for name, value in claims.items() if name not in self.missing}


Device = SimulatedGpu | SimulatedSwitch


def nvattest_result(
    devices: Sequence[Device], nonce: str, *, issued_at: int = BOOT_TIME, **changes: object
) -> str:
    """Returns the text that `nvattest` prints about these devices, with the final newline.

    Args:
        devices: GPUs and switches, in the order of the claims.
        nonce: nonce of the request, in hex.
        issued_at: time of the result, seconds since 1970.
        changes: other values of the result's own keys, such as `result_code`.
    """
    claims = [device.claims(nonce) for device in devices]
    tokens = {
        name: token({**claim, **_registered_claims(name, nonce, issued_at)})
        for name, claim in _claims_by_token(devices, claims)
    }
    document: dict[str, object] = {
        "claims": claims,
        "detached_eat": detached_eat(overall_claims(tokens, nonce, issued_at), tokens),
        "result_code": 0,
        "result_message": "Ok",
    }
    return json.dumps({**document, **changes}, indent=2, sort_keys=True) + "\n"


def token(claims: Claims) -> str:
    """Returns an unsigned JWT (algorithm `none`)."""
    parts = ({"alg": "none"}, claims)
    texts = (json.dumps(part, separators=(",", ":"), sort_keys=True).encode() for part in parts)
    return "".join(base64.urlsafe_b64encode(text).rstrip(b"=").decode() + "." for text in texts)


def overall_claims(
    tokens: Mapping[str, str], nonce: str, issued_at: int = BOOT_TIME
) -> dict[str, object]:
    """Returns the claims of the token about all devices together.

    Args:
        tokens: the token of each device, by name.
        nonce: nonce of the request, in hex.
        issued_at: time of the token, seconds since 1970.
    """
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in tokens.items()}
    return {
        **_registered_claims("overall", nonce, issued_at),
        "sub": "NVIDIA-PLATFORM-ATTESTATION",
        "eat_nonce": nonce,
        "submods": {name: ["DIGEST", ["SHA256", digest]] for name, digest in digests.items()},
        "x-nvidia-overall-att-result": True,
        "x-nvidia-ver": "3.0",
    }


def detached_eat(overall: Claims, tokens: Mapping[str, str]) -> list[object]:
    """Returns the detached EAT bundle of all tokens."""
    return [["JWT", token(overall)], dict(tokens)]


def _claims_by_token(
    devices: Sequence[Device], claims: Sequence[Claims]
) -> list[tuple[str, Claims]]:
    """Pairs the claims with the names of their tokens; GPUs and switches are numbered separately."""
    seen = {"GPU": 0, "SWITCH": 0}
    named = []
    for device, claim in zip(devices, claims, strict=True):
        kind = "GPU" if isinstance(device, SimulatedGpu) else "SWITCH"
        named.append((f"{kind}-{seen[kind]}", claim))
        seen[kind] += 1
    return named


def _verification_claims(kind: str, rims: tuple[str, ...], nonce: str) -> dict[str, object]:
    """Returns the claims that GPUs and switches have in common: the success of each verification."""
    flags = ["arch-check", *(f"attestation-report-{flag}" for flag in _REPORT_FLAGS)]
    flags += [f"{rim}-{flag}" for rim in rims for flag in _RIM_FLAGS]
    chains = [f"{subject}-cert-chain" for subject in ("attestation-report", *rims)]
    return {
        "dbgstat": "disabled",
        "eat_nonce": nonce,
        "measres": "success",
        "secboot": True,
        "x-nvidia-mismatch-measurement-records": None,
        **{f"x-nvidia-{kind}-{flag}": True for flag in flags},
        **{f"x-nvidia-{kind}-{chain}": dict(GOOD_CHAIN) for chain in chains},
    }


def _registered_claims(name: str, nonce: str, issued_at: int) -> dict[str, object]:
    """Returns the registered JWT claims of every token."""
    return {
        "exp": issued_at + TOKEN_SECONDS,
        "iat": issued_at,
        "iss": "NVAT-LOCAL-VERIFIER",
        "jti": hashlib.sha256(f"{name} {nonce}".encode()).hexdigest(),
    }
