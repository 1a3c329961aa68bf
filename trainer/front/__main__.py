"""Entry point of the front: the only process that serves clients, over HTTP or (`--files`) over a directory.

The front holds ciphertext, evidence and its own TLS key, and nothing else. The supervisor starts it as
`python -m trainer.front.__main__` with one end of a socket pair. The front exits after a `Shutdown` message or
when the supervisor closes the socket.
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

from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode
from trainer.exchange.limits import Limits
from trainer.exchange.spool import SpoolDirectory
from trainer.exchange.tls import make_server_context
from trainer.exchange.upload_authorization import UploadGate
from trainer.front.http.asgi_app import build_app
from trainer.front.http.connection import (
    CappedListener,
    EventDrivenServer,
    HandshakeLimitLoop,
    http_config,
    open_listener,
)
from trainer.front.http.control_client import ControlClient
from trainer.front.spool_front import SpoolFront
from trainer.ipc.front_messages import FrontFailed, Ready, front_channel
from trainer.logs import limited_handler, private
from trainer.sandbox.confine import confine
from trainer.sandbox.plan import SandboxPlan
from trainer.sandbox.properties import SandboxReport
from trainer.spec import ExchangeSection


@dataclass(frozen=True)
class FrontSettings:
    """Settings of a front process.

    Args:
        control: connected socket to the supervisor.
        spool: directory for ciphertext.
        exchange: section `exchange` of the job spec.
        limits: limits on sizes, times and counts.
        by_files: whether to exchange files in `spool` instead of HTTP.
        plan: the sandbox that this process enters; None (tests of the exchange alone) enters none.
    """

    control: socket.socket
    spool: Path
    exchange: ExchangeSection
    limits: Limits
    by_files: bool = False
    plan: SandboxPlan | None = None


async def serve(settings: FrontSettings) -> None:
    """Serves HTTP until the supervisor sends `Shutdown` or closes the channel.

    Raises:
        OSError: the address is not available.
        JobError: the supervisor sent bytes that are not a message.
    """
    limits = settings.limits
    control = await ControlClient.over_socket(settings.control, limits)
    try:
        listener = open_listener(settings.exchange.host, settings.exchange.port, limits.connections)
    except OSError:
        await control.send(FrontFailed(code=ErrorCode.FRONT_DIED))
        raise
    # The sandbox forbids new sockets, so the listening socket has to exist before it. No client byte is read until
    # the sandbox is in place.
    sandbox = _confine_process(settings.plan)
    context, key = make_server_context(now=int(time.time()))
    exchange = settings.exchange
    gate = UploadGate(exchange.providers, sha256_hex(key), exchange.joint)
    app = build_app(
        control,
        settings.spool,
        max_upload_bytes=exchange.max_upload_bytes,
        limits=limits,
        gate=gate,
    )
    config = http_config(app, limits, context)
    # The claims attest this key: a man in the middle with another TLS key is detected by the provider.
    await control.send(Ready(port=listener.getsockname()[1], tls_key=key.hex(), sandbox=sandbox))
    await _serve_until_shutdown(EventDrivenServer(config), listener, control)


def _confine_process(plan: SandboxPlan | None) -> SandboxReport:
    return {} if plan is None else confine(plan)


async def _serve_until_shutdown(
    server: EventDrivenServer, listener: CappedListener, control: ControlClient
) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    listening = asyncio.create_task(control.run())
    await asyncio.wait({serving, listening}, return_when=asyncio.FIRST_COMPLETED)
    # Responses in progress are completed before the process exits.
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
    parser.add_argument(
        "--files", action="store_true", help="exchange files in the spool; no network"
    )
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
    """Sends only this project's errors to stderr.

    Logs of libraries hold one line per malformed request, so a client could fill the private log with them.
    """
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    private.addHandler(limited_handler(sys.stderr))
    private.setLevel(logging.ERROR)


def main(arguments: list[str]) -> int:
    """Runs the front; returns the exit status of the process."""
    quiet_libraries()
    settings = _parse(arguments)
    try:
        if settings.by_files:
            sandbox = _confine_process(settings.plan)
            spool, channel = SpoolDirectory(settings.spool), front_channel(settings.control)
            limit, joint = settings.exchange.max_upload_bytes, settings.exchange.joint
            gate = UploadGate(settings.exchange.providers, None, joint)
            SpoolFront(spool, channel, limit, gate, sandbox).run()
        else:
            with asyncio.Runner(loop_factory=lambda: HandshakeLimitLoop(settings.limits)) as runner:
                runner.run(serve(settings))
    except Exception:  # noqa: BLE001 -- stderr is the private log; the supervisor sees the channel close
        private.exception("the front failed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
