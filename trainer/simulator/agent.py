"""A simulated confidential VM as an object without sockets: measurements, event log, keys and quotes.

Everything is computed from seeds and the app-compose text; nothing is recorded in advance. As in dstack's guest,
that text decides where the VM's keys come from: it makes them at boot, or a key service gives them. Quotes are
signed over the registers that a replay of the VM's own event log gives. Faults change what the VM shows, but not
the root, the app-compose text and the measurements that a verifier's policy is made from.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, replace
from typing import Any, Final

from trainer.attestation.dstack.key_source import KEY_SERVICE
from trainer.encoding import canonical_json, sha256_hex
from trainer.errors import ErrorCode, UsageError
from trainer.simulator.event_log_writer import (
    SYSTEM_EVENTS,
    Event,
    RuntimeEvent,
)
from trainer.simulator.fault import FaultLayer, apply_faults
from trainer.simulator.guest_compose import parse_compose, simulated_key_source
from trainer.simulator.key_service import (
    Algorithm,
    KeyService,
    SimulatedKey,
    derive_key,
    key_provider_info,
    own_app_keys,
    service_identity,
)
from trainer.simulator.measurements import (
    BOOT_EVENTS,
    LABEL,
    SIMULATED_MRTD,
    Measurements,
    register,
    simulated_measurements,
)
from trainer.simulator.pki import DevelopmentPki
from trainer.simulator.simulator_options import Release, VmOptions
from trainer.simulator.td_report_writer import TdFields, TdFields15

__all__ = [
    "BANNER",
    "Measurements",
    "Release",
    "SimulatedQuote",
    "SimulatedVm",
    "VmOptions",
    "simulated_measurements",
]

APP_ID_BYTES: Final = 20
REPORT_DATA_BYTES: Final = 64

BANNER: Final = """\
##################################################################################
#  DEVELOPMENT GUEST AGENT: this is NOT a TEE.                                   #
#  Quotes are signed by a development root; whoever has the state directory can  #
#  sign more. They protect nothing: never seal real data to this VM.             #
##################################################################################"""
"""First output of `trainer simulate`."""


_DEFAULTS: Final = VmOptions()
_KEY_LAYERS: Final = (FaultLayer.KEY_SEED, FaultLayer.KEY)
"""Faults of a key service's keys: a VM that makes its keys itself has nothing of that kind to lie about."""


@dataclass(frozen=True)
class SimulatedQuote:
    """Response to a request for a quote; `report_data` is 64 bytes."""

    quote: bytes
    event_log: str
    report_data: bytes
    vm_config: str


