"""The store's credentials leave the environment before anything else happens."""

from __future__ import annotations

import os
import subprocess
import sys

from trainer.exchange.object_store import STORE_VARIABLES
from trainer.job.store_variables import STORE_PIPE_VARIABLE, take_store_variables

STARTED = """
import sys
from trainer.job.hub_token import hide_hub_token
from trainer.job.store_variables import hide_store_variables
hide_hub_token()
hide_store_variables()
from pathlib import Path
import os
from trainer.job.hub_token import take_hub_token
from trainer.job.store_variables import take_store_variables
assert "pydantic" not in sys.modules
print(Path("/proc/self/environ").read_text().replace(chr(0), chr(10)))
print("store:", take_store_variables(os.environ), take_store_variables(os.environ), take_hub_token(os.environ))
"""


def test_the_initial_environment_does_not_hold_them() -> None:
    given = {"AWS_ACCESS_KEY_ID": "canary-key", "AWS_SECRET_ACCESS_KEY": "canary-secret"}
    out = subprocess.run(
        [sys.executable, "-P", "-c", STARTED, "run"],
        env={**os.environ, **given, "HF_TOKEN": "canary-token"},
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    ).stdout
    assert f"store: {given} {{}} canary-token" in out  # they come once
    assert out.count("canary") == 3


def test_more_than_a_pipe_holds() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"a\0" * 20_000)
    os.close(writing)
    taken = take_store_variables({STORE_PIPE_VARIABLE: str(reading)})
    assert taken == dict.fromkeys(STORE_VARIABLES, "a")
