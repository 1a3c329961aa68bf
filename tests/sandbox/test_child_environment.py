"""The allocator that a child starts with: found where the system has it, and named by the process that uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from trainer.sandbox.child_environment import ALLOCATOR_LIBRARY, allocator_variables


def test_an_allocator_is_taken_where_the_system_has_one(tmp_path: Path) -> None:
    assert allocator_variables([tmp_path / "none", tmp_path]) == {}
    (tmp_path / ALLOCATOR_LIBRARY).write_bytes(b"")
    assert allocator_variables([tmp_path / "none", tmp_path])["LD_PRELOAD"] == str(
        tmp_path / ALLOCATOR_LIBRARY
    )


def test_a_process_says_whose_allocator_it_has() -> None:
    code = (
        "from trainer.sandbox.child_environment import allocator_in_use; print(allocator_in_use())"
    )
    for variables in ({}, allocator_variables()):
        said = subprocess.check_output(
            [sys.executable, "-c", code], env={**os.environ, **variables}, text=True
        )
        assert said.strip() == ("tcmalloc" if variables else "system")
