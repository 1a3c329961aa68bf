"""The real process: `python -m trainer.worker`, from an order on stdin to an adapter that stock PEFT loads."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.errors import ErrorCode, ExitCode
from trainer.spec import JobSpec
from trainer.worker.protocol import Failed, Finished, Metrics, Progress

RunWorker = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]
CANARY = "canary-51c0de"


def failed(ended: Any) -> Failed:
    """The one message of a worker that failed."""
    (message,) = [message for message in ended.messages if not isinstance(message, Progress | Metrics)]
    assert isinstance(message, Failed)
    assert CANARY.encode() not in ended.sent
    assert ended.out == b""
    assert not (ended.output_dir / ".scratch").exists()
    return message


def test_a_whole_order(run_worker: RunWorker, chat_file: Path, make_spec: MakeSpec, tiny_model: Path) -> None:
    spec = make_spec()
    first = run_worker(chat_file, spec)
    assert first.code == ExitCode.DONE, first.log
    assert first.out == b""
    finished = first.messages[-1]
    assert isinstance(finished, Finished)
    summary: dict[str, Any] = dict(finished.summary)
    assert summary["rows"] == {"train": 32, "eval": 8, "dropped": 0, "truncated": 0}
    assert summary["steps"] == 6
    assert summary["warnings"] == []
    assert summary["eval_loss_after"] < summary["eval_loss_before"]
    assert [message.step for message in first.messages if isinstance(message, Progress)] == [1, 2, 3, 4, 5, 6]

    output = first.output_dir
    files = {
        path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()
    }
    assert set(files) == {
        "adapter/README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "report/metrics.jsonl",
        "report/report.html",
        "report/summary.json",
    }
    assert json.loads(files["report/summary.json"]) == summary
    config = json.loads(files["adapter/adapter_config.json"])
    assert config["base_model_name_or_path"] == spec.model.model_name_or_path
    for name, content in files.items():
        for place in (str(tiny_model), str(output), str(chat_file.parent)):
            assert place.encode() not in content, name
    assert held_out_loss(output / "adapter", tiny_model, chat_file, spec) == pytest.approx(
        summary["eval_loss_after"], rel=1e-5
    )

    second = run_worker(chat_file, spec)
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/README.md"):
        assert (second.output_dir / name).read_bytes() == files[name], f"{name} differs between two equal runs"


def held_out_loss(adapter: Path, base: Path, data: Path, spec: JobSpec) -> float:
    """The loss on the held-out rows, with stock PEFT and nothing of the worker but the split's documented rule."""
    import random

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    rows = [json.loads(line)["messages"] for line in data.read_text().splitlines()]
    held = random.Random(spec.train.seed).sample(range(len(rows)), round(spec.data.test_split_size * len(rows)))
    losses: list[float] = []
    for number in held:
        prompt = tokenizer.apply_chat_template(rows[number][:1], tokenize=False, add_generation_prompt=True)
        given = tokenizer(prompt, add_special_tokens=False).input_ids
        answer = tokenizer(rows[number][1]["content"] + "<|im_end|>", add_special_tokens=False).input_ids
        ids = torch.tensor([given + answer])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(given) - 1 : -1]
        losses += functional.cross_entropy(logits, torch.tensor(answer), reduction="none").tolist()
    return math.fsum(losses) / len(losses)


def test_another_seed_makes_another_adapter(run_worker: RunWorker, chat_file: Path, make_spec: MakeSpec) -> None:
    adapters = []
    for seed in (1, 2):
        ended = run_worker(chat_file, make_spec(train={"seed": seed, "max_steps": 1}))
        assert ended.code == ExitCode.DONE, ended.log
        adapters.append((ended.output_dir / "adapter" / "adapter_model.safetensors").read_bytes())
    assert adapters[0] != adapters[1]


