"""Downloads reference values and revocation responses for GPUs, from NVIDIA's services or compatible ones.

    GET  {url}/v1/rim/{id}   JSON {"id", "rim": base64 of the manifest, "sha256": its digest in hex, …}; 404: none
    POST {url}               application/ocsp-request, answered by an OCSP response

All responses are signed and appraised later: a service can withhold, but not forge. What is requested is derived
from reports that have not been verified yet, so it is checked before it becomes part of a URL.
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
from trainer.attestation.nvidia.certificate_chain import MALFORMED, certified_model, parse_chain
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

_RETRY_LATER: Final = (ocsp.OCSPResponseStatus.INTERNAL_ERROR, ocsp.OCSPResponseStatus.TRY_LATER)


class _RimResponse(BaseModel):
    """The response of the RIM service; further fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    rim: str
    sha256: str | None = None


class _EndorsementService:
    """Size-capped requests to one service, all before one deadline; no redirects."""

    def __init__(
        self, url: str, client: httpx.Client, deadline: float, clock: Callable[[], float]
    ) -> None:
        self._url, self._client, self._deadline, self._clock = (
            url.rstrip("/"),
            client,
            deadline,
            clock,
        )

    def unavailable(self, why: str) -> UnavailableError:
        """Returns the error for a service that cannot be used."""
        return UnavailableError(
            ErrorCode.COLLATERAL_UNAVAILABLE,
            f"no GPU endorsements from {self._url}: {why}",
            hint="name another service in the policy's section `gpu`, or files",
        )

    def request(
        self,
        method: str,
        path: str,
        *,
        limit: int,
        content: bytes | None = None,
        media_type: str | None = None,
    ) -> bytes | None:
        """Returns the body of a response, of at most `limit` bytes; None for status 404.

        Args:
            method: GET or POST.
            path: what follows the service's URL.
            limit: largest acceptable body in bytes.
            content: body of the request.
            media_type: its media type.
        """
        remaining = self._deadline - self._clock()
        if remaining <= 0:
            raise self.unavailable("no answer in time")
        # Without a content encoding the limit counts the bytes that are parsed: a small body cannot expand.
        headers = {"Accept-Encoding": "identity"} | (
            {} if media_type is None else {"Content-Type": media_type}
        )
        try:
            with self._client.stream(
                method, self._url + path, content=content, headers=headers, timeout=remaining
            ) as response:
                if response.status_code == httpx.codes.NOT_FOUND:
                    return None
                if response.status_code != httpx.codes.OK:
                    raise self.unavailable(f"the response has status {response.status_code}")
                return self._read_body(response, limit)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self.unavailable(str(error) or type(error).__name__) from error

    def _read_body(self, response: httpx.Response, limit: int) -> bytes:
        body = b""
        # httpx applies its timeout to each piece; the deadline bounds a body that comes byte by byte.
        for piece in response.iter_raw(1 << 14):
            body += piece
            if len(body) > limit:
                raise self.unavailable(f"the response has more than {limit} bytes")
            if self._clock() > self._deadline:
                raise self.unavailable("no answer in time")
        return body


def fetch_gpu_endorsements(
    shown: Sequence[FreshGpuEvidence],
    demand: GpuSection,
    *,
    timeout: float = FETCH_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> GpuEndorsements:
    """Returns what an appraisal of these reports needs from the services that the policy names.

    A report or chain that cannot be parsed is skipped; the appraisal reports what is wrong with it.

    Args:
        shown: fresh reports, unverified.
        demand: the policy's section about GPUs; without services in it nothing is requested.
        timeout: seconds for all requests together.
        clock: monotonic clock, in seconds.

    Raises:
        UnavailableError: a service does not answer, or not as it should (`collateral-unavailable`).
    """
    values, answers = demand.reference_values, demand.revocation
    if not isinstance(values, ServiceUrl) and not isinstance(answers, ServiceUrl):
        return NO_ENDORSEMENTS
    deadline = clock() + timeout
    manifests: Iterator[str] = iter(())
    responses: Iterator[bytes] = iter(())
    with httpx.Client(follow_redirects=False) as client:
        if isinstance(values, ServiceUrl):
            manifests = _download_manifests(
                shown, _EndorsementService(values.url, client, deadline, clock)
            )
        if isinstance(answers, ServiceUrl):
            responses = _download_responses(
                shown, _EndorsementService(answers.url, client, deadline, clock)
            )
        return GpuEndorsements(tuple(manifests), tuple(responses))


# reference values


def _download_manifests(
    shown: Sequence[FreshGpuEvidence], service: _EndorsementService
) -> Iterator[str]:
    """Yields the manifests that the service has, each once: GPUs of one model share theirs."""
    names: dict[str, None] = {}
    for item in shown:
        # The appraisal reports what is wrong with the report or chain.
        with contextlib.suppress(ValueError):
            report = parse_gpu_report(bytes.fromhex(item.report))
            names |= dict.fromkeys(
                manifest_ids(report, certified_model(parse_chain(item.certificate_chain)))
            )
    for name in names:
        # Base64 makes 4 characters of 3 bytes; twice the manifest leaves room for the other fields.
        body = service.request("GET", f"/v1/rim/{name}", limit=2 * MAX_MANIFEST_BYTES)
        if body is not None:
            yield _parse_manifest(body, service)


def _parse_manifest(body: bytes, service: _EndorsementService) -> str:
    try:
        answer = _RimResponse.model_validate_json(body)
        manifest = base64.b64decode(answer.rim, validate=True)
        text = manifest.decode()
        GpuEndorsementsDocument(reference_values=(text,))  # raises if it is too large for a record
    except ValueError:
        raise service.unavailable("the response is not a manifest") from None
    if answer.sha256 is not None and answer.sha256.lower() != sha256_hex(manifest):
        raise service.unavailable("a manifest does not have the digest that the response states")
    return text


# revocation


def _download_responses(
    shown: Sequence[FreshGpuEvidence], service: _EndorsementService
) -> Iterator[bytes]:
    """Yields one OCSP response per certificate, each once: GPUs share the CA certificates."""
    requests = dict.fromkeys(request for item in shown for request in _build_requests(item))
    for request in requests:
        # RFC 6960, appendix A.1: the request is the body of a POST to the service's URL.
        body = service.request(
            "POST",
            "",
            limit=MAX_ANSWER_BYTES,
            content=request,
            media_type="application/ocsp-request",
        )
        if body is None:
            raise service.unavailable("the response has status 404")
        yield _require_final(body, service)


def _build_requests(item: FreshGpuEvidence) -> Iterator[bytes]:
    """Yields an OCSP request in DER for each certificate of a report's chain; none if it cannot be parsed."""
    try:
        chain = parse_chain(item.certificate_chain)
    except ValueError:
        return
    for certificate, issuer in asked_about(chain):
        with contextlib.suppress(*MALFORMED):  # such a chain will not be verified either
            builder = ocsp.OCSPRequestBuilder().add_certificate(
                certificate, issuer, hashes.SHA384()
            )
            yield builder.build().public_bytes(Encoding.DER)


def _require_final(body: bytes, service: _EndorsementService) -> bytes:
    """Returns an OCSP response that can be appraised; refuses one that only asks to retry later.

    Error responses are not signed (RFC 6960, section 2.3), so an appraisal could not judge them.
    """
    try:
        status = ocsp.load_der_ocsp_response(body).response_status
    except ValueError:
        raise service.unavailable("the response is not an OCSP response") from None
    if status in _RETRY_LATER:
        raise service.unavailable(f"the response is {status.name.lower()}")
    return body
