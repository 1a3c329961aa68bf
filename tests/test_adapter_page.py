"""The Python code of docs/adapter.md runs as it stands, in a directory with a base model and a result."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.made_adapter import TEMPLATE, make_adapter

PAGE = Path(__file__).parents[1] / "docs" / "adapter.md"
CODE = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(tiny_model, tmp_path / "base-model")
    (tmp_path / "result").mkdir()
    make_adapter(tiny_model, tmp_path / "result" / "adapter")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_code_answers_with_the_adapter_and_merges_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    peft_code, merge_code = CODE
    names: dict[str, Any] = {}
    exec(peft_code, names)
    assert capsys.readouterr().out.strip()
    tokenizer, ids = names["tokenizer"], names["inputs"]["input_ids"]
    assert tokenizer.decode(ids[0]) == "[user]What is a building permit?<|im_end|>[assistant]"
    exec(merge_code, {})
    merged: Any = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)
    assert (folder / "merged" / "chat_template.jinja").read_text() == TEMPLATE
    with torch.no_grad():
        expected, found = names["model"](ids).logits, merged(ids).logits
        with names["model"].disable_adapter():
            base = names["model"](ids).logits
    # bfloat16 has 8 bits of mantissa: the merged weights are the sums, rounded.
    assert (found - expected).abs().max() < 0.05 * (base - expected).abs().max()
