"""The `stock` side of `benchmarks/job_cost.py`: HF `Trainer` on a PEFT model in one process.

    python benchmarks/job_cost_stock.py JOB.yaml MODEL DATA OUTPUT

Nothing of this project is in it. Settings are those of the job spec, and batches hold rows of one length, which is
what makes HF's trainer quickest on a CPU. It evaluates nothing and writes no report: only the adapter is saved.
Each optimizer step is one line on stdout.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Steps(TrainerCallback):
    """Prints a line at the start of training and after each optimizer step."""

    def on_train_begin(self, *_arguments: Any, **_named: Any) -> None:
        print("begin", flush=True)

    def on_step_end(self, *_arguments: Any, **_named: Any) -> None:
        print("step", flush=True)


def read_rows(
    data: Path, tokenizer: Any, share_held_out: float, seed: int
) -> list[dict[str, list[int]]]:
    """Return token ids and labels of the training rows; only answers have labels."""
    rows = []
    for line in data.read_text("utf-8").splitlines():
        messages = json.loads(line)["messages"]
        prompt, whole = (
            tokenizer.apply_chat_template(
                part, tokenize=True, return_dict=False, add_generation_prompt=opens
            )
            for part, opens in ((messages[:-1], True), (messages, False))
        )
        rows.append({"input_ids": whole, "labels": [-100] * len(prompt) + whole[len(prompt) :]})
    held_out = set(random.Random(seed).sample(range(len(rows)), round(share_held_out * len(rows))))
    return [row for number, row in enumerate(rows) if number not in held_out]


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad rows to one length and return them as a batch."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([row[name] + [filler] * (width - len(row[name])) for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", -100),
        "attention_mask": torch.tensor(mask),
    }


def main(job: Path, model_dir: Path, data: Path, output: Path) -> None:
    spec = yaml.safe_load(job.read_text("utf-8"))
    train, lora = spec["train"], spec["lora"]
    torch.manual_seed(train["seed"])
    rows = read_rows(
        data,
        AutoTokenizer.from_pretrained(model_dir),
        spec["data"]["test_split_size"],
        train["seed"],
    )
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
    model.config.use_cache = False
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora["lora_r"],
        lora_alpha=lora["lora_alpha"],
        target_modules="all-linear",
    )
    model = get_peft_model(model, config)
    arguments = TrainingArguments(
        output_dir=str(output / "stock"), max_steps=train["max_steps"], learning_rate=train["learning_rate"],
        lr_scheduler_type=train["lr_scheduler_type"], warmup_steps=train["warmup_ratio"], seed=train["seed"],
        per_device_train_batch_size=train["per_device_train_batch_size"], bf16=True, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, logging_strategy="no",
        train_sampling_strategy="group_by_length",
    )  # fmt: skip
    Trainer(
        model, arguments, data_collator=collate, train_dataset=rows, callbacks=[Steps()]
    ).train()
    model.save_pretrained(output / "adapter")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
