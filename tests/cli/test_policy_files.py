"""Names in a policy that no file can have, or that name no file: a usage error, never a fault of the tool."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from trainer.attestation.policy import policy_yaml
from trainer.cli.app import run_command_line as run
from trainer.errors import ErrorCode, ExitCode
from trainer.strict_yaml import parse_yaml

if TYPE_CHECKING:
    from tests.cli.conftest import Files

NAMES = {
    "a zero": "root\0.pem",
    "a zero at its end": "root.pem\0",
    "only a zero": "\0",
    "half of a surrogate pair": "\ud800",
    "a surrogate of an undecodable byte": "\udcff",
    "too long": "x" * 5000,
    "too many links": "a/" * 3000,
    "nothing": "",
    "a folder": ".",
    "a folder's end": "root.pem/",
    "no such file": "missing",
    "a device's name without a device": "\x1b[2J",
}
PLACES: dict[str, Callable[[str], dict[str, object]]] = {
    "trust_root": lambda name: {"file": name, "sha256": "00" * 32},
    "collateral": lambda name: {"file": name},
    "reference_values": lambda name: {"files": [name]},
    "revocation": lambda name: {"files": [name]},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_no_file_has_is_a_usage_error(
    files: Files, capsys: pytest.CaptureFixture[str], name: str, place: str
) -> None:
    text, invalid = policy_yaml(files.demanded).encode(), ErrorCode.POLICY_INVALID
    document: Any = parse_yaml(text, what="policy", limit=1 << 20, code=invalid)
    section = document["gpu"] if place in document["gpu"] else document
    section[place] = PLACES[place](NAMES[name])
    policy = files.folder / "named.yaml"
    policy.write_text(json.dumps(document))  # JSON is YAML, and can escape every character
    assert run(["policy", "explain", str(policy)]) == ExitCode.USAGE
    printed = capsys.readouterr().err
    assert printed.startswith("error[")
    assert "\0" not in printed
