"""A sample of the campaign over chat templates: templates in the manner of well-known families."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.examples.templates import FAMILIES
from trainer.data.examples.row_encoding import encode
from trainer.spec import DataSection, TrainOn


@pytest.fixture(scope="module")
def campaign() -> Iterator[Any]:
    """The module behind `scripts/soak templates`."""
    before = sys.path[:]
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    try:
        yield importlib.import_module("template_campaign")
    finally:
        sys.path[:] = before


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_lost_and_no_mask_is_wrong(family: str, campaign: Any) -> None:
    template = FAMILIES[family].template
    pairs = [
        campaign.run_pair(family, template, conversation) for conversation in campaign.CONVERSATIONS
    ]
    assert [pair.faults for pair in pairs if pair.faults] == []
    refused = {pair.conversation: pair.refused for pair in pairs if pair.refused is not None}
    assert not {"plain", "turns", "unicode", "code", "short", "long"} & refused.keys()
    assert set(refused.values()) <= {"dataset-unrendered", "dataset-row-invalid"}
    assert (refused.get("reasoning") is None) == (family == "qwen")
    assert (refused.get("call") is None) == (family == "qwen")


def test_the_judge_sees_a_wrong_mask_and_a_lost_text(campaign: Any) -> None:
    template, row = FAMILIES["chatml"].template, campaign.CONVERSATIONS["turns"]
    tokenizer = campaign.make_tokenizer(template)
    last = DataSection(max_length=1000, train_on=TrainOn.LAST_TURN)
    (fault,) = campaign._find_faults(template, row, encode(row, tokenizer, last), tokenizer)
    assert fault.startswith("trained on ")
    other = campaign.CONVERSATIONS["plain"]
    faults = list(
        campaign._find_faults(template, row, encode(other, tokenizer, DataSection()), tokenizer)
    )
    assert [fault.partition(":")[0] for fault in faults[:-1]] == ["lost", "lost"]
