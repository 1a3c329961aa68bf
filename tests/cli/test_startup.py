"""What `trainer --help` imports: the command line's own modules are enough."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {
    "cryptography", "httpx", "pydantic", "rich", "trainer.attestation", "trainer.exchange", "trainer.provider",
    "trainer.sealing", "trainer.spec", "yaml",
}  # fmt: skip


def test_help_imports_no_more_than_the_command_line() -> None:
    program = (
        "import runpy, sys; sys.argv = ['trainer', '--help']\n"
        "try: runpy.run_module('trainer', run_name='__main__')\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert "Usage: trainer" in done.stdout
    assert set(done.stderr.split()) & HEAVY == set()
