"""KTO in the real worker process: from a file of labelled answers to an adapter, its report and its card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.worker.test_dpo_worker import write
from trainer.errors import ExitCode
from trainer.ipc.worker_messages import Finished
from trainer.spec import JobSpec

RunWorker = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]


def test_from_labelled_answers_to_adapter_and_report(
    run_worker: RunWorker, tmp_path: Path, make_spec: MakeSpec
) -> None:
    rows: list[dict[str, object]] = [
        {
            "prompt": [{"role": "user", "content": f"What is {number}?"}],
            "completion": [
                {"role": "assistant", "content": "A number." if number % 2 else "Go away."}
            ],
            "label": bool(number % 2),
        }
        for number in range(40)
    ]
    spec = make_spec(
        train={"method": "kto", "max_steps": 8, "eval_steps": 4},
        data={"format": "unpaired_preference"},
        output={"samples": 2},
    )
    ended = run_worker(write(tmp_path / "rows.jsonl", rows), spec)
    assert ended.code == ExitCode.DONE, ended.log
    assert isinstance(ended.messages[-1], Finished)
    summary: dict[str, Any] = dict(ended.messages[-1].summary)
    assert summary["rows"]["train"] + summary["rows"]["eval"] == 40
    assert summary["eval_loss_after"] < summary["eval_loss_before"]
    assert summary["pairs"]["eval_rewards_margins"] > 0
    assert summary["seconds"]["reference"] > 0
    lines = [
        json.loads(line)
        for line in (ended.output_dir / "report/metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines if "eval_kl" in line] == [0, 4, 8]
    assert "LoRA by KTO" in (ended.output_dir / "report/report.html").read_text()
    card = (ended.output_dir / "adapter/README.md").read_text()
    assert "2402.01306" in card
    assert "- kto" in card