BAD_DATA: dict[str, tuple[str, ErrorCode, str | None]] = {
    "cut off": (f'{{"text": "{CANARY}', ErrorCode.DATASET_ROW_INVALID, None),
    "wrong type": (f'{{"text": ["{CANARY}"]}}', ErrorCode.DATASET_ROW_INVALID, "text"),
    "unknown role": (
        f'{{"messages": [{{"role": "{CANARY}", "content": "{CANARY}"}}]}}',
        ErrorCode.DATASET_ROW_INVALID,
        "messages[0].role",
    ),
    "no assistant": (
        f'{{"messages": [{{"role": "user", "content": "{CANARY}"}}]}}',
        ErrorCode.DATASET_NOT_TRAINABLE,
        "messages",
    ),
    "too long": (f'{{"text": "{CANARY * 50}"}}', ErrorCode.DATASET_OVERLONG, None),
    "unknown key": (f'{{"text": "x", "{CANARY}": 1}}', ErrorCode.DATASET_ROW_INVALID, None),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_rows_fail_with_their_code_and_are_not_quoted(
    kind: str, run_worker: RunWorker, tmp_path: Path, chat_file: Path
) -> None:
    line, code, field = BAD_DATA[kind]
    data = tmp_path / "bad.jsonl"
    data.write_text(chat_file.read_text() + line + "\n")
    ended = run_worker(data)
    message = failed(ended)
    assert ended.code == ExitCode.JOB
    assert (message.code, message.file, message.row, message.field) == (code, "bad.jsonl", 40, field)
    assert message.reason
    assert message.expected
    assert not (ended.output_dir / "adapter").exists()


def broken_copy(model: Path, into: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(model, into)
    change(into)
    return into


def raising_template(directory: Path) -> None:
    template = "{{ raise_exception('I refuse ' + messages[-1]['content']) }}"
    (directory / "chat_template.jinja").write_text(template)


def test_a_template_that_raises_with_the_rows_text_leaks_nothing(
    run_worker: RunWorker, tmp_path: Path, tiny_model: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": CANARY}]
    data.write_text(json.dumps({"messages": turns}) + "\n")
    model = broken_copy(tiny_model, tmp_path / "model", raising_template)
    message = failed(run_worker(data, model_dir=model))
    assert (message.code, message.row) == (ErrorCode.DATASET_ROW_INVALID, 0)


def edit_config(**values: object) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **values}))

    return edit


BAD_MODELS: dict[str, Callable[[Path], object]] = {
    "pickle": lambda directory: (directory / "pytorch_model.bin").write_bytes(b"\x80\x04."),
    "code": lambda directory: (directory / "modeling.py").write_text("raise SystemExit(99)"),
    "remote code": edit_config(auto_map={"AutoModelForCausalLM": "modeling.Model"}),
    "no weights": lambda directory: (directory / "model.safetensors").unlink(),
    "cut weights": lambda directory: (directory / "model.safetensors").write_bytes(b"\0" * 100),
    "unknown architecture": edit_config(model_type="no-such-thing"),
    "no tokenizer": lambda directory: (directory / "tokenizer.json").unlink(),
    "not json": lambda directory: (directory / "config.json").write_text("{"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_bad_models_are_refused(
    kind: str, run_worker: RunWorker, tmp_path: Path, tiny_model: Path, chat_file: Path
) -> None:
    model = broken_copy(tiny_model, tmp_path / "model", BAD_MODELS[kind])
    ended = run_worker(chat_file, model_dir=model)
    assert failed(ended).code is ErrorCode.MODEL_INVALID
    assert ended.code == ExitCode.JOB


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is refused without a GPU")
@pytest.mark.parametrize(
    "section",
    [{"train": {"engine": "unsloth"}}, {"model": {"load_in_4bit": True}}, {"model": {"load_in_8bit": True}}],
)
def test_what_needs_a_gpu_is_refused_without_one(
    section: dict[str, Any], run_worker: RunWorker, chat_file: Path, make_spec: MakeSpec
) -> None:
    message = failed(run_worker(chat_file, make_spec(**section)))
    assert message.code is ErrorCode.ENGINE_UNAVAILABLE
    assert "CUDA" in (message.expected or "")


def test_divergence_is_reported(run_worker: RunWorker, chat_file: Path, make_spec: MakeSpec) -> None:
    spec = make_spec(train={"learning_rate": 1.0, "max_steps": 40}, lora={"lora_alpha": 4096, "lora_r": 1})
    ended = run_worker(chat_file, spec, model_dir=None)
    message = ended.messages[-1]
    # A step this wild either overflows or not, by the machine: if it does, it must be this failure and no adapter.
    if ended.code == ExitCode.DONE:
        pytest.skip("this machine's arithmetic survived")
    assert isinstance(message, Failed)
    assert message.code is ErrorCode.TRAINING_DIVERGED


@pytest.mark.parametrize("stdin", [b"{", b"[]", b'{"spec": {}}', b"x" * 3_000_000])
def test_what_is_not_an_order_is_refused(run_worker: RunWorker, chat_file: Path, stdin: bytes) -> None:
    ended = run_worker(chat_file, stdin=stdin)
    assert failed(ended).code is ErrorCode.USAGE
    assert ended.code == ExitCode.USAGE


def test_a_spec_for_no_rows_on_one_side_is_refused(
    run_worker: RunWorker, chat_file: Path, make_spec: MakeSpec
) -> None:
    message = failed(run_worker(chat_file, make_spec(data={"test_split_size": 0.001})))
    assert message.code is ErrorCode.DATASET_INVALID


def test_the_worker_imports_neither_our_network_parts_nor_our_keys() -> None:
    code = (
        "import sys, trainer.worker.__main__, trainer.worker.run\n"
        "print(sorted(name for name in sys.modules if name.startswith('trainer')))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    loaded = set(re.findall(r"'([\w.]+)'", out.stdout))
    assert "trainer.worker.run" in loaded
    parts = {name.split(".")[1] for name in loaded if "." in name}
    assert parts <= {"worker", "rows", "spec", "models", "errors", "encoding"}
