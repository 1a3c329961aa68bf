"""Made-up results of nvattest have the form of a real one."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from trainer.simulator.nvattest import SimulatedGpu, nvattest_result


def test_the_simulator_writes_what_a_real_h100_wrote(vectors: Path) -> None:
    text = (vectors / "gpu" / "nvattest_h100.json").read_text()
    real, made = json.loads(text), json.loads(nvattest_result([SimulatedGpu()], "11" * 32))
    assert shape(made["claims"]) == shape(real["claims"])
    assert [shape(each) for each in payloads(made)] == [shape(each) for each in payloads(real)]
    assert text == json.dumps(real, indent=2, sort_keys=True) + "\n"


def shape(value: Any) -> Any:
    """Keys and types of a JSON value."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    return [shape(each) for each in value] if isinstance(value, list) else type(value)


def payloads(document: Any) -> list[Any]:
    (_, overall), tokens = document["detached_eat"]
    parts = [text.split(".")[1] for text in (overall, *tokens.values())]
    return [json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in parts]
