"""A stand-in hub that answers as the real one does."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISION = "0123456789abcdef" * 2 + "01234567"


class Hub:
    """Answers of a model hub: small files directly, large ones by a redirect to a store, ETags as there.

    Attributes:
        token: what requests must have as their bearer token; the store asks for none.
        store: address of another hub's store; its own if empty.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.cut_after: int | None = None
        self.token: str | None = None
        self.store = ""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, *, with_body: bool) -> None:
                hub.requests.append((self.command, self.path, dict(self.headers)))
                prefix = f"/org/model/resolve/{REVISION}/"
                stored = self.path.startswith("/store/")
                name = self.path.removeprefix("/store/" if stored else prefix)
                content = hub.files.get(name) if stored or self.path.startswith(prefix) else None
                if (
                    hub.token
                    and not stored
                    and self.headers["Authorization"] != f"Bearer {hub.token}"
                ):
                    self.send_response(401)
                    self.send_header("X-Error-Code", "GatedRepo")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if content is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                digest = hashlib.sha256(content).hexdigest()
                large = name.endswith(".safetensors")
                start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
                self.send_response(302 if large and not stored else 206 if start else 200)
                if large and not stored:
                    self.send_header("Location", f"{hub.store or hub.url}/store/{name}")
                    self.send_header("X-Linked-Etag", f'"{digest}"')
                    self.send_header("X-Linked-Size", str(len(content)))
                    content = b""
                self.send_header("X-Repo-Commit", REVISION)
                self.send_header("ETag", f'"{digest[:40]}"')
                self.send_header("Content-Length", str(len(content) - start))
                if start:
                    self.send_header(
                        "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                    )
                self.end_headers()
                if (
                    with_body
                    and stored
                    and hub.cut_after is not None
                    and len(content) > hub.cut_after
                ):
                    content, hub.cut_after = content[: hub.cut_after], None
                    self.close_connection = True
                if with_body:
                    with contextlib.suppress(OSError):
                        self.wfile.write(content[start:])

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.05])
        self._thread.start()

    @property
    def url(self) -> str:
        """Address, as HF_ENDPOINT names it."""
        return f"http://127.0.0.1:{self.port}"

    def tokens(self) -> set[str | None]:
        """What the requests had in the header Authorization."""
        return {
            next(
                (value for name, value in headers.items() if name.lower() == "authorization"), None
            )
            for _, _, headers in self.requests
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
