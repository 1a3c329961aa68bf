"""A whole worker in its sandbox, with unsloth: what it computes, and what it leaves where."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import _one_thread, make_spec, run_worker
from tests.unsloth.conftest import ROOT
from trainer.ipc.worker_messages import Confined, Finished
from trainer.sandbox.plan import Role, SandboxPlan
from trainer.sandbox.properties import SandboxProperty
from trainer.spec import JobSpec

__all__ = ["_one_thread", "make_spec", "run_worker"]
CANARY = "canary-7e1a55"

HELD_OUT_LOSS = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
adapter, base, rows = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
total = count = 0
for ids, trained in json.loads(rows):
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    own = torch.tensor(trained[1:])
    total, count = total + float((losses * own).sum()), count + int(own.sum())
print(total / count)
"""
"""Stock PEFT on stock transformers, in a process that unsloth has not patched."""


def held_out_rows(
    data_file: Path, model_dir: Path, spec: JobSpec
) -> list[tuple[list[int], list[int]]]:
    """Token ids and masks of the rows that the run held out."""
    from trainer.data.examples.example_set import build_dataset, row_schema
    from trainer.data.examples.held_out import seed_split_key
    from trainer.data.rows import read_files
    from trainer.training.tokenizer import load_tokens

    tokens = load_tokens(model_dir, spec.data)
    rows = read_files({data_file.name: data_file}, max_rows=100, schema=row_schema(spec.data))
    dataset = build_dataset(
        rows,
        tokens,
        spec.data,
        split_key=seed_split_key(spec.train.seed),
        method="sft",
        context_length=512,
    )
    return [(list(example.ids), list(example.trained)) for example in dataset.evaluation]


def test_a_confined_worker(
    run_worker: Callable[..., Any],
    make_spec: Callable[..., JobSpec],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    data_file = tmp_path / "data.jsonl"
    lines = (
        {
            "messages": [
                {"role": "user", "content": f"{n}?"},
                {"role": "assistant", "content": f"{n}, {CANARY}"},
            ]
        }
        for n in range(8)
    )
    data_file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def plan(output: Path) -> SandboxPlan:
        return SandboxPlan(
            role=Role.WORKER, readable=(tiny_model, data_file), writable=(output,), programs=True
        )

    spec = make_spec(
        model={"dtype": "bfloat16"},
        data={"test_split_size": 0.25},
        train={"engine": "unsloth", "bf16": True, "max_steps": 2, "gradient_checkpointing": True},
        output={"samples": 1, "sample_max_new_tokens": 2},
    )
    before = {*ROOT.iterdir(), *tmp_path.iterdir()}
    ended = run_worker(data_file, spec, plan=plan, module="tests.unsloth.pretended_worker")
    assert ended.code == 0, ended.log[-3000:]

    confined, finished = ended.messages[0], ended.messages[-1]
    assert isinstance(confined, Confined)
    assert confined.sandbox[SandboxProperty.WORKER_NO_NETWORK]
    assert confined.sandbox[SandboxProperty.WORKER_FILES_CONFINED]
    assert isinstance(finished, Finished)
    summary: dict[str, Any] = dict(finished.summary)
    assert summary["environment"]["engine"] == "unsloth"
    assert summary["warnings"] == []
    assert summary["steps"] == 2

    command = [
        sys.executable,
        "-c",
        HELD_OUT_LOSS,
        str(ended.output_dir / "adapter"),
        str(tiny_model),
    ]
    held_out = json.dumps(held_out_rows(data_file, tiny_model, spec))
    done = subprocess.run([*command, held_out], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(summary["eval_loss_after"], rel=0.01)
    assert summary["eval_loss_after"] < summary["eval_loss_before"]

    # unsloth prints its name. The supervisor takes what a worker prints into the private log.
    assert CANARY.encode() not in ended.out + ended.sent
    # Generated code and caches were in the run's private directory, which is gone.
    assert {*ROOT.iterdir(), *tmp_path.iterdir()} == before | {ended.output_dir}
    assert {path.name for path in ended.output_dir.iterdir()} == {"adapter", "report"}
