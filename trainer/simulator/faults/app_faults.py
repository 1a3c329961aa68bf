"""Lies about what runs in the VM: its GPUs, keys and compose text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Final

from trainer.attestation.checks import CheckCode
from trainer.simulator.fault import Fault, Layer
from trainer.simulator.faults.event_faults import Events, measured, payload
from trainer.simulator.key_service import AppKeys, SimulatedKey


def _gpu(**changes: Any) -> Callable[[Events], Events]:
    """The system measured another finding about its GPUs."""
    return payload("gpu-attestation", lambda text: json.dumps(json.loads(text) | changes).encode())


_GPU: Final = (
    measured("gpu-evidence", CheckCode.GPU_BOOT, "other GPU evidence measured", _gpu(evidence_sha256="00" * 32)),
    measured("gpu-event-version", CheckCode.GPU_BOOT, "a GPU event of version 0", _gpu(version=0)),
    measured(
        "gpu-event-form",
        CheckCode.GPU_BOOT,
        "a GPU event without fields",
        payload("gpu-attestation", lambda _: b"{}"),
    ),
    measured("gpu-vendor", CheckCode.GPU_REQUIRED, "GPUs of another maker", _gpu(provider="other")),
    measured("gpu-cc-off", CheckCode.GPU_CC_MODE, "a GPU outside confidential mode", _gpu(cc_mode="off")),
    measured("gpu-devtools", CheckCode.GPU_DEVTOOLS, "a GPU open to developer tools", _gpu(devtools=True)),
    measured("gpu-count", CheckCode.GPU_BOOT_COUNT, "a GPU more than the evidence shows", _gpu(devices=2)),
    Fault(
        "gpu-text", CheckCode.GPU_BOOT, "GPU evidence other than measured", Layer.GPU_INFO, lambda text: text + " "
    ),
    Fault("gpu-text-missing", CheckCode.GPU_BOOT, "GPU evidence withheld", Layer.GPU_INFO, lambda _: ""),
)


def _signatures(change: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]) -> Callable[[SimulatedKey], Any]:
    def changed(key: SimulatedKey) -> SimulatedKey:
        chain: Any = change(key.signature_chain)
        return dataclasses.replace(key, signature_chain=chain)

    return changed


def _key(name: str, description: str, change: Callable[[SimulatedKey], Any]) -> Fault:
    return Fault(name, CheckCode.KEY_CHAIN, description, Layer.KEY, change)


def _bit(signature: bytes) -> bytes:
    return signature[:40] + bytes([signature[40] ^ 1]) + signature[41:]


def _unsigned_key(key: SimulatedKey) -> SimulatedKey:
    """A key that the app's key did not sign, with the signatures of the one that it did."""
    other = AppKeys(b"\7" * 32, b"").derive("another")
    return dataclasses.replace(key, secret=other.secret, public_key=other.public_key)


_KEYS: Final = (
    _key("key-signature", "a false signature over the derived key", _signatures(lambda c: (_bit(c[0]), c[1]))),
    _key("app-key-signature", "a false signature over the app key", _signatures(lambda c: (c[0], _bit(c[1])))),
    _key("key-chain-short", "no signature by the key service", _signatures(lambda c: c[:1])),
    _key("key-chain-long", "one signature too many", _signatures(lambda c: (*c, c[1]))),
    _key("key-chain-swapped", "signatures in the wrong order", _signatures(lambda c: c[::-1])),
    _key("unsigned-key", "a key that the app's key did not sign", _unsigned_key),
    Fault(
        "key-service",
        CheckCode.KEY_CHAIN,
        "keys of another key service",
        Layer.KEY_SEED,
        lambda seed: b"another key service" + seed,
    ),
)

_HOST: Final = (
    Fault(
        "development-image",
        CheckCode.OS_DEVELOPMENT,
        "an OS image that lets developers in",
        Layer.VM_CONFIG,
        lambda config: config | {"image": "dstack-dev-0.6.0"},
    ),
    Fault(
        "compose-text",
        CheckCode.COMPOSE_HASH,
        "another app-compose shown than measured",
        Layer.APP_COMPOSE,
        lambda text: text + " ",
        also=(CheckCode.COMPOSE_ACCEPTED, CheckCode.MR_CONFIG_ID),
    ),
)

APP_FAULTS: Final = (*_GPU, *_KEYS, *_HOST)
