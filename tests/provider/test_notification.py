"""The end of a long wait is announced by a POST or a command, which can neither learn nor change anything."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from trainer.cli import app
from trainer.cli.app import run_command_line as run
from trainer.cli.notify_option import notify_at_end
from trainer.errors import ErrorCode, UnavailableError, UsageError
from trainer.provider import notification
from trainer.provider.notification import Notice, require_target, send_notice

DONE = Notice("submit", 0, None)
FAILED = Notice("watch", 6, "worker-died")


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A server on loopback that answers 204, or 500 below `/broken`: its URL, and what was posted to it."""
    received: list[tuple[str, bytes]] = []
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path.startswith("/broken") else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()
    thread.join()


def command(tmp_path: Path, body: str) -> str:
    script = tmp_path / "a command.py"
    script.write_text(f"import json, os, pathlib, sys, time\n{body}\n")
    return f"{sys.executable} '{script}' 'two words' $HOME"


def test_a_url_gets_the_outcome_and_nothing_else(
    posts: tuple[str, list[tuple[str, bytes]]],
) -> None:
    url, received = posts
    assert send_notice(f"{url}/hook?token=secret", FAILED) is None
    ((path, body),) = received
    assert path == "/hook?token=secret"
    assert json.loads(body) == {
        "text": "trainer watch ended with exit code 6 (worker-died)",
        "command": "watch",
        "exit_code": 6,
        "error": "worker-died",
    }


def test_a_command_gets_it_as_its_last_argument_without_a_shell(tmp_path: Path) -> None:
    wrote = tmp_path / "wrote"
    target = command(tmp_path, f"pathlib.Path({str(wrote)!r}).write_text(json.dumps(sys.argv[1:]))")
    require_target(target)
    assert send_notice(target, DONE) is None
    assert json.loads(wrote.read_text()) == ["two words", "$HOME", "trainer submit is done"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("http://127.0.0.1:9/secret", "ConnectError"),
        ("{url}/broken/secret", "status 500"),
        (f"{sys.executable} -c 'raise SystemExit(3)' secret", "exit code 3"),
    ],
)
def test_a_failure_is_said_without_the_target(
    target: str, words: str, posts: tuple[str, list[tuple[str, bytes]]]
) -> None:
    problem = send_notice(target.replace("{url}", posts[0]), DONE)
    assert problem is not None
    assert words in problem
    assert "secret" not in problem


def test_neither_takes_longer_than_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notification, "LIMIT_SECONDS", 0.2)
    assert (
        send_notice(f"{sys.executable} -c 'import time; time.sleep(60)'", DONE)
        == "it took more than 0.2 s"
    )
    assert tmp_path


@pytest.mark.parametrize("target", ["", "no-such-command-here x", "'unclosed", "ftp://host/x"])
def test_a_target_that_cannot_work_is_refused_before_the_wait(target: str) -> None:
    with pytest.raises(UsageError, match="--notify"):
        require_target(target)


@pytest.mark.parametrize(
    ("error", "notice"),
    [
        (None, DONE),
        (UnavailableError(ErrorCode.TIMEOUT, "private words"), Notice("submit", 3, "timeout")),
        (RuntimeError("private words"), Notice("submit", 1, None)),
        (OSError(13, "private words"), Notice("submit", 2, "usage")),
        (KeyboardInterrupt(), None),
    ],
)
def test_every_end_is_announced_but_the_users_own(
    error: BaseException | None, notice: Notice | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Notice] = []
    monkeypatch.setattr(notification, "send_notice", lambda _target, sending: sent.append(sending))

    def wait(**_options: Any) -> None:
        with notify_at_end("true", "submit"):
            if error is not None:
                raise error

    monkeypatch.setattr(app, "app", wait)
    code = run(["submit"])
    assert sent == ([] if notice is None else [notice])
    assert code == (130 if notice is None else notice.exit_code)


def test_a_failed_notification_changes_no_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wait(**_options: Any) -> None:
        with notify_at_end("false", "submit"):
            pass

    monkeypatch.setattr(app, "app", wait)
    assert run(["submit"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "the notification failed: exit code 1\n"
