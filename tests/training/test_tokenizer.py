"""The shared tokenizer code gives what transformers gives: the same text, the same ids, on the same files."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trainer.data.examples.example_set import build_dataset
from trainer.data.examples.held_out import seed_split_key
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.tokenizer_files import read_tokenizer
from trainer.data.rows import ChatRow, Message, TextRow, ToolCall
from trainer.errors import ErrorCode, JobError
from trainer.spec import DataSection
from trainer.training.tokenizer import load_tokens

ROOT = Path(__file__).parents[2]


def _module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


FAMILIES = _module("templates", ROOT / "tests" / "data" / "examples" / "templates.py").FAMILIES

CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": " Hej, <b>världen</b>! \n\n 12345 \u2028 😀"},
    {"role": "assistant", "content": "First\nanswer  with   spaces "},
    {"role": "user", "content": "And <|im_end|> then?"},
    {"role": "assistant", "content": "Sécond."},
]
CALL = {
    "type": "function",
    "id": "c1",
    "function": {"name": "f", "arguments": {"ü": ["<", 1.5, None, True]}},
}
WITH_TOOLS: list[Any] = [
    CHAT[0],
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "f"},
    CHAT[1],
]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {"ü": "<&>"}}}]


def messages(turns: list[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(
        Message(
            turn["role"],
            turn["content"],
            tool_calls=tuple(
                ToolCall(call["function"]["name"], call["function"]["arguments"], call["id"])
                for call in turn.get("tool_calls", ())
            ),
            tool_call_id=turn.get("tool_call_id"),
            name=turn.get("name"),
        )
        for turn in turns
    )


def save(backend: Tokenizer, family: Any, folder: Path) -> Path:
    copy = Tokenizer.from_str(backend.to_str())
    bos = family.tokens.get("bos")
    if family.tokens.get("add_bos"):
        copy.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, copy.token_to_id(bos))]
        )
    fast: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=copy, eos_token=family.tokens.get("eos", "<|im_end|>"), bos_token=bos
    )
    fast.chat_template = family.template
    fast.save_pretrained(folder)
    return folder


def assert_same(
    tokens: ModelTokenizer,
    auto: Any,
    turns: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
) -> None:
    for count, prompt in ((len(turns), False), (len(turns) - 1, True), (2, False), (1, True)):
        theirs = auto.apply_chat_template(
            turns[:count], tools=tools, tokenize=False, add_generation_prompt=prompt
        )
        ours = tokens.template.render(messages(turns[:count]), prompt=prompt, tools=tools)
        assert ours == theirs
        assert tokens.ids(ours) == auto(theirs, add_special_tokens=False)["input_ids"]
        assert tokens.ids_of([ours, "a"])[0].tolist() == tokens.ids(ours)
        assert tokens.text(tokens.ids(ours)) == auto.decode(
            tokens.ids(ours), clean_up_tokenization_spaces=False
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_transformers(name: str, backend: Tokenizer, tmp_path: Path) -> None:
    folder = save(backend, FAMILIES[name], tmp_path)
    auto: Any = AutoTokenizer.from_pretrained(folder)
    tokens = read_tokenizer(folder)
    assert_same(tokens, auto, CHAT, None)
    if name in ("llama", "qwen"):
        assert_same(tokens, auto, WITH_TOOLS, TOOLS)
    assert tokens.append_id == auto.eos_token_id
    assert tokens.size == len(auto)
    assert list(tokens.start_ids) + tokens.ids("a") == auto("a")["input_ids"]
    assert set(auto.all_special_tokens) <= set(tokens.special_texts)


def test_marks_are_those_of_transformers(backend: Tokenizer, tmp_path: Path) -> None:
    folder = save(backend, FAMILIES["marked"], tmp_path)
    auto: Any = AutoTokenizer.from_pretrained(folder)
    theirs = auto.apply_chat_template(CHAT, return_assistant_tokens_mask=True, return_dict=True)
    tokens = read_tokenizer(folder)
    text, spans = tokens.template.render_marked(ChatRow("f", 0, messages(CHAT)))
    assert [text[start:end] for start, end in spans] == [
        turn["content"] + "<|im_end|>" for turn in CHAT[1::2]
    ]
    marked = [
        id_
        for id_, mask in zip(theirs["input_ids"], theirs["assistant_masks"], strict=True)
        if mask
    ]
    assert marked == [id_ for start, end in spans for id_ in tokens.ids(text[start:end])]


@pytest.mark.parametrize("legacy", [False, True])
def test_special_tokens_that_only_the_configuration_names(
    backend: Tokenizer, tmp_path: Path, legacy: bool
) -> None:
    folder = save(backend, FAMILIES["chatml"], tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = {
        "pad_token": "<pad>",
        "unk_token": {"content": "<unk>", "lstrip": False, "rstrip": False},
    }
    if legacy:
        (folder / "special_tokens_map.json").write_text(json.dumps(named))
    else:
        config |= {
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "extra_special_tokens": ["<one>", "<two>"],
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokens, auto = read_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    text = "a<pad>b<unk>c<one>d<two>"
    assert tokens.ids(text) == auto(text, add_special_tokens=False)["input_ids"]
    assert (tokens.pad_id, tokens.size) == (auto.pad_token_id, len(auto))


def test_templates_of_several_names(backend: Tokenizer, tmp_path: Path) -> None:
    folder = save(backend, FAMILIES["chatml"], tmp_path)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(
        "{{ tools | tojson(indent=1) }}{% break %}"
    )
    with pytest.raises(Exception, match=r"(?i)break|outside"):
        AutoTokenizer.from_pretrained(folder).apply_chat_template(CHAT, tools=TOOLS, tokenize=False)
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(
        "{{ tools | tojson(indent=1) }}"
    )
    assert_same(read_tokenizer(folder), AutoTokenizer.from_pretrained(folder), CHAT, TOOLS)
    assert_same(read_tokenizer(folder), AutoTokenizer.from_pretrained(folder), CHAT, None)
    (folder / "chat_template.jinja").unlink()
    for path in (folder / "additional_chat_templates").iterdir():
        path.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    listed = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": listed}))
    assert_same(read_tokenizer(folder), AutoTokenizer.from_pretrained(folder), CHAT, TOOLS)


def test_a_tokenizer_without_its_json_is_left_to_transformers(
    backend: Tokenizer, tmp_path: Path
) -> None:
    folder = save(backend, FAMILIES["chatml"], tmp_path)
    whole = json.loads((folder / "tokenizer.json").read_text())
    model = whole["model"]
    tokens = load_tokens(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = {str(token.pop("id")): token for token in whole["added_tokens"]}
    config |= {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    converted = load_tokens(folder)
    text = converted.template.render(messages(CHAT), prompt=False)
    assert text == tokens.template.render(messages(CHAT), prompt=False)
    assert converted.ids(text) == tokens.ids(text)


def test_the_job_specs_template_takes_the_place_of_the_models(
    backend: Tokenizer, tmp_path: Path
) -> None:
    folder = save(backend, FAMILIES["chatml"], tmp_path)
    other = FAMILIES["marked"].template
    auto: Any = AutoTokenizer.from_pretrained(folder)
    auto.chat_template = other
    (folder / "templates").mkdir()
    (folder / "templates" / "marked.jinja").write_text(other)
    for data in (
        DataSection(chat_template=other),
        DataSection(chat_template_path="templates/marked.jinja"),
    ):
        for tokens in (read_tokenizer(folder, data), load_tokens(folder, data)):
            assert_same(tokens, auto, CHAT, None)
            assert tokens.marks_generation
    (folder / "chat_template.jinja").unlink()
    assert not read_tokenizer(folder).has_template
    assert read_tokenizer(folder, DataSection(chat_template=other)).has_template


def sentencepiece_like() -> Tokenizer:
    """A tokenizer in the manner of Llama 2: a space is put before the text behind every special token."""
    backend = Tokenizer(
        models.BPE({"<unk>": 0, "<s>": 1, "▁": 2, "a": 3, "b": 4, "\n": 5}, [], unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.add_special_tokens(["<unk>", "<s>"])
    return backend


@pytest.mark.parametrize(
    ("kind", "differs"), [("LlamaTokenizer", True), ("PreTrainedTokenizerFast", False)]
)
def test_a_class_that_rebuilds_the_tokenizer_is_pointed_out(
    kind: str, differs: bool, tmp_path: Path
) -> None:
    sentencepiece_like().save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": kind, "bos_token": "<s>", "unk_token": "<unk>", "legacy": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokens, auto = load_tokens(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert (tokens.ids("<s>a") != auto("<s>a", add_special_tokens=False)["input_ids"]) is differs
    assert bool(tokens.notes) is differs
    data = build_dataset(
        [TextRow("f", 0, "a b")],
        tokens,
        DataSection(test_split_size=0),
        split_key=seed_split_key(0),
    )
    assert any("reads text differently" in warning for warning in data.warnings) is differs


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_files_that_are_not_a_tokenizers_are_refused(
    name: str, content: bytes, backend: Tokenizer, tmp_path: Path
) -> None:
    folder = save(backend, FAMILIES["chatml"], tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(JobError) as caught:
        load_tokens(folder)
    assert caught.value.code is ErrorCode.MODEL_INVALID


def edited_copy(model: Path, target: Path, **tokens: str) -> Path:
    """A copy of a model whose tokenizer_config.json names other special tokens."""
    shutil.copytree(model, target)
    config = json.loads((target / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps(config | tokens))
    return target


def test_a_padding_token_that_the_embedding_lacks_is_replaced(
    tiny_model: Path, tmp_path: Path
) -> None:
    tokens = read_tokenizer(edited_copy(tiny_model, tmp_path / "model", pad_token="<|my_pad|>"))
    assert tokens.size == 601
    assert tokens.vocabulary == 600
    assert tokens.pad_id < 600
    assert tokens.pad_id not in tokens.stop_ids


def test_tokens_that_the_embedding_lacks_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="token ids from 0 to 599, got 600"):
        read_tokenizer(tiny_model).require_embedded(600)
    with pytest.raises(JobError, match="the end of a text or turn is outside the embedding"):
        read_tokenizer(edited_copy(tiny_model, tmp_path / "model", eos_token="<|my_end|>"))
