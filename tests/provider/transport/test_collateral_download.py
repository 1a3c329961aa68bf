"""Collateral from a stand-in of Intel's service, with real documents and with the development PKI's."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote as percent

import dcap_qvl
import pytest

from trainer.errors import ErrorCode, UnavailableError, VerificationError
from trainer.provider.transport.collateral_download import earliest_next_update, fetch_collateral
from trainer.simulator.pki import DevelopmentPki
from trainer.simulator.td_report_writer import TdFields

MID_JULY_2025 = 1752500000
NOW = 1_800_000_000


class Service:
    """PCS v4 answers out of one collateral document."""

    def __init__(self, collateral: dict[str, str]) -> None:
        self.collateral = collateral
        self.requests: list[str] = []
        self.broken: str | None = None
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.requests.append(self.path)
                body, headers = service.answer(self.path)
                self.send_response(200 if body else 404)
                for name, value in headers.items():
                    self.send_header(name, percent(value))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.05])
        self._thread.start()

    def answer(self, path: str) -> tuple[bytes, dict[str, str]]:
        known = self.collateral
        if self.broken is not None and self.broken in path:
            return b"{}", {}
        if "/rootcacrl" in path:
            return known["root_ca_crl"].encode(), {}
        if "/pckcrl?ca=platform" in path:
            return bytes.fromhex(known["pck_crl"]), {
                "SGX-PCK-CRL-Issuer-Chain": known["pck_crl_issuer_chain"]
            }
        if "/tdx/certification/v4/tcb?fmspc=" in path:
            body = f'{{"tcbInfo":{known["tcb_info"]},"signature":"{known["tcb_info_signature"]}"}}'
            return body.encode(), {"TCB-Info-Issuer-Chain": known["tcb_info_issuer_chain"]}
        if "/tdx/certification/v4/qe/identity" in path:
            body = f'{{"enclaveIdentity":{known["qe_identity"]},"signature":"{known["qe_identity_signature"]}"}}'
            return body.encode(), {
                "SGX-Enclave-Identity-Issuer-Chain": known["qe_identity_issuer_chain"]
            }
        return b"", {}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[[dict[str, str]], Service]]:
    services: list[Service] = []

    def start(collateral: dict[str, str]) -> Service:
        services.append(Service(collateral))
        return services[-1]

    yield start
    for service in services:
        service.close()


@pytest.fixture
def development(serve: Callable[[dict[str, str]], Service]) -> tuple[bytes, Service]:
    pki = DevelopmentPki(b"seed of sixteen+")
    return pki.quote(TdFields()), serve(pki.collateral(NOW, valid_seconds=1000))


def test_real_quote_verifies_with_what_was_fetched(
    vectors: Path, serve: Callable[[dict[str, str]], Service], tmp_path: Path
) -> None:
    quote = (vectors / "tdx" / "tdx_quote.bin").read_bytes()
    service = serve(json.loads((vectors / "tdx" / "tdx_quote_collateral.json").read_text()))
    data = fetch_collateral(quote, service.url, cache_dir=tmp_path, now=MID_JULY_2025)
    collateral = dcap_qvl.QuoteCollateralV3.from_json(data.decode())
    assert dcap_qvl.verify(quote, collateral, MID_JULY_2025).status == "UpToDate"
    assert "pck_certificate_chain" not in json.loads(data)


def test_development_quote_verifies_with_what_was_fetched(
    development: tuple[bytes, Service], tmp_path: Path
) -> None:
    quote, service = development
    data = fetch_collateral(quote, service.url, cache_dir=None, now=NOW)
    root = DevelopmentPki(b"seed of sixteen+").root_der
    collateral = dcap_qvl.QuoteCollateralV3.from_json(data.decode())
    assert dcap_qvl.verify_with_root_ca(quote, collateral, root, NOW).status == "UpToDate"


def test_cache_until_the_first_part_ends(
    development: tuple[bytes, Service], tmp_path: Path
) -> None:
    quote, service = development

    def fetch(now: int) -> int:
        before = len(service.requests)
        fetch_collateral(quote, service.url, cache_dir=tmp_path / "cache", now=now)
        return len(service.requests) - before

    assert fetch(NOW) == 4
    (cached,) = (tmp_path / "cache").iterdir()
    assert earliest_next_update(cached.read_bytes()) == NOW + 1000
    assert fetch(NOW + 999) == 0
    assert fetch(NOW + 1000) == 4
    cached.write_bytes(b"{}")
    assert fetch(NOW) == 4
    assert cached.stat().st_mode & 0o777 == 0o600


def test_cache_is_per_service(development: tuple[bytes, Service], tmp_path: Path) -> None:
    quote, service = development
    fetch_collateral(quote, service.url, cache_dir=tmp_path, now=NOW)
    fetch_collateral(quote, service.url + "/", cache_dir=tmp_path, now=NOW)
    assert len(list(tmp_path.iterdir())) == 2


def test_cache_that_cannot_be_written(development: tuple[bytes, Service], tmp_path: Path) -> None:
    quote, service = development
    (tmp_path / "file").write_bytes(b"")
    assert fetch_collateral(quote, service.url, cache_dir=tmp_path / "file", now=NOW)


@pytest.mark.parametrize("part", ["rootcacrl", "pckcrl", "tcb?", "qe/identity"])
def test_service_that_answers_nonsense(
    development: tuple[bytes, Service], tmp_path: Path, part: str
) -> None:
    quote, service = development
    service.broken = part
    with pytest.raises(UnavailableError) as caught:
        fetch_collateral(quote, service.url, cache_dir=tmp_path, now=NOW)
    assert caught.value.code is ErrorCode.COLLATERAL_UNAVAILABLE
    assert list(tmp_path.iterdir()) == []


def test_nobody_serves(development: tuple[bytes, Service], tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        fetch_collateral(development[0], "http://127.0.0.1:1", cache_dir=tmp_path, now=NOW)


def test_what_is_no_quote(tmp_path: Path) -> None:
    with pytest.raises(VerificationError) as caught:
        fetch_collateral(b"\x04" * 1000, "http://127.0.0.1:1", cache_dir=tmp_path, now=NOW)
    assert caught.value.code is ErrorCode.EVIDENCE_INVALID
