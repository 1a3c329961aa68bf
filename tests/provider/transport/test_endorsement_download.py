"""GPUs' endorsements from stand-ins of NVIDIA's services; nothing here is verified, as in the fetching itself."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, pairwise
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from trainer.attestation.evidence import FreshGpuEvidence
from trainer.attestation.nvidia.gpu_endorsements import (
    MAX_ANSWER_BYTES,
    MAX_MANIFEST_BYTES,
    NO_ENDORSEMENTS,
)
from trainer.attestation.policy import GpuSection, ReferenceManifests, RevocationAnswers, ServiceUrl
from trainer.errors import ErrorCode, UnavailableError
from trainer.provider.transport.endorsement_download import fetch_gpu_endorsements

NOW = dt.datetime(2026, 9, 1, tzinfo=dt.UTC)
HOPPER = ("GPU firmware", "GH100 A01 GSP BROM", "provisioner", "identity", "root")
DRIVER = "/v1/rim/NV_GPU_DRIVER_GH100_550.90.07"
VBIOS = "/v1/rim/NV_GPU_VBIOS_1010_0200_882_96009F0001"
BOARD = {15: b"882\0", 17: b"1010\0", 18: b"0200\0"}


def field_bytes(kind: int, value: bytes) -> bytes:
    return kind.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value


def report(**changes: bytes) -> str:
    """A report in hex, with a signature of zeros."""
    fields = {3: b"550.90.07\0", 6: bytes.fromhex("009f009601000000"), 20: bytes(48), **BOARD}
    opaque = b"".join(
        field_bytes(*each)
        for each in (fields | {int(k[1:]): v for k, v in changes.items()}).items()
    )
    answer = (
        b"\x11\x60\0\0\0\0\0\0" + bytes(32) + len(opaque).to_bytes(2, "little") + opaque + bytes(96)
    )
    return (b"\x11\xe0\x01\xff" + bytes(33) + answer).hex()


def certificates(*names: str, serial: int = 1) -> list[x509.Certificate]:
    """A chain; those above the GPU's own are the same for all GPUs."""
    keys = {name: ec.derive_private_key(len(name) + 7, ec.SECP384R1()) for name in names}
    made = []
    for place, (name, issuer) in enumerate(pairwise([*names, names[-1]])):
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name.from_rfc4514_string(f"CN={issuer}"),
            subject_name=x509.Name.from_rfc4514_string(f"CN={name}"),
            public_key=keys[name].public_key(),
            serial_number=serial if place < 2 else 1000 + place,
            not_valid_before=NOW,
            not_valid_after=NOW + dt.timedelta(days=1),
        )
        made.append(builder.sign(keys[issuer], hashes.SHA384(), ecdsa_deterministic=True))
    return made


def shown(*names: str, serial: int = 1, **changes: bytes) -> FreshGpuEvidence:
    chain = certificates(*(names or HOPPER), serial=serial)
    pem = "".join(each.public_bytes(Encoding.PEM).decode() for each in chain)
    return FreshGpuEvidence(report=report(**changes), certificate_chain=pem)


def unsuccessful(status: ocsp.OCSPResponseStatus) -> bytes:
    return ocsp.OCSPResponseBuilder.build_unsuccessful(status).public_bytes(Encoding.DER)


UNAUTHORIZED = unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED)


def rim(text: str = "<a/>", **changes: Any) -> bytes:
    document = {
        "id": "x",
        "rim": base64.b64encode(text.encode()).decode(),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "rim_format": "TCG",
    }
    return json.dumps(document | changes).encode()


@dataclass
class Service:
    """Answers of both services; what it was asked is kept."""

    files: dict[str, bytes] = field(
        default_factory=lambda: {DRIVER: rim("<driver/>"), VBIOS: rim("<vbios/>")}
    )
    answer: bytes = UNAUTHORIZED
    status: int = 200
    location: str = ""
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    url: str = ""

    def start(self) -> ThreadingHTTPServer:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(service.files.get(self.path))

            def do_POST(self) -> None:
                self.reply(service.answer)

            def reply(self, body: bytes | None) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                service.asked.append((self.path, self.headers.get("Content-Type", ""), sent))
                self.send_response(404 if body is None else service.status)
                if service.location:
                    self.send_header("Location", service.location)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        return server


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    server = made.start()
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def demand(**changes: Any) -> GpuSection:
    """What a policy may say; loopback has no https, which the policy itself would insist on."""
    return GpuSection(
        required=True,
        boot="any",
        fresh="required",
        count="any",
        models="any",
        min_driver_version="any",
        min_vbios_version="any",
        firmware_id="required",
        devtools="any",
        reference_values="any",
        revocation="any",
    ).model_copy(update=changes)


def at(url: str) -> ServiceUrl:
    return ServiceUrl.model_construct(url=url)


def test_manifests_are_fetched_by_the_names_that_reports_give(service: Service) -> None:
    found = fetch_gpu_endorsements(
        [shown(), shown(serial=2)], demand(reference_values=at(service.url + "/"))
    )
    assert found.reference_values == ("<driver/>", "<vbios/>")
    assert found.revocation == ()
    assert [path for path, _, _ in service.asked] == [DRIVER, VBIOS]


