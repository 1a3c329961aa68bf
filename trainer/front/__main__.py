"""The front: the only process that strangers reach, by network or (`--files`) by a directory.

It holds ciphertext, evidence and its own TLS key; nothing else. The supervisor starts it as
`python -m trainer.front.__main__` with one end of a socket pair; it ends when told so, or with the
supervisor.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.errors import ErrorCode
from trainer.exchange.limits import Limits
from trainer.exchange.tls import make_server_context
from trainer.front.http.asgi_app import build_app
from trainer.front.http.connection import CappedListener, StillServer, event_loop, http_config, listen
from trainer.front.http.control_client import ControlClient
from trainer.front.spool_front import serve_files
from trainer.ipc.front_messages import FrontFailed, Ready
from trainer.logs import private
from trainer.sandbox.confine import confine
from trainer.sandbox.plan import SandboxPlan
from trainer.sandbox.properties import SandboxReport
from trainer.spec import ExchangeSection

_MAX_RECORDS: Final = 1000


@dataclass(frozen=True)
class FrontSettings:
    """What the front is started with.

    Args:
        control: connected socket to the supervisor.
        spool: directory for ciphertext.
        exchange: the job spec's section.
        limits: caps.
        by_files: exchange files in `spool` instead of HTTP.
        plan: what this process is to be confined to; None (tests of the exchange alone) leaves it as it is.
    """

    control: socket.socket
    spool: Path
    exchange: ExchangeSection
    limits: Limits
    by_files: bool = False
    plan: SandboxPlan | None = None


async def serve(settings: FrontSettings) -> None:
    """Serve until the supervisor says `Shutdown` or is gone.

    Raises:
        OSError: the address is not available.
        JobError: the supervisor sent something that is no message.
    """
    limits = settings.limits
    link = await ControlClient.over(settings.control, limits)
    try:
        listener = listen(settings.exchange.host, settings.exchange.port, limits.connections)
    except OSError:
        await link.send(FrontFailed(code=ErrorCode.FRONT_DIED))
        raise
    sandbox = _confine(settings.plan)  # it listens: from here on it needs no socket but those it accepts
    app = build_app(link, settings.spool, max_upload_bytes=settings.exchange.max_upload_bytes, limits=limits)
    context, spki = make_server_context(now=int(time.time()))
    config = http_config(app, limits, context)
    await link.send(Ready(port=listener.getsockname()[1], tls_spki_sha256=spki, sandbox=sandbox))
    await _until_told(StillServer(config), listener, link)


def _confine(plan: SandboxPlan | None) -> SandboxReport:
    return {} if plan is None else confine(plan)


async def _until_told(server: StillServer, listener: CappedListener, link: ControlClient) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    listening = asyncio.create_task(link.run())
    await asyncio.wait({serving, listening}, return_when=asyncio.FIRST_COMPLETED)
    server.end()
    await serving
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    if not listening.cancelled() and (error := listening.exception()) is not None:
        raise error


def _parse(arguments: list[str]) -> FrontSettings:
    parser = argparse.ArgumentParser(prog="python -m trainer.front.__main__")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--spool", type=Path, required=True)
    parser.add_argument("--settings-json", default="{}")
    parser.add_argument("--limits-json", default="{}")
    parser.add_argument("--files", action="store_true", help="exchange files in the spool; no network")
    parser.add_argument("--plan-json", type=SandboxPlan.model_validate_json)
    given = parser.parse_args(arguments)
    return FrontSettings(
        by_files=given.files,
        control=socket.socket(fileno=given.control_fd),
        spool=given.spool,
        exchange=ExchangeSection.model_validate_json(given.settings_json),
        limits=Limits.model_validate_json(given.limits_json),
        plan=given.plan_json,
    )


def quiet_libraries() -> None:
    """Libraries' logs would let strangers fill the private log: only our own errors go to stderr."""
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_First(_MAX_RECORDS))
    private.addHandler(handler)
    private.setLevel(logging.ERROR)


class _First(logging.Filter):
    """Lets a number of records pass: a bug that strangers can trigger must not fill the log either."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = count

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 -- all records are alike
        self._left -= 1
        return self._left >= 0


def main(arguments: list[str]) -> int:
    """Entry point of the process; returns its exit status."""
    quiet_libraries()
    settings = _parse(arguments)
    try:
        if settings.by_files:
            sandbox = _confine(settings.plan)
            serve_files(settings.control, settings.spool, settings.exchange.max_upload_bytes, sandbox)
        else:
            with asyncio.Runner(loop_factory=lambda: event_loop(settings.limits)) as runner:
                runner.run(serve(settings))
    except Exception:  # noqa: BLE001 -- stderr is the private log; the supervisor sees the channel close
        private.exception("the front failed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
