"""The hub token leaves the environment before anything else happens, and has a strict form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.deployment import OPERATOR_VARIABLES
from trainer.errors import ErrorCode, UsageError
from trainer.job.hub_token import (
    HUB_TOKEN_PIPE_VARIABLE,
    HUB_TOKEN_VARIABLE,
    MAX_HUB_TOKEN,
    take_hub_token,
)

TOKEN = "hf_" + "x" * 30
STARTED = """
import sys
from trainer.job.hub_token import hide_hub_token
hide_hub_token()
from pathlib import Path
import os
from trainer.job.hub_token import take_hub_token
assert "pydantic" not in sys.modules
print(Path("/proc/self/environ").read_text().replace(chr(0), chr(10)))
print("token:", take_hub_token(os.environ), take_hub_token(os.environ), sys.argv[1:])
"""


def pipe_with(content: bytes) -> dict[str, str]:
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    return {HUB_TOKEN_PIPE_VARIABLE: str(reading)}


def started(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-P", "-c", STARTED, *arguments],
        env={**os.environ, HUB_TOKEN_VARIABLE: TOKEN},
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    ).stdout


def test_the_initial_environment_does_not_hold_it() -> None:
    out = started("run", "job.yaml")
    assert f"token: {TOKEN} None ['run', 'job.yaml']" in out  # it comes once
    assert out.count(TOKEN) == 1
    assert "PATH=" in out


def test_other_commands_are_not_started_again() -> None:
    out = started("verify")
    assert "token: None" in out
    assert HUB_TOKEN_PIPE_VARIABLE not in out


def test_the_variable_is_one_of_the_published_list() -> None:
    assert HUB_TOKEN_VARIABLE in OPERATOR_VARIABLES


@pytest.mark.parametrize("token", [b"hf_a", b"!", b"~" * MAX_HUB_TOKEN])
def test_form(token: bytes) -> None:
    assert take_hub_token(pipe_with(token)) == token.decode()


@pytest.mark.parametrize(
    "token",
    [
        b"", b"a b", b"a\nb", b"a\r\nX-Other: b", b"a\0", b"a\x7f", "hf_ä".encode(), b"\xff",
        b"x" * (MAX_HUB_TOKEN + 1),
    ],
)  # fmt: skip
def test_anything_else_is_refused_and_not_quoted(token: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        take_hub_token(pipe_with(token))
    error = caught.value
    assert error.code is ErrorCode.HUB_TOKEN_INVALID
    shown = f"{error} {error.hint}"
    assert token.decode("latin-1") not in shown or len(token) < 3


@pytest.mark.parametrize("number", ["999", "0x1", "-1", "", "x", "99999"])
def test_variable_that_names_no_pipe(number: str, tmp_path: Path) -> None:
    """The operator can set it; a file is not read."""
    environment = {HUB_TOKEN_PIPE_VARIABLE: number}
    if number == "999":
        with pytest.raises(UsageError):
            take_hub_token(environment)
    else:
        assert take_hub_token(environment) is None
    with (tmp_path / "file").open("wb+") as file, pytest.raises(UsageError):
        take_hub_token({HUB_TOKEN_PIPE_VARIABLE: str(file.fileno())})
