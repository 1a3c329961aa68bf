"""The VM's guest agent (dstack): keys, quotes, what the VM is. It answers on a unix socket inside the VM.

dstack-sdk makes the calls that it knows; `GpuInfo`, newer than the SDK, goes over the same socket with httpx.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from dstack_sdk import DstackClient
from dstack_sdk.dstack_client import get_endpoint
from pydantic import ValidationError

from trainer.encoding import parse_json
from trainer.errors import ErrorCode, UnavailableError

REPORT_DATA_BYTES: Final = 64
SECRET_BYTES: Final = 32
MAX_GPU_ATTESTATION_CHARACTERS: Final = 4 << 20
MAX_VERSION_CHARACTERS: Final = 256
DEFAULT_TIMEOUT_SECONDS: Final = 15.0
"""A quote takes well under a second on idle hardware; many VMs may share one quoting enclave."""

_NOT_THERE: Final = frozenset({404, 405, 501})
_UNKNOWN_METHOD: Final = re.compile(r"not[ _-]?found|unknown method|no such method", re.IGNORECASE)

_SIGNATURE: Final = re.compile("[0-9a-f]{130}")

Result = TypeVar("Result")


@dataclass(frozen=True)
class VmInfo:
    """What the agent says of its VM. Nothing here is proven; the quote is what counts."""

    app_id: str
    """40 hex digits."""
    instance_id: str
    app_compose: str
    """Exact text of app-compose.json; its SHA-256 is the compose hash."""
    vm_config: str
    """JSON of the VM's shape and, on newer releases, of its OS measurements; may be empty."""


@dataclass(frozen=True)
class DerivedSecret:
    """A secret from the key provider, with what shows where it came from.

    Attributes:
        secret: 32 bytes.
        public_key: the point of secp256k1 whose scalar the secret is, compressed, in hex.
        signature: the app key's signature over purpose and public key, in hex.
        app_signature: the key service's over the app key, in hex; empty where the VM has no key service.
    """

    secret: bytes = field(repr=False)
    public_key: str
    signature: str
    app_signature: str


@dataclass(frozen=True)
class Quote:
    """A quote with what is needed to make sense of it."""

    quote: bytes
    event_log: str
    vm_config: str


