"""The real process: `python -m trainer.worker`, from an order on stdin to an adapter that stock PEFT loads."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import math
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.fork_server import ForkServer
from tests.training.conftest import pinning
from tests.training.forked_worker import in_training
from trainer.errors import ErrorCode, ExitCode
from trainer.ipc.worker_messages import (
    FROM_WORKER,
    Failed,
    Finished,
    Metrics,
    OutputSize,
    Preparing,
    Progress,
    TrainingOrder,
)
from trainer.models import Activity
from trainer.spec import JobSpec

RunWorker = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]
CANARY = "canary-51c0de"
ROOT = Path(__file__).parents[2]


def failed(ended: Any) -> Failed:
    """The one message of a worker that failed."""
    before = Preparing | OutputSize | Progress | Metrics
    (message,) = [message for message in ended.messages if not isinstance(message, before)]
    assert isinstance(message, Failed)
    assert CANARY.encode() not in ended.sent
    assert ended.out == b""
    assert not (ended.output_dir / ".scratch").exists()
    return message


def test_a_whole_order(
    run_worker: RunWorker, chat_file: Path, make_spec: MakeSpec, tiny_model: Path
) -> None:
    spec = make_spec()
    first = run_worker(chat_file, spec)
    assert first.code == ExitCode.DONE, first.log
    assert first.out == b""
    finished = first.messages[-1]
    assert isinstance(finished, Finished)
    summary: dict[str, Any] = dict(finished.summary)
    assert summary["rows"] == {"train": 35, "eval": 5, "dropped": 0, "truncated": 0}
    assert summary["steps"] == 6
    assert summary["warnings"] == []
    assert summary["eval_loss_after"] < summary["eval_loss_before"]
    assert [message.step for message in first.messages if isinstance(message, Progress)] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    (size,) = [message for message in first.messages if isinstance(message, OutputSize)]
    prepared = [(one.activity, one.percent) for one in first.messages if isinstance(one, Preparing)]
    assert prepared == [(Activity.TOKENIZING, 100), (Activity.LOADING, 0), (Activity.EVALUATING, 0)]
    assert first.messages.index(size) < next(
        n for n, m in enumerate(first.messages) if isinstance(m, Progress)
    )
    assert size.trained_parameters > 0
    assert 0 < size.copied_bytes < 1 << 20

    output = first.output_dir
    files = {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file()
    }
    companions = [
        path
        for path in tiny_model.iterdir()
        if path.name not in ("config.json", "model.safetensors")
    ]
    assert {
        f"adapter/{path.name}": path.read_bytes() for path in companions
    }.items() <= files.items()
    assert set(files) - {f"adapter/{path.name}" for path in companions} == {
        "adapter/README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "report/metrics.jsonl",
        "report/report.html",
        "report/samples.json",
        "report/summary.json",
    }
    assert json.loads(files["report/summary.json"]) == summary
    config = json.loads(files["adapter/adapter_config.json"])
    assert config["base_model_name_or_path"] is None
    for name, content in files.items():
        for place in (str(tiny_model), str(output), str(chat_file.parent)):
            assert place.encode() not in content, name
    assert held_out_loss(output / "adapter", tiny_model, chat_file, spec) == pytest.approx(
        summary["eval_loss_after"], rel=1e-5
    )

    second = run_worker(chat_file, spec)
    for name in (
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/README.md",
    ):
        assert (second.output_dir / name).read_bytes() == files[name], (
            f"{name} differs between two equal runs"
        )


def held_out_loss(adapter: Path, base: Path, data: Path, spec: JobSpec) -> float:
    """The loss on the held-out rows, with stock PEFT and nothing of the worker but the split's documented rule."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    rows = [json.loads(line)["messages"] for line in data.read_text().splitlines()]
    key = hashlib.sha256(b"confidential-trainer/split-by-seed/v1\0%d" % spec.train.seed).digest()
    losses: list[float] = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(row[:1], tokenize=False, add_generation_prompt=True)
        given = tokenizer(prompt, add_special_tokens=False).input_ids
        answer = tokenizer(row[1]["content"] + "<|im_end|>", add_special_tokens=False).input_ids
        digest = hashlib.sha256(
            struct.pack(f"<{len(given + answer)}i", *given, *answer) + b"/"
        ).digest()
        word = hmac.digest(key, digest, "sha256")[:8]
        if int.from_bytes(word, "big") >= spec.data.test_split_size * 2**64:
            continue
        ids = torch.tensor([given + answer])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(given) - 1 : -1]
        losses += functional.cross_entropy(logits, torch.tensor(answer), reduction="none").tolist()
    return math.fsum(losses) / len(losses)


