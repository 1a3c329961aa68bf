"""Preference training in the real worker process: from a file of pairs to an adapter that stock PEFT loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.errors import ErrorCode, ExitCode
from trainer.ipc.worker_messages import Failed, Finished, Metrics
from trainer.spec import JobSpec

RunWorker = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]


def pair(number: int) -> dict[str, object]:
    return {
        "prompt": [
            {"role": "user", "content": f"What is {number}" + " indeed" * (number % 5) + "?"}
        ],
        "chosen": [
            {"role": "assistant", "content": f"It is the number {number}, as everybody knows."}
        ],
        "rejected": [{"role": "assistant", "content": "No idea. " * (1 + number % 3)}],
    }


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_whole_order(
    run_worker: RunWorker, tmp_path: Path, make_spec: MakeSpec, tiny_model: Path
) -> None:
    spec = make_spec(
        train={"method": "dpo", "max_steps": 8, "eval_steps": 4}, output={"samples": 2}
    )
    ended = run_worker(
        write(tmp_path / "pairs.jsonl", [pair(number) for number in range(40)]), spec
    )
    assert ended.code == ExitCode.DONE, ended.log
    assert isinstance(ended.messages[-1], Finished)
    summary: dict[str, Any] = dict(ended.messages[-1].summary)
    assert summary["rows"] == {"train": 37, "eval": 3, "dropped": 0, "truncated": 0}
    assert summary["warnings"] == []
    assert summary["eval_loss_after"] < summary["eval_loss_before"]
    assert summary["pairs"]["eval_rewards_accuracies"] > 0.9
    assert summary["environment"]["forward"] == "fused"
    lines = [
        json.loads(line)
        for line in (ended.output_dir / "report/metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines if "eval_rewards_margins" in line] == [0, 4, 8]
    assert all("rewards_margins" in line for line in lines if "loss" in line)
    samples = json.loads((ended.output_dir / "report/samples.json").read_text())
    assert len({sample["prompt"] for sample in samples}) == 2
    assert all("everybody knows" in sample["reference"] for sample in samples)
    assert "2305.18290" in (ended.output_dir / "adapter/README.md").read_text()
    assert margin(ended.output_dir / "adapter", tiny_model) > 1.0


def test_two_processes_share_the_pairs(
    run_worker: RunWorker, tmp_path: Path, make_spec: MakeSpec
) -> None:
    """A last step of one pair, which one of them has nothing of, among the steps."""
    data = {
        "pairs.jsonl": write(tmp_path / "pairs.jsonl", [pair(number) for number in range(9)]),
        "eval/pairs.jsonl": write(
            tmp_path / "held.jsonl", [pair(number) for number in range(9, 12)]
        ),
    }
    train = {"method": "dpo", "learning_rate": 0.001, "per_device_train_batch_size": 2}
    kept = {"output": {"samples": 0}}
    two = run_worker(data, make_spec(train={**train, "num_processes": 2}, **kept), processes=2)
    one = run_worker(data, make_spec(train={**train, "gradient_accumulation_steps": 2}, **kept))
    for ended in (two, one):
        assert ended.code == ExitCode.DONE, ended.log
    found, expected = (ended.messages[-1].summary for ended in (two, one))
    assert found["environment"]["processes"] == "2"
    assert (found["steps"], found["trained_tokens"]) == (
        expected["steps"],
        expected["trained_tokens"],
    )
    assert found["rows"]["train"] % 4 == 1
    assert found["pairs"] == pytest.approx(expected["pairs"], rel=1e-4, abs=1e-4)
    assert found["eval_loss_after"] == pytest.approx(expected["eval_loss_after"], rel=1e-4)


def margin(adapter: Path, tiny_model: Path) -> float:
    """By how many nats the adapter turned the stock model from one new answer to the other."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model), adapter
    )
    row = pair(77)
    ratios = []
    for side in ("chosen", "rejected"):
        text = tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False)  # type: ignore[misc]
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            adapted = -model(input_ids=ids, labels=ids).loss
            with model.disable_adapter():
                base = -model(input_ids=ids, labels=ids).loss
        ratios.append(float((adapted - base) * (ids.shape[1] - 1)))
    return ratios[0] - ratios[1]


def test_rows_of_another_kind_end_the_job(
    run_worker: RunWorker, tmp_path: Path, make_spec: MakeSpec
) -> None:
    rows: list[dict[str, object]] = [pair(1), pair(2), {"text": "canary-77aa"}]
    ended = run_worker(write(tmp_path / "mixed.jsonl", rows), make_spec(train={"method": "dpo"}))
    assert ended.code == ExitCode.JOB
    failure = next(message for message in ended.messages if isinstance(message, Failed))
    assert failure.code is ErrorCode.DATASET_NOT_TRAINABLE
    assert (failure.file, failure.row, failure.field) == ("mixed.jsonl", 2, "text")
    assert "sft" in (failure.hint or "")
    assert b"canary-77aa" not in ended.sent
    assert not any(isinstance(message, Metrics) for message in ended.messages)