class GuestAgent:
    """Client of the guest agent.

    Args:
        endpoint: path of the unix socket; by default `DSTACK_SIMULATOR_ENDPOINT` or dstack's usual paths.
        timeout: seconds that any one read or write on the socket may take.

    Raises:
        UnavailableError: there is no socket (GUEST_AGENT_UNAVAILABLE).
    """

    def __init__(
        self, endpoint: str | None = None, *, timeout: float = DEFAULT_TIMEOUT_SECONDS
    ) -> None:
        self._endpoint = get_endpoint(endpoint)
        self._timeout = timeout
        try:
            self._client = DstackClient(self._endpoint, timeout=timeout)
        except FileNotFoundError as error:
            raise self._unavailable("no guest agent listens there") from error

    def info(self) -> VmInfo:
        """Returns which app runs in which VM.

        Raises:
            UnavailableError: the agent does not answer, or not in its protocol.
        """
        info = self._call("Info", self._client.info)
        return VmInfo(
            app_id=info.app_id,
            instance_id=info.instance_id,
            app_compose=info.tcb_info.app_compose,
            vm_config=info.vm_config,
        )

    def derive_key(self, path: str, purpose: str) -> DerivedSecret:
        """Returns the secret for a path, the same on every start of the same app.

        Args:
            path: what the secret is for; must be distinct for each use, since `purpose` does not change it.
            purpose: enters the signature chain only.

        Raises:
            UnavailableError: the agent does not answer, or not in its protocol.
        """
        answer = self._call("GetKey", lambda: self._client.get_key(path, purpose))
        with self._protocol("GetKey"):
            secret = answer.decode_key()
            if len(secret) != SECRET_BYTES:
                raise ValueError("wrong length")
            # The signature chain is over the public key, so the verifier needs it: a point of secp256k1.
            key = ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256K1())
            point = key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
            # Without a key service nobody signed the app's key, and the second text is empty.
            signature, app_signature = answer.signature_chain
            if not _SIGNATURE.fullmatch(signature) or not _SIGNATURE.fullmatch(
                app_signature or signature
            ):
                raise ValueError("a signature of another form")
        return DerivedSecret(secret, point.hex(), signature, app_signature)

    def quote(self, report_data: bytes) -> Quote:
        """Returns a quote over exactly these 64 bytes.

        Raises:
            ValueError: `report_data` is not 64 bytes long.
            UnavailableError: the agent does not answer, or not in its protocol.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise ValueError(
                f"report_data: expected {REPORT_DATA_BYTES} bytes, got {len(report_data)}"
            )
        answer = self._call("GetQuote", lambda: self._client.get_quote(report_data))
        with self._protocol("GetQuote"):
            quote = answer.decode_quote()
            # Only a slip of the agent is caught here; the verifier checks field and signature.
            if report_data not in quote:
                raise ValueError("the quote does not hold the report data that was asked for")
        return Quote(quote, answer.event_log, answer.vm_config)

    def gpu_attestation(self) -> str:
        """Returns the exact text of the OS's GPU attestation at boot; empty where the release has none.

        Raises:
            UnavailableError: the agent does not answer, or not in its protocol.
        """
        return self._text_if_there("GpuInfo", "attestation", MAX_GPU_ATTESTATION_CHARACTERS)

    def version(self) -> str:
        """Returns the agent's release, such as `0.6.0`; empty where the release is too old to say.

        Raises:
            UnavailableError: the agent does not answer, or not in its protocol.
        """
        return self._text_if_there("Version", "version", MAX_VERSION_CHARACTERS)

    def _call(self, method: str, call: Callable[[], Result]) -> Result:
        # A connection of its own for each call.
        with (
            self._transport(),
            self._protocol(method),
            self._client,
        ):
            return call()

    def _text_if_there(self, method: str, name: str, limit: int) -> str:
        """Returns one text of the answer to a method; empty where the agent's release lacks the method."""
        if self._endpoint.startswith(("http://", "https://")):
            client = httpx.Client(base_url=self._endpoint, timeout=self._timeout, trust_env=False)
        else:
            # Spares httpx loading the system's CAs.
            no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            transport = httpx.HTTPTransport(uds=self._endpoint, verify=no_tls)
            client = httpx.Client(
                transport=transport, base_url="http://localhost", timeout=self._timeout
            )
        with self._transport(), self._protocol(method), client:
            response = client.post(f"/{method}", json={})
            # Releases answer an unknown method in two ways: by status, or by 400 with an error text.
            if response.status_code in _NOT_THERE or (
                response.status_code == httpx.codes.BAD_REQUEST
                and _UNKNOWN_METHOD.search(response.text)
            ):
                return ""
            answer = parse_json(response.raise_for_status().content)
            text = answer[name] if isinstance(answer, dict) else None
            if not isinstance(text, str) or len(text) > limit:
                raise self._garbage(
                    method, f"`{name}`, a text of at most {limit} characters", "another form"
                )
        return text

    @contextmanager
    def _transport(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise self._unavailable(f"no answer within {self._timeout:g} seconds") from error
        except httpx.TransportError as error:
            raise self._unavailable(type(error).__name__) from error

    @contextmanager
    def _protocol(self, method: str) -> Iterator[None]:
        """Turns errors in an answer into UnavailableError without their causes, which may quote a key."""
        try:
            yield
        except httpx.HTTPStatusError as error:
            raise self._garbage(method, "HTTP status 200", error.response.status_code) from None
        except (httpx.RemoteProtocolError, httpx.DecodingError):
            raise self._garbage(method, "an HTTP response", "something else") from None
        except ValidationError as error:
            where = (
                ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
                or "answer"
            )
            raise self._garbage(method, f"a usable `{where}`", "another form") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._garbage(method, "the form of dstack's API", type(error).__name__) from None

    def _unavailable(self, reason: str) -> UnavailableError:
        return UnavailableError(
            ErrorCode.GUEST_AGENT_UNAVAILABLE,
            f"guest agent at {self._endpoint}: {reason}",
            hint="inside a dstack VM, mount its socket into the container "
            "(volumes: /var/run/dstack.sock:/var/run/dstack.sock); "
            "for development, start `trainer simulate --socket PATH` and set DSTACK_SIMULATOR_ENDPOINT=PATH",
        )

    def _garbage(self, method: str, expected: str, found: object) -> UnavailableError:
        return UnavailableError(
            ErrorCode.GUEST_AGENT_PROTOCOL,
            f"guest agent at {self._endpoint}: {method}",
            expected=expected,
            found=found,
            hint="this needs a dstack guest agent of release 0.5 or later",
        )
