"""Faults of GPU attestation, derived keys and compose text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Final

from trainer.simulator.fault import Fault, FaultLayer, flip_middle_bit
from trainer.simulator.faults.event_faults import Events, measured_fault, replace_payload
from trainer.simulator.key_service import AppKeys


def _change_gpu_event(**changes: Any) -> Callable[[Events], Events]:
    """Returns the change of fields in the measured event `gpu-attestation`."""
    return replace_payload(
        "gpu-attestation", lambda text: json.dumps(json.loads(text) | changes).encode()
    )


_GPU: Final = (
    measured_fault(
        "gpu-evidence",
        "gpu-boot",
        "other GPU evidence measured",
        _change_gpu_event(evidence_sha256="00" * 32),
    ),
    measured_fault(
        "gpu-event-version", "gpu-boot", "a GPU event of version 0", _change_gpu_event(version=0)
    ),
    measured_fault(
        "gpu-event-form",
        "gpu-boot",
        "a GPU event without fields",
        replace_payload("gpu-attestation", lambda _: b"{}"),
    ),
    measured_fault(
        "gpu-vendor", "gpu-required", "GPUs of another maker", _change_gpu_event(provider="other")
    ),
    measured_fault(
        "gpu-cc-off",
        "gpu-cc-mode",
        "a GPU outside confidential mode",
        _change_gpu_event(cc_mode="off"),
    ),
    measured_fault(
        "gpu-devtools",
        "gpu-devtools",
        "a GPU open to developer tools",
        _change_gpu_event(devtools=True),
    ),
    measured_fault(
        "gpu-count",
        "gpu-boot-count",
        "a GPU more than the evidence shows",
        _change_gpu_event(devices=2),
    ),
    Fault(
        FaultLayer.GPU_INFO,
        "gpu-text",
        "gpu-boot",
        "GPU evidence other than measured",
        lambda text: text + " ",
    ),
    Fault(
        FaultLayer.GPU_INFO, "gpu-text-missing", "gpu-boot", "GPU evidence withheld", lambda _: ""
    ),
)


def _signature_fault(
    name: str, description: str, change: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]
) -> Fault:
    """Returns a fault of the signatures over a derived key, the app key's first."""
    return Fault(
        FaultLayer.KEY,
        name,
        "key-chain",
        description,
        lambda key: dataclasses.replace(key, signature_chain=change(key.signature_chain)),
    )


_KEYS: Final = (
    _signature_fault(
        "key-signature",
        "a false signature over the derived key",
        lambda c: (flip_middle_bit(c[0]), c[1]),
    ),
    _signature_fault(
        "app-key-signature",
        "a false signature over the app key",
        lambda c: (c[0], flip_middle_bit(c[1])),
    ),
    _signature_fault("app-key-unsigned", "no signature by the key service", lambda c: (c[0], b"")),
    _signature_fault("key-chain-swapped", "signatures in the wrong order", lambda c: c[::-1]),
    Fault(
        FaultLayer.KEY,
        "unsigned-key",
        "key-chain",
        "a key that the app's key did not sign",
        lambda key: dataclasses.replace(
            AppKeys(b"\7" * 32, b"").derive("another"), signature_chain=key.signature_chain
        ),
    ),
    Fault(
        FaultLayer.KEY_SEED,
        "key-service",
        "key-chain",
        "keys of another key service",
        lambda seed: b"another key service" + seed,
    ),
)

_HOST: Final = (
    Fault(
        FaultLayer.VM_CONFIG,
        "development-image",
        "os-development",
        "an OS image that lets developers in",
        lambda config: config | {"image": "dstack-dev-0.6.0"},
    ),
    Fault(
        FaultLayer.APP_COMPOSE,
        "compose-text",
        "compose-hash",
        "another app-compose shown than measured",
        lambda text: text + " ",
        also=("compose-accepted", "mr-config-id"),
    ),
)

APP_FAULTS: Final = (*_GPU, *_KEYS, *_HOST)