def test_a_manifest_that_does_not_exist_is_for_the_appraisal_to_miss(service: Service) -> None:
    del service.files[DRIVER]
    found = fetch_gpu_endorsements([shown()], demand(reference_values=at(service.url)))
    assert found.reference_values == ("<vbios/>",)


def test_a_manifest_without_a_digest_is_taken(service: Service) -> None:
    service.files[DRIVER] = rim("<driver/>", sha256=None)
    assert (
        len(
            fetch_gpu_endorsements(
                [shown()], demand(reference_values=at(service.url))
            ).reference_values
        )
        == 2
    )


def test_the_responder_is_asked_about_every_certificate_once(service: Service) -> None:
    found = fetch_gpu_endorsements([shown(), shown(serial=2)], demand(revocation=at(service.url)))
    assert found.revocation == (UNAUTHORIZED,) * 4
    assert found.reference_values == ()
    requests = [ocsp.load_der_ocsp_request(body) for _, _, body in service.asked]
    assert [each.serial_number for each in requests] == [1, 1002, 1003, 2]
    assert {kind for _, kind, _ in service.asked} == {"application/ocsp-request"}


def test_both_are_fetched_where_both_are_demanded(service: Service) -> None:
    found = fetch_gpu_endorsements(
        [shown()], demand(reference_values=at(service.url), revocation=at(service.url))
    )
    assert (len(found.reference_values), len(found.revocation)) == (2, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reference_values": ReferenceManifests(documents=("<a/>",))},
        {"revocation": RevocationAnswers(responses=("AAAA",))},
    ],
)
def test_nothing_is_fetched_that_no_service_is_named_for(changes: Any) -> None:
    assert fetch_gpu_endorsements([shown()], demand(**changes)) == NO_ENDORSEMENTS


@pytest.mark.parametrize(
    ("item", "paths"),
    [
        (FreshGpuEvidence(report="00", certificate_chain="none"), []),
        (shown(k17=b"../../x\0"), ["/"] * 3),
        (shown(*HOPPER, k15=b"8 2\0"), ["/"] * 3),
    ],
    ids=["nothing", "a path for a name", "spaces in a name"],
)
def test_what_names_nothing_is_not_asked_for(
    service: Service, item: FreshGpuEvidence, paths: list[str]
) -> None:
    fetch_gpu_endorsements(
        [item], demand(reference_values=at(service.url), revocation=at(service.url))
    )
    assert [path for path, _, _ in service.asked] == paths


def test_nobody_is_asked_where_no_report_was_shown(service: Service) -> None:
    asked = demand(reference_values=at(service.url), revocation=at(service.url))
    assert fetch_gpu_endorsements([], asked) == NO_ENDORSEMENTS
    assert service.asked == []


UNUSABLE: dict[str, tuple[str, Callable[[Service], object]]] = {
    "no JSON": ("the response is not a manifest", lambda s: s.files.update({DRIVER: b"<html>"})),
    "no manifest": ("the response is not a manifest", lambda s: s.files.update({DRIVER: b"{}"})),
    "no base64": (
        "the response is not a manifest",
        lambda s: s.files.update({DRIVER: rim(rim="!")}),
    ),
    "no text": (
        "the response is not a manifest",
        lambda s: s.files.update({DRIVER: rim(rim="/w==")}),
    ),
    "no ASCII": ("the response is not a manifest", lambda s: s.files.update({DRIVER: rim("é")})),
    "another digest": (
        "does not have the digest",
        lambda s: s.files.update({DRIVER: rim(sha256="00" * 32)}),
    ),
    "a manifest without end": (
        "more than",
        lambda s: s.files.update({DRIVER: rim("x" * 2 * MAX_MANIFEST_BYTES)}),
    ),
    "an error": ("status 500", lambda s: setattr(s, "status", 500)),
    "a redirect": (
        "status 302",
        lambda s: vars(s).update(status=302, location="file:///etc/passwd"),
    ),
    "no OCSP": ("the response is not an OCSP", lambda s: setattr(s, "answer", b"<html>")),
    "an answer without end": (
        "more than",
        lambda s: setattr(s, "answer", bytes(MAX_ANSWER_BYTES + 1)),
    ),
    "no responder": ("status 404", lambda s: setattr(s, "answer", None)),
    "a busy responder": (
        "try_later",
        lambda s: setattr(s, "answer", unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)),
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_service_that_answers_otherwise_is_named(service: Service, name: str) -> None:
    words, change = UNUSABLE[name]
    change(service)
    with pytest.raises(UnavailableError, match=words) as refused:
        fetch_gpu_endorsements(
            [shown()], demand(reference_values=at(service.url), revocation=at(service.url))
        )
    assert refused.value.code is ErrorCode.COLLATERAL_UNAVAILABLE
    assert service.url in str(refused.value)


def test_nobody_serves() -> None:
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:1"):
        fetch_gpu_endorsements([shown()], demand(revocation=at("http://127.0.0.1:1")))


@pytest.mark.parametrize(
    "ticks", [[0, 61], [0, 1, 61]], ids=["before a request", "while a body comes"]
)
def test_all_requests_share_one_time(service: Service, ticks: list[float]) -> None:
    rest = count(100)

    def clock() -> float:
        return ticks.pop(0) if ticks else next(rest)

    with pytest.raises(UnavailableError, match="no answer in time"):
        fetch_gpu_endorsements([shown()], demand(reference_values=at(service.url)), clock=clock)