def test_files_of_several_formats_and_files_for_evaluation(
    run_worker: RunWorker, make_spec: MakeSpec, tmp_path: Path
) -> None:
    table, text, held = tmp_path / "a.parquet", tmp_path / "b.csv.gz", tmp_path / "c.tsv"
    rows = [
        {"question": f"What is {number}?", "answer": f"It is {number}.", "id": number}
        for number in range(8)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    lines = ["question,answer,id", *(f"{row['question']},{row['answer']},1" for row in rows[:4])]
    text.write_bytes(gzip.compress("\n".join(lines).encode()))
    held.write_text("question\tanswer\tid\nWhat is 9?\tIt is 9.\t9\n")
    columns = {"columns": {"prompt": "question", "completion": "answer"}, "ignore_columns": ["id"]}
    spec = make_spec(data=columns, train={"max_steps": 2})
    ended = run_worker({"a.parquet": table, "b.csv.gz": text, "eval/c.tsv": held}, spec)
    assert ended.code == ExitCode.DONE, ended.log
    assert json.loads((ended.output_dir / "report" / "summary.json").read_bytes())["rows"] == {
        "train": 12,
        "eval": 1,
        "dropped": 0,
        "truncated": 0,
    }


def test_a_broken_table_is_not_quoted_anywhere(run_worker: RunWorker, tmp_path: Path) -> None:
    table = tmp_path / "a.parquet"
    bad = pyarrow.array([f"{CANARY} {CANARY}".encode() + b"\xff"]).cast(pyarrow.binary())
    whole = pyarrow.Table.from_arrays([bad.view(pyarrow.string())], ["text"])
    pyarrow.parquet.write_table(whole, table)
    ended = run_worker(table)
    message = failed(ended)
    assert (message.code, message.file, message.row) == (
        ErrorCode.DATASET_ROW_INVALID,
        "a.parquet",
        0,
    )
    assert CANARY not in ended.log
    assert CANARY.encode() not in ended.sent


BAD_DATA: dict[str, tuple[str, ErrorCode, str | None]] = {
    "cut off": (f'{{"text": "{CANARY}', ErrorCode.DATASET_ROW_INVALID, None),
    "wrong type": (f'{{"text": ["{CANARY}"]}}', ErrorCode.DATASET_ROW_INVALID, "text"),
    "unknown role": (
        f'{{"messages": [{{"role": "{CANARY}", "content": "{CANARY}"}}]}}',
        ErrorCode.DATASET_ROW_INVALID,
        "messages[0].role",
    ),
    "too long": (f'{{"text": "{CANARY * 50}"}}', ErrorCode.DATASET_OVERLONG, None),
    "unknown key": (f'{{"text": "x", "{CANARY}": 1}}', ErrorCode.DATASET_ROW_INVALID, None),
    "no text": (f'{{"text": "\xff\xfe{CANARY}"}}', ErrorCode.DATASET_ROW_INVALID, None),
    "half a character": (f'{{"text": "\\ud800{CANARY}"}}', ErrorCode.DATASET_ROW_INVALID, "text"),
    "too deep": ('{"text": ' + "[" * 5000 + f'"{CANARY}"', ErrorCode.DATASET_ROW_INVALID, None),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_rows_fail_with_their_code_and_are_not_quoted(
    kind: str, run_worker: RunWorker, tmp_path: Path, chat_file: Path
) -> None:
    line, code, field = BAD_DATA[kind]
    data = tmp_path / "bad.jsonl"
    data.write_bytes(chat_file.read_bytes() + line.encode("latin-1") + b"\n")
    ended = run_worker(data)
    message = failed(ended)
    assert ended.code == ExitCode.JOB
    assert (message.code, message.file, message.row, message.field) == (
        code,
        "bad.jsonl",
        40,
        field,
    )
    assert message.reason
    assert message.expected
    assert not (ended.output_dir / "adapter").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('I refuse ' + messages[-1]['content']) }}",
        "{{ messages[1]['content'] + 1 }}{{ messages[99]['content'].nothing }}",
    ],
    ids=["raises", "stumbles"],
)
def test_a_template_that_fails_leaks_nothing_of_the_row(
    template: str, run_worker: RunWorker, tmp_path: Path, tiny_model: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": CANARY}]
    data.write_text(json.dumps({"messages": turns}) + "\n")
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "chat_template.jinja").write_text(template)
    message = failed(run_worker(data, model_dir=model))
    assert (message.code, message.row) == (ErrorCode.DATASET_ROW_INVALID, 0)


