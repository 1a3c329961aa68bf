"""The names of the package `trainer.provider`, each of which imports only what it needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trainer.provider


def test_every_name_is_that_of_its_module() -> None:
    tree = ast.parse(Path(trainer.provider.__file__).read_text())
    imports = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module != "typing"
    ]
    declared = {
        alias.name: node.module for node in imports for alias in node.names if node.level == 0
    }
    declared = {
        name: module for name, module in declared.items() if str(module).startswith("trainer.")
    }
    assert sorted(declared) == sorted(trainer.provider.__all__)
    for name, module in declared.items():
        assert getattr(trainer.provider, name) is getattr(sys.modules[str(module)], name)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        trainer.provider.no_such_name  # noqa: B018


def test_validating_imports_neither_evidence_nor_a_network() -> None:
    program = "import sys, trainer.provider as p; p.find_data_files; p.write_private_file; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    ).stdout
    unneeded = (
        "httpx",
        "asyncio",
        "cryptography",
        "dcap_qvl",
        "Crypto",
        "trainer.attestation",
        "trainer.sealing",
    )
    assert [name for name in unneeded if name in found.split()] == []
