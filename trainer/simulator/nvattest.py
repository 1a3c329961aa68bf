"""Results in the form of NVIDIA's `nvattest`, as a measured OS keeps them from its boot: made up, for development.

Form as in `trainer.attestation.nvidia.boot_claims`. Real ones are unsigned too: what vouches for a text is that
its digest stands in the event log. That of a simulated VM proves nothing.
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
"""What is said of a certificate chain against which there is nothing to say."""


@dataclass(frozen=True)
class SimulatedGpu:
    """One GPU that passes, but for its changes.

    Args:
        ueid: what tells it from others.
        hwmodel: its model.
        driver_version: numbers with dots between them.
        vbios_version: five bytes in hex with dots between them.
        changes: claims that are other, by their whole names; they stand in the list and in the token alike.
        missing: names of claims that are not made.
    """

    ueid: str = "1"
    hwmodel: str = "GH100 A01 GSP BROM"
    driver_version: str = "550.90.07"
    vbios_version: str = "96.00.9F.00.01"
    changes: Claims = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def claims(self, nonce: str) -> dict[str, object]:
        """What `nvattest` says of it."""
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
        whole = {**_verified("gpu", ("driver-rim", "vbios-rim"), nonce), **special, **self.changes}
        return {name: value for name, value in whole.items() if name not in self.missing}


@dataclass(frozen=True)
class SimulatedSwitch:
    """One NVSwitch that passes, but for its changes; arguments as those of a GPU."""

    ueid: str = "1001"
    hwmodel: str = "LS10 A01 FSP BROM"
    bios_version: str = "96.10.73.00.01"
    changes: Claims = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def claims(self, nonce: str) -> dict[str, object]:
        """What `nvattest` says of it."""
        special = {
            "hwmodel": self.hwmodel,
            "ueid": self.ueid,
            "x-nvidia-device-type": "nvswitch",
            "x-nvidia-switch-bios-version": self.bios_version,
            "x-nvidia-version": "3.0",
        }
        whole = {**_verified("switch", ("bios-rim",), nonce), **special, **self.changes}
        return {name: value for name, value in whole.items() if name not in self.missing}


Device = SimulatedGpu | SimulatedSwitch


def nvattest_result(
    devices: Sequence[Device], nonce: str, *, issued_at: int = BOOT_TIME, **changes: object
) -> str:
    """The text that `nvattest` prints about these devices, final newline included.

    Args:
        devices: GPUs and switches, in the order of the claims.
        nonce: what they were asked with, in hex.
        issued_at: Unix seconds; when.
        changes: other values of the result's own keys, such as `result_code`.
    """
    claims = [device.claims(nonce) for device in devices]
    tokens = {name: token({**claim, **_frame(name, nonce, issued_at)}) for name, claim in _named(devices, claims)}
    document: dict[str, object] = {
        "claims": claims,
        "detached_eat": detached_eat(overall_claims(tokens, nonce, issued_at), tokens),
        "result_code": 0,
        "result_message": "Ok",
    }
    return json.dumps({**document, **changes}, indent=2, sort_keys=True) + "\n"


def token(claims: Claims) -> str:
    """A JWT without signature, as `nvattest` makes it."""
    parts = ({"alg": "none"}, claims)
    texts = (json.dumps(part, separators=(",", ":"), sort_keys=True).encode() for part in parts)
    return "".join(base64.urlsafe_b64encode(text).rstrip(b"=").decode() + "." for text in texts)


def overall_claims(tokens: Mapping[str, str], nonce: str, issued_at: int = BOOT_TIME) -> dict[str, object]:
    """Claims of the token that stands for all devices.

    Args:
        tokens: the token of each device, by name.
        nonce: what they were asked with.
        issued_at: Unix seconds.
    """
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in tokens.items()}
    return {
        **_frame("overall", nonce, issued_at),
        "sub": "NVIDIA-PLATFORM-ATTESTATION",
        "eat_nonce": nonce,
        "submods": {name: ["DIGEST", ["SHA256", digest]] for name, digest in digests.items()},
        "x-nvidia-overall-att-result": True,
        "x-nvidia-ver": "3.0",
    }


def detached_eat(overall: Claims, tokens: Mapping[str, str]) -> list[object]:
    """The bundle of all tokens."""
    return [["JWT", token(overall)], dict(tokens)]


def _named(devices: Sequence[Device], claims: Sequence[Claims]) -> list[tuple[str, Claims]]:
    """Claims with the names of their tokens: each kind is counted by itself."""
    seen = {"GPU": 0, "SWITCH": 0}
    named = []
    for device, claim in zip(devices, claims, strict=True):
        kind = "GPU" if isinstance(device, SimulatedGpu) else "SWITCH"
        named.append((f"{kind}-{seen[kind]}", claim))
        seen[kind] += 1
    return named


def _verified(kind: str, rims: tuple[str, ...], nonce: str) -> dict[str, object]:
    """What GPUs and switches have in common: each verification and its success."""
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


def _frame(name: str, nonce: str, issued_at: int) -> dict[str, object]:
    """What stands in every token."""
    return {
        "exp": issued_at + TOKEN_SECONDS,
        "iat": issued_at,
        "iss": "NVAT-LOCAL-VERIFIER",
        "jti": hashlib.sha256(f"{name} {nonce}".encode()).hexdigest(),
    }