def test_divergence_leaves_no_adapter(
    run_worker: RunWorker, chat_file: Path, tmp_path: Path, tiny_model: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    weights = load_file(model / "model.safetensors")
    save_file(
        {name: tensor * 1e30 for name, tensor in weights.items()},
        model / "model.safetensors",
        {"format": "pt"},
    )
    ended = run_worker(chat_file, model_dir=model)
    assert failed(ended).code is ErrorCode.TRAINING_DIVERGED
    assert not (ended.output_dir / "adapter").exists()


def test_being_told_to_stop(
    stack_server: ForkServer, chat_file: Path, make_spec: MakeSpec, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "output").mkdir()
    order = TrainingOrder(
        spec=pinning(make_spec(train={"max_steps": 10**6}), tiny_model),
        model_dir=tiny_model,
        data_files={"chat.jsonl": chat_file},
        output_dir=tmp_path / "output",
        split_key="5a" * 32,
    )
    with in_training(stack_server, order, 1) as (process, events):
        process.send_signal(signal.SIGTERM)
        *_, last = events
        code = process.wait(30)
    message = FROM_WORKER.parse(last)
    assert isinstance(message, Failed)
    assert message.code is ErrorCode.INTERRUPTED
    assert code == ExitCode.JOB
    assert not (tmp_path / "output" / ".scratch").exists()


@pytest.mark.parametrize(
    "stdin", [b"{", b"[]", b'{"kind": "training-order", "spec": {}}\n', b"x" * 3_000_000]
)
def test_what_is_not_an_order_is_refused(
    run_worker: RunWorker, chat_file: Path, stdin: bytes
) -> None:
    ended = run_worker(chat_file, stdin=stdin)
    assert failed(ended).code is ErrorCode.USAGE
    assert ended.code == ExitCode.USAGE


def test_the_worker_imports_neither_our_network_parts_nor_our_keys() -> None:
    code = (
        "import sys, trainer.worker.__main__, trainer.training.run\n"
        "print(sorted(name for name in sys.modules if name.startswith('trainer')))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(re.findall(r"'([\w.]+)'", out.stdout))
    assert "trainer.training.run" in loaded
    parts = {name.split(".")[1] for name in loaded if "." in name}
    formats = {
        "data",
        "spec",
        "strict_yaml",
        "yaml_scalars",
        "models",
        "encoding",
        "errors",
        "error_document",
    }
    assert parts <= {"sandbox", "worker", "training", "ipc", "model_files", *formats}


def test_packing_is_a_matter_of_the_job_spec(
    run_worker: RunWorker, chat_file: Path, make_spec: MakeSpec
) -> None:
    spec = make_spec(
        data={"packing": True, "max_length": 512}, train={"max_steps": -1, "num_train_epochs": 1.0}
    )
    ended = run_worker(chat_file, spec)
    assert ended.code == 0, ended.log
    summary = json.loads((ended.output_dir / "report" / "summary.json").read_bytes())
    assert summary["environment"]["forward"] == "fused"
    assert summary["rows"]["train"] == 35
    assert summary["steps"] < 35 / 4  # bins hold more than a row each
