"""The guest agent's remote calls over a simulated VM: JSON in, JSON out; bytes travel as hex.

Source: dstack's `agent_rpc.proto` and the calls that dstack-sdk 0.5.4 makes. `Attest` is left out: its SCALE
encoding adds nothing to what `GetQuote` gives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.simulator.agent import Release, SimulatedVm
from trainer.simulator.agent_tls import TlsRequest, issue_tls_key
from trainer.simulator.key_service import Algorithm, verify_signature

REVISION: Final = "DEVELOPMENT-simulator"

Answer = dict[str, Any]
Clock = Callable[[], int]

_Hex = Annotated[str, Field(pattern=r"^([0-9a-fA-F]{2})*$")]


class MethodNotFoundError(Exception):
    """The simulated release has no such method."""


class CallError(Exception):
    """The call is known, its arguments are not right; the text names what is wrong."""


class _Arguments(BaseModel):
    """Arguments as protobuf's JSON form has them: unknown fields are ignored, missing ones are zero."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True)


class _NoArguments(_Arguments):
    pass


class _QuoteArguments(_Arguments):
    report_data: _Hex = ""


class _KeyArguments(_Arguments):
    path: str = ""
    purpose: str = ""
    algorithm: str = ""


class _EventArguments(_Arguments):
    event: str = ""
    payload: _Hex = ""


class _TlsKeyArguments(_Arguments):
    subject: str = ""
    alt_names: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    usage_ra_tls: bool = False
    usage_server_auth: bool = False
    usage_client_auth: bool = False
    not_before: int | None = None
    not_after: int | None = None
    with_app_info: bool = False


class _SignArguments(_Arguments):
    algorithm: str = ""
    data: _Hex = ""


class _VerifyArguments(_SignArguments):
    signature: _Hex = ""
    public_key: _Hex = ""


class GuestAgentRpc:
    """Remote calls of one VM.

    Args:
        vm: the VM.
        clock: seconds since 1970, for the validity of TLS certificates.
    """

    def __init__(self, vm: SimulatedVm, clock: Clock) -> None:
        self._vm = vm
        self._clock = clock
        self._methods: dict[str, tuple[type[_Arguments], Callable[[Any], Answer]]] = {
            "Info": (_NoArguments, self._info),
            "GetKey": (_KeyArguments, self._get_key),
            "GetQuote": (_QuoteArguments, self._get_quote),
            "GetTlsKey": (_TlsKeyArguments, self._get_tls_key),
            "Sign": (_SignArguments, self._sign),
            "Verify": (_VerifyArguments, self._verify),
            "Version": (_NoArguments, self._version),
        }
        if vm.options.release is Release.V0_5:
            self._methods["EmitEvent"] = (_EventArguments, self._emit_event)
        else:
            self._methods["GpuInfo"] = (_NoArguments, self._gpu_info)

    def call(self, method: str, body: bytes) -> Answer:
        """Answer one call.

        Raises:
            MethodNotFoundError: the release has no such method.
            CallError: the body is not JSON, or the arguments are not right.
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

    def _info(self, _: _NoArguments) -> Answer:
        vm = self._vm
        identity = {
            "mr_aggregated": self._aggregated().hex(),
            "os_image_hash": vm.os_image_hash.hex(),
            "compose_hash": vm.compose_hash.hex(),
            "device_id": vm.pki.device_id.hex(),
        }
        return identity | {
            "app_id": vm.app_id.hex(),
            "instance_id": vm.instance_id.hex(),
            "app_cert": "",
            "tcb_info": json.dumps(self._tcb_info() | identity, indent=2),
            "app_name": str(vm.app.get("name", "")),
            "key_provider_info": vm.key_provider,
            "vm_config": vm.vm_config,
            "cloud_vendor": "",
            "cloud_product": "",
        }

    def _tcb_info(self) -> Answer:
        td = self._vm.td_fields()
        return {
            "mrtd": td.mrtd.hex(),
            "rtmr0": td.rtmr0.hex(),
            "rtmr1": td.rtmr1.hex(),
            "rtmr2": td.rtmr2.hex(),
            "rtmr3": td.rtmr3.hex(),
            "event_log": self._vm.log_entries(with_digests=True),
            "app_compose": self._vm.shown_compose,
        }

    def _aggregated(self) -> bytes:
        td = self._vm.td_fields()
        registers = td.mrtd + td.rtmr0 + td.rtmr1 + td.rtmr2 + td.rtmr3
        configuration = td.mr_config_id + td.mr_owner + td.mr_owner_config
        return hashlib.sha256(registers + (configuration if any(configuration) else b"")).digest()

    def _get_key(self, arguments: _KeyArguments) -> Answer:
        algorithm = Algorithm.parse(arguments.algorithm)
        key = self._vm.derive_key(arguments.path, arguments.purpose, algorithm)
        return {"key": key.secret.hex(), "signature_chain": [link.hex() for link in key.signature_chain]}

    def _get_quote(self, arguments: _QuoteArguments) -> Answer:
        quote = self._vm.quote(bytes.fromhex(arguments.report_data))
        return {
            "quote": quote.quote.hex(),
            "event_log": quote.event_log,
            "report_data": quote.report_data.hex(),
            "vm_config": quote.vm_config,
        }

    def _emit_event(self, arguments: _EventArguments) -> Answer:
        self._vm.emit_event(arguments.event, bytes.fromhex(arguments.payload))
        return {}

    def _gpu_info(self, _: _NoArguments) -> Answer:
        return {"attestation": self._vm.gpu_attestation}

    def _get_tls_key(self, arguments: _TlsKeyArguments) -> Answer:
        if arguments.with_app_info:
            raise ValueError("with_app_info: not supported by the development simulator")
        request = TlsRequest(
            subject=arguments.subject,
            alt_names=arguments.alt_names,
            server_auth=arguments.usage_server_auth,
            client_auth=arguments.usage_client_auth,
            with_quote=arguments.usage_ra_tls,
            not_before=arguments.not_before,
            not_after=arguments.not_after,
        )
        issued = issue_tls_key(self._vm, request, self._clock())
        return {"key": issued.key, "certificate_chain": list(issued.certificate_chain)}

    def _sign(self, arguments: _SignArguments) -> Answer:
        signed = self._vm.keys.sign(arguments.algorithm, bytes.fromhex(arguments.data))
        return {
            "signature": signed.signature.hex(),
            "signature_chain": [link.hex() for link in signed.signature_chain],
            "public_key": signed.public_key.hex(),
        }

    def _verify(self, arguments: _VerifyArguments) -> Answer:
        data, signature, public_key = (
            bytes.fromhex(text) for text in (arguments.data, arguments.signature, arguments.public_key)
        )
        return {"valid": verify_signature(arguments.algorithm, data, signature, public_key)}

    def _version(self, _: _NoArguments) -> Answer:
        return {"version": f"{self._vm.options.release.value}-DEVELOPMENT", "rev": REVISION}
