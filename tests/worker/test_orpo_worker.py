"""ORPO in the real worker process: from a file of pairs to an adapter, its report and its card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.worker.test_dpo_worker import margin, pair, write
from trainer.errors import ErrorCode, ExitCode
from trainer.ipc.worker_messages import Failed, Finished
from trainer.spec import JobSpec

RunWorker = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]


def test_from_pairs_to_adapter_and_report(
    run_worker: RunWorker, tmp_path: Path, make_spec: MakeSpec, tiny_model: Path
) -> None:
    spec = make_spec(
        train={"method": "orpo", "max_steps": 8, "eval_steps": 4}, output={"samples": 2}
    )
    ended = run_worker(
        write(tmp_path / "pairs.jsonl", [pair(number) for number in range(40)]), spec
    )
    assert ended.code == ExitCode.DONE, ended.log
    assert isinstance(ended.messages[-1], Finished)
    summary: dict[str, Any] = dict(ended.messages[-1].summary)
    assert summary["rows"] == {"train": 37, "eval": 3, "dropped": 0, "truncated": 0}
    assert summary["eval_loss_after"] < summary["eval_loss_before"]
    assert summary["pairs"]["eval_log_odds_chosen"] > 0
    assert "reference" not in summary["seconds"]
    lines = [
        json.loads(line)
        for line in (ended.output_dir / "report/metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines if "eval_log_odds_chosen" in line] == [0, 4, 8]
    assert all("rewards_accuracies" in line for line in lines if "loss" in line)
    page = (ended.output_dir / "report/report.html").read_text()
    assert "LoRA by ORPO" in page
    assert "Log odds ratio" in page
    card = (ended.output_dir / "adapter/README.md").read_text()
    assert "2403.07691" in card
    assert "- orpo" in card
    assert margin(ended.output_dir / "adapter", tiny_model) > 0


def test_rows_of_another_kind_end_the_job(
    run_worker: RunWorker, tmp_path: Path, make_spec: MakeSpec
) -> None:
    rows: list[dict[str, object]] = [pair(1), {"text": "canary-31fe"}]
    ended = run_worker(write(tmp_path / "mixed.jsonl", rows), make_spec(train={"method": "orpo"}))
    assert ended.code == ExitCode.JOB
    failure = next(message for message in ended.messages if isinstance(message, Failed))
    assert failure.code is ErrorCode.DATASET_NOT_TRAINABLE
    assert b"canary-31fe" not in ended.sent