class SimulatedVm:
    """One VM that runs one app.

    Args:
        app_compose: exact text of app-compose.json.
        seed: secret of at least 16 bytes: PKI, key service and instance id follow from it.
        app_id: 20 bytes from the app's first deployment under a key service. None makes this VM the first
            deployment, whose app id is the start of the compose hash; without a key service it always is.
        boot_seed: random bytes of this boot, for the keys and the instance id of a VM without a key service. None
            derives them from `seed`, so that each boot gives the same.
        options: how the VM is set up.

    Attributes:
        os_image_hash: SHA-256 in place of the digest of an OS image, which does not exist here.
        shown_compose: the app-compose text in the agent's responses.
        gpu_attestation: the GPU attestation in the agent's responses; empty without GPU.

    Raises:
        UsageError: `app_compose` is not a JSON object, or names a key provider that is not simulated.
    """

    def __init__(
        self,
        app_compose: str,
        seed: bytes,
        *,
        app_id: bytes | None = None,
        boot_seed: bytes | None = None,
        options: VmOptions = _DEFAULTS,
    ) -> None:
        self.app_compose = app_compose
        self.options = options
        self.app = parse_compose(app_compose)
        self.compose_hash = hashlib.sha256(app_compose.encode()).digest()
        source = simulated_key_source(self.app)
        self.has_key_service = source.provider == KEY_SERVICE
        if not self.has_key_service and any(fault.layer in _KEY_LAYERS for fault in options.faults):
            raise UsageError(
                ErrorCode.USAGE, "a fault", expected="a VM with a key service", found="one without"
            )
        is_first = app_id is None or not self.has_key_service
        self.app_id = self.compose_hash[:APP_ID_BYTES] if is_first else app_id or b""
        boot_seed = boot_seed or derive_key(seed, b"boot")
        of_instance = seed if self.has_key_service else boot_seed
        self.instance_id = hashlib.sha256(b"instance" + of_instance + self.app_id).digest()[:20]
        self.os_image_hash = hashlib.sha256(f"{LABEL}: image".encode()).digest()
        self.shown_compose = str(self._with_faults(FaultLayer.APP_COMPOSE, app_compose))
        self.gpu_attestation = str(self._with_faults(FaultLayer.GPU_INFO, options.gpu_attestation))
        self.pki = DevelopmentPki(seed)
        pki_arguments = self._with_faults(FaultLayer.PKI, {"seed": seed})
        self._signer = (
            self.pki if pki_arguments == {"seed": seed} else DevelopmentPki(**pki_arguments)
        )
        self.key_service = KeyService(seed)
        self.keys = self._shown_keys = own_app_keys(boot_seed)
        identity = ""
        if self.has_key_service:
            self.keys = self.key_service.app_keys(self.app_id)
            self._shown_keys = KeyService(self._with_faults(FaultLayer.KEY_SEED, seed)).app_keys(
                self.app_id
            )
            # A guest refuses another service than the text names: this one is the service that it names.
            identity = source.identity or service_identity(
                self.pki.issue_root("KMS Root CA").key.public_key()
            )
        self.key_provider = key_provider_info(source.provider or "", identity)
        self._lock = threading.Lock()
        honest = (*BOOT_EVENTS, *self._runtime_events())
        self._events: tuple[Event, ...] = self._with_faults(FaultLayer.EVENTS, honest)

    @property
    def events(self) -> tuple[Event, ...]:
        """The event log so far."""
        return self._events

    def replace_events(self, events: tuple[Event, ...]) -> None:
        """Replaces the event log, and with it the registers: a VM whose OS measured something else."""
        with self._lock:
            self._events = events

    @property
    def vm_config(self) -> str:
        """The host's configuration of the VM as JSON."""
        config = {
            "spec_version": 1,
            "os_image_hash": self.os_image_hash.hex(),
            "cpu_count": 8,
            "memory_size": 64 << 30,
            "num_gpus": self.options.gpu_count if self.options.gpu_attestation else 0,
            "image": self.options.image,
        }
        return json.dumps(self._with_faults(FaultLayer.VM_CONFIG, config), separators=(",", ":"))

    def derive_key(
        self, path: str, purpose: str = "", algorithm: Algorithm = Algorithm.SECP256K1
    ) -> SimulatedKey:
        """Derives the key for `path` with its chain of signatures."""
        key: SimulatedKey = self._with_faults(
            FaultLayer.KEY, self._shown_keys.derive(path, purpose, algorithm)
        )
        return key

    def collateral(self, now: int) -> dict[str, str]:
        """Makes collateral for this VM's quotes, issued one hour before `now` (seconds since 1970) for 30 days."""
        terms = self._with_faults(FaultLayer.COLLATERAL_TERMS, {"now": now})
        honest = self._signer.collateral(**terms, mutate=self._change_documents)
        collateral: dict[str, str] = self._with_faults(FaultLayer.COLLATERAL, honest)
        return collateral

    def log_entries(self, *, with_digests: bool) -> list[dict[str, object]]:
        """Returns the event log as JSON objects, runtime events with or without their digests."""
        honest = [event.entry(with_digest=with_digests) for event in self._events]
        entries: list[dict[str, object]] = self._with_faults(FaultLayer.EVENT_LOG, honest)
        return entries

    def event_log(self) -> str:
        """Returns the event log as JSON text; the release decides whether runtime events have digests."""
        entries = self.log_entries(with_digests=self.options.release is Release.V0_5)
        return str(
            self._with_faults(FaultLayer.EVENT_LOG_TEXT, json.dumps(entries, separators=(",", ":")))
        )

    def td_fields(self, report_data: bytes = b"") -> TdFields:
        """Returns the TD report that a quote over `report_data` (at most 64 bytes) would contain now.

        Raises:
            ValueError: `report_data` is too long.
        """
        if len(report_data) > REPORT_DATA_BYTES:
            raise ValueError(
                f"report_data: expected at most {REPORT_DATA_BYTES} bytes, got {len(report_data)}"
            )
        registers = (register(self._events, index) for index in range(4))
        rtmr0, rtmr1, rtmr2, rtmr3 = registers
        # MRCONFIGID of form 01: the byte 1, the compose hash (32 bytes), 15 zeros.
        config_id = b"\x01" + self.compose_hash + bytes(15) if self.options.config_id else bytes(48)
        fields_class = TdFields15 if self.options.td_report == "1.5" else TdFields
        honest = fields_class(
            mrtd=SIMULATED_MRTD,
            mr_config_id=config_id,
            rtmr0=rtmr0,
            rtmr1=rtmr1,
            rtmr2=rtmr2,
            rtmr3=rtmr3,
            report_data=report_data.ljust(REPORT_DATA_BYTES, b"\0"),
        )
        fields: TdFields = self._with_faults(FaultLayer.TD, honest)
        return fields

    def quote(self, report_data: bytes, **changes: bytes) -> SimulatedQuote:
        """Signs a quote over `report_data`, padded on the right with zeros to 64 bytes.

        Args:
            report_data: at most 64 bytes.
            **changes: fields of `TdFields` with other values, such as `rtmr3=bytes(48)`: a valid signature over a
                report that contradicts the rest of the evidence.

        Raises:
            ValueError: `report_data` is too long.
        """
        # One lock for registers and log: an event between them would make a log that does not replay.
        with self._lock:
            td = replace(self.td_fields(report_data), **changes)
            parts = self._with_faults(
                FaultLayer.PARTS, self._signer.parts(td, self.options.quote_version)
            )
            quote = self._with_faults(FaultLayer.QUOTE, self._signer.sign(parts))
            return SimulatedQuote(quote, self.event_log(), td.report_data, self.vm_config)

    def emit_event(self, name: str, payload: bytes) -> None:
        """Extends RTMR3 with an application's event.

        Raises:
            ValueError: the name is empty or reserved for the measured OS.
        """
        if not name or name in SYSTEM_EVENTS:
            raise ValueError("event: expected a name that the system does not use")
        event = RuntimeEvent(name, payload, self.options.event_version)
        with self._lock:
            self._events = (*self._events, event)

    def _with_faults(self, layer: FaultLayer, honest: Any) -> Any:
        return apply_faults(self.options.faults, layer, honest)

    def _change_documents(self, tcb_info: dict[str, Any], qe_identity: dict[str, Any]) -> None:
        for layer, document in (
            (FaultLayer.TCB_INFO, tcb_info),
            (FaultLayer.QE_IDENTITY, qe_identity),
        ):
            changed = self._with_faults(layer, document)
            if changed is not document:
                document.clear()
                document.update(changed)

    def _runtime_events(self) -> tuple[RuntimeEvent, ...]:
        """Returns what the OS measures into RTMR3, in the order in which it boots."""
        # Guests of dstack's 0.6 line measure each script by an event of its own, over its exact bytes.
        scripts = self.app.get("init_script") or []
        texts = (
            [scripts] if isinstance(scripts, str) else scripts if isinstance(scripts, list) else []
        )
        measured = (
            ("system-preparing", b""),
            ("app-id", self.app_id),
            ("compose-hash", self.compose_hash),
            *(("init-script-hash", hashlib.sha256(str(text).encode()).digest()) for text in texts),
            *self._gpu_payloads(),
            ("instance-id", self.instance_id),
            ("boot-mr-done", b""),
            ("os-image-hash", self.os_image_hash),
            ("key-provider", self.key_provider.encode()),
            ("storage-fs", b"zfs"),
            ("system-ready", b""),
        )
        return tuple(
            RuntimeEvent(name, payload, self.options.event_version) for name, payload in measured
        )

    def _gpu_payloads(self) -> tuple[tuple[str, bytes], ...]:
        if not self.options.gpu_attestation:
            return ()
        requirements = self.app.get("requirements")
        policy = requirements.get("gpu_policy") if isinstance(requirements, dict) else None
        attestation = {
            "version": 2,
            "provider": "nvidia",
            "devices": self.options.gpu_count,
            "cc_mode": "on",
            "devtools": False,
            "evidence_sha256": sha256_hex(self.options.gpu_attestation.encode()),
        }
        return (
            ("gpu-policy-hash", hashlib.sha256(canonical_json(policy or {})).digest()),
            ("gpu-attestation", json.dumps(attestation, separators=(",", ":")).encode()),
        )
