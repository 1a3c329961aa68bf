"""Reference values and revocation answers about GPUs, from NVIDIA's services or others of their kind.

    GET  {url}/v1/rim/{id}   JSON {"id", "rim": base64 of the manifest, "sha256": its digest in hex, …}; 404: none
    POST {url}               application/ocsp-request, answered by an OCSP response

All that comes is signed and judged in appraisal: a service can withhold, not forge. What is asked for is made of
reports that nobody has verified yet, so it is checked before it becomes part of an address.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from pydantic import BaseModel, ConfigDict

from trainer.attestation.evidence import FreshGpuEvidence
from trainer.attestation.nvidia.certificate_chain import MALFORMED, Chain, certified_model, parse_chain
from trainer.attestation.nvidia.gpu_endorsements import (
    MAX_ANSWER_BYTES,
    MAX_MANIFEST_BYTES,
    NO_ENDORSEMENTS,
    GpuEndorsements,
    GpuEndorsementsDocument,
)
from trainer.attestation.nvidia.ocsp import asked_about
from trainer.attestation.nvidia.rim import manifest_ids
from trainer.attestation.nvidia.spdm_report import parse_gpu_report
from trainer.attestation.policy import GpuSection, ServiceUrl
from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, UnavailableError

FETCH_SECONDS: Final = 60.0

_TRANSIENT: Final = (ocsp.OCSPResponseStatus.INTERNAL_ERROR, ocsp.OCSPResponseStatus.TRY_LATER)


class _RimAnswer(BaseModel):
    """What the RIM service answers; fields that it may add are not looked at."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    rim: str
    sha256: str | None = None


class _Service:
    """Bounded requests to one service, all of them within one time; no redirects."""

    def __init__(self, url: str, client: httpx.Client, deadline: float, clock: Callable[[], float]) -> None:
        self._url, self._client, self._deadline, self._clock = url.rstrip("/"), client, deadline, clock

    def get(self, path: str, limit: int) -> bytes | None:
        """A body of at most `limit` bytes; None if there is no such thing."""
        return self._request("GET", self._url + path, limit)

    def post(self, body: bytes, media_type: str, limit: int) -> bytes | None:
        """The answer to `body`, likewise."""
        return self._request("POST", self._url, limit, content=body, headers={"Content-Type": media_type})

    def unusable(self, why: str) -> UnavailableError:
        """What to raise where this service cannot be used."""
        return UnavailableError(
            ErrorCode.COLLATERAL_UNAVAILABLE,
            f"no GPU endorsements from {self._url}: {why}",
            hint="name another service in the policy's section `gpu`, or files",
        )

    def _request(
        self,
        method: str,
        url: str,
        limit: int,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> bytes | None:
        left = self._deadline - self._clock()
        if left <= 0:
            raise self.unusable("no answer in time")
        sent = {"Accept-Encoding": "identity"} | (headers or {})
        try:
            with self._client.stream(method, url, content=content, headers=sent, timeout=left) as answer:
                if answer.status_code == httpx.codes.NOT_FOUND:
                    return None
                if answer.status_code != httpx.codes.OK:
                    raise self.unusable(f"it answers with status {answer.status_code}")
                return self._body(answer, limit)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self.unusable(str(error) or type(error).__name__) from error

    def _body(self, answer: httpx.Response, limit: int) -> bytes:
        body = b""
        for piece in answer.iter_raw(1 << 14):
            body += piece
            if len(body) > limit:
                raise self.unusable(f"it answers with more than {limit} bytes")
            if self._clock() > self._deadline:
                raise self.unusable("no answer in time")
        return body


def fetch_gpu_endorsements(
    shown: Sequence[FreshGpuEvidence],
    demand: GpuSection,
    *,
    timeout: float = FETCH_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> GpuEndorsements:
    """What an appraisal of these reports needs from services that the policy names; nothing where it names none.

    Reports or chains that cannot be parsed are passed over: the appraisal will say what is wrong with them.

    Args:
        shown: fresh reports, unverified.
        demand: the policy's section about GPUs.
        timeout: seconds for all requests together.
        clock: seconds that only grow.

    Raises:
        UnavailableError: a service does not answer, or with something else (`collateral-unavailable`).
    """
    values, answers = demand.reference_values, demand.revocation
    if not isinstance(values, ServiceUrl) and not isinstance(answers, ServiceUrl):
        return NO_ENDORSEMENTS
    deadline = clock() + timeout
    manifests: Iterator[str] = iter(())
    responses: Iterator[bytes] = iter(())
    with httpx.Client(follow_redirects=False) as client:
        if isinstance(values, ServiceUrl):
            manifests = _manifests(shown, _Service(values.url, client, deadline, clock))
        if isinstance(answers, ServiceUrl):
            responses = _responses(shown, _Service(answers.url, client, deadline, clock))
        return GpuEndorsements(tuple(manifests), tuple(responses))


def _chain(item: FreshGpuEvidence) -> Chain:
    """The chain of a report; empty where it cannot be parsed."""
    with contextlib.suppress(ValueError):
        return parse_chain(item.certificate_chain)
    return ()


# reference values


def _manifests(shown: Sequence[FreshGpuEvidence], service: _Service) -> Iterator[str]:
    """The manifests that the service has, each once: GPUs of one kind share theirs."""
    for name in dict.fromkeys(name for item in shown for name in _manifest_names(item)):
        body = service.get(f"/v1/rim/{name}", 2 * MAX_MANIFEST_BYTES)
        if body is not None:
            yield _manifest(body, service)


def _manifest_names(item: FreshGpuEvidence) -> tuple[str, ...]:
    try:
        report = parse_gpu_report(bytes.fromhex(item.report))
        return manifest_ids(report, certified_model(parse_chain(item.certificate_chain)))
    except ValueError:
        return ()


def _manifest(body: bytes, service: _Service) -> str:
    try:
        answer = _RimAnswer.model_validate_json(body)
        manifest = base64.b64decode(answer.rim, validate=True)
        text = manifest.decode()
        GpuEndorsementsDocument(reference_values=(text,))  # what cannot be kept could not be appraised again
    except ValueError:
        raise service.unusable("it answers with something else than a manifest") from None
    if answer.sha256 is not None and answer.sha256.lower() != sha256_hex(manifest):
        raise service.unusable("a manifest does not have the digest that stands beside it")
    return text


# revocation


def _responses(shown: Sequence[FreshGpuEvidence], service: _Service) -> Iterator[bytes]:
    """One response for each certificate that can be asked about, each once: GPUs share the upper ones."""
    requests = dict.fromkeys(request for item in shown for request in _requests(_chain(item)))
    for request in requests:
        body = service.post(request, "application/ocsp-request", MAX_ANSWER_BYTES)
        if body is None:
            raise service.unusable("it answers with status 404")
        yield _final(body, service)


def _requests(chain: Chain) -> Iterator[bytes]:
    for certificate, issuer in asked_about(chain):
        with contextlib.suppress(*MALFORMED):  # such a chain will not be verified either
            builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA384())
            yield builder.build().public_bytes(Encoding.DER)


def _final(body: bytes, service: _Service) -> bytes:
    """A response that is worth appraising: not one that only asks to come back later."""
    try:
        status = ocsp.load_der_ocsp_response(body).response_status
    except ValueError:
        raise service.unusable("it answers with something else than an OCSP response") from None
    if status in _TRANSIENT:
        raise service.unusable(f"it answers {status.name.lower()}")
    return body
