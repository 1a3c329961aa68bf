"""The guest agent's remote calls on a simulated VM: JSON requests and responses, with bytes in hex.

Only the calls that a job makes exist. The other calls of dstack's agent (`GetTlsKey`, `Sign`, `Verify`,
`EmitEvent`, `Attest`) raise `MethodNotFoundError`, as does a call that the simulated release lacks.

Source: dstack's `agent_rpc.proto`, and the requests that dstack-sdk 0.5.4 sends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.simulator.agent import Release, SimulatedVm
from trainer.simulator.key_service import Algorithm

REVISION: Final = "DEVELOPMENT-simulator"

RpcResponse = dict[str, Any]

_Hex = Annotated[str, Field(pattern=r"^([0-9a-fA-F]{2})*$")]


class MethodNotFoundError(Exception):
    """The simulated release has no such method."""


class CallError(Exception):
    """The arguments of a known call are invalid; the text names the argument."""


class _Arguments(BaseModel):
    """Arguments in protobuf's JSON form: unknown fields are ignored, missing fields are zero."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True)


class _NoArguments(_Arguments):
    pass


class _QuoteArguments(_Arguments):
    report_data: _Hex = ""


class _KeyArguments(_Arguments):
    path: str = ""
    purpose: str = ""
    algorithm: str = ""


class GuestAgentRpc:
    """Answers the remote calls on one VM.

    Args:
        vm: source of the keys, quotes and measurements.
    """

    def __init__(self, vm: SimulatedVm) -> None:
        self._vm = vm
        self._methods: dict[str, tuple[type[_Arguments], Callable[[Any], RpcResponse]]] = {
            "Info": (_NoArguments, self._info),
            "GetKey": (_KeyArguments, self._get_key),
            "GetQuote": (_QuoteArguments, self._get_quote),
            "Version": (
                _NoArguments,
                lambda _: {"version": f"{vm.options.release.value}-DEVELOPMENT", "rev": REVISION},
            ),
        }
        if vm.options.release is not Release.V0_5:
            self._methods["GpuInfo"] = (_NoArguments, lambda _: {"attestation": vm.gpu_attestation})

    def call(self, method: str, body: bytes) -> RpcResponse:
        """Answers one call.

        Raises:
            MethodNotFoundError: the release has no such method.
            CallError: the body is not JSON, or an argument is invalid.
        """
        if method not in self._methods:
            raise MethodNotFoundError
        arguments, answer = self._methods[method]
        try:
            return answer(arguments.model_validate_json(body or b"{}"))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            raise CallError(f"{where}: {first['msg']}") from None
        except ValueError as error:
            raise CallError(str(error)) from error

    def _info(self, _: _NoArguments) -> RpcResponse:
        vm, td = self._vm, self._vm.td_fields()
        # SHA-256(MRTD ‖ RTMR0 to RTMR3 ‖ MRCONFIGID ‖ MROWNER ‖ MROWNERCONFIG), the last three unless all are 0.
        registers = td.mrtd + td.rtmr0 + td.rtmr1 + td.rtmr2 + td.rtmr3
        configuration = td.mr_config_id + td.mr_owner + td.mr_owner_config
        aggregated = registers + (configuration if any(configuration) else b"")
        identity = {
            "mr_aggregated": hashlib.sha256(aggregated).hexdigest(),
            "os_image_hash": vm.os_image_hash.hex(),
            "compose_hash": vm.compose_hash.hex(),
            "device_id": vm.pki.device_id.hex(),
        }
        tcb_info = {
            "mrtd": td.mrtd.hex(),
            "rtmr0": td.rtmr0.hex(),
            "rtmr1": td.rtmr1.hex(),
            "rtmr2": td.rtmr2.hex(),
            "rtmr3": td.rtmr3.hex(),
            "event_log": vm.log_entries(with_digests=True),
            "app_compose": vm.shown_compose,
        }
        return identity | {
            "app_id": vm.app_id.hex(),
            "instance_id": vm.instance_id.hex(),
            "app_cert": "",
            "tcb_info": json.dumps(tcb_info | identity, indent=2),
            "app_name": str(vm.app.get("name", "")),
            "key_provider_info": vm.key_provider,
            "vm_config": vm.vm_config,
            "cloud_vendor": "",
            "cloud_product": "",
        }

    def _get_key(self, arguments: _KeyArguments) -> RpcResponse:
        algorithm = Algorithm.parse(arguments.algorithm)
        key = self._vm.derive_key(arguments.path, arguments.purpose, algorithm)
        return {
            "key": key.secret.hex(),
            "signature_chain": [link.hex() for link in key.signature_chain],
        }

    def _get_quote(self, arguments: _QuoteArguments) -> RpcResponse:
        quote = self._vm.quote(bytes.fromhex(arguments.report_data))
        return {
            "quote": quote.quote.hex(),
            "event_log": quote.event_log,
            "report_data": quote.report_data.hex(),
            "vm_config": quote.vm_config,
        }
