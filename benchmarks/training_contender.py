"""One contender of `benchmarks/training.py` in its own process: instructions on stdin, JSON on stdout."""

from __future__ import annotations

import json
import resource
import sys
import time
from array import array
from collections.abc import Callable
from typing import Any

LORA_RANK, LORA_ALPHA = 16, 32


def adapted_model(order: dict[str, Any]) -> Any:
    """Load the model with a new adapter, the same in every process."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.spec import LoraSection
    from trainer.training.adapter import attach_adapter

    torch.manual_seed(1)
    dtype = torch.bfloat16 if order["dtype"] == "bf16" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(order["model"], dtype=dtype)
    model.config.use_cache = False
    return attach_adapter(model, LoraSection(lora_r=LORA_RANK, lora_alpha=LORA_ALPHA))


def contend(order: dict[str, Any]) -> dict[str, float]:
    """Train and return the measurements."""
    if order["kind"] == "gemm":
        return {"flops": gemm_rate(order)}
    model = adapted_model(order)
    train: Callable[[Any, dict[str, Any]], dict[str, float]]
    train = train_ours if order["kind"].startswith("ours") else train_peer
    result = train(model, order)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result | {"peak_mib": peak, "held_out": held_out_loss(model, order)}


def train_ours(model: Any, order: dict[str, Any]) -> dict[str, float]:
    """Train with the job's loop; returns seconds, mean training loss, and seconds of compilation before."""
    import torch

    from trainer.data.examples.example import Example
    from trainer.data.examples.example_set import Dataset, RowCounts
    from trainer.spec import DataSection, TrainSection
    from trainer.training.compilation import Compilation
    from trainer.training.engines.base import Precision
    from trainer.training.loop import Trainer
    from trainer.training.loss import CausalLoss
    from trainer.training.methods.method import MethodInputs
    from trainer.training.methods.sft import SupervisedFineTuning
    from trainer.training.step_policy import PlainStepPolicy

    examples = tuple(
        Example(array("i", ids), bytes(trained), stops=True) for ids, trained in order["rows"]
    )
    bf16 = order["dtype"] == "bf16"
    precision = Precision(
        torch.device("cpu"), torch.bfloat16 if bf16 else torch.float32, autocast=bf16
    )
    packs = order["kind"] == "ours-packing"
    section = TrainSection(
        per_device_train_batch_size=order["bins"] if packs else order["batch"], learning_rate=order["rate"],
        lr_scheduler_type="constant", max_grad_norm=1.0, seed=order["seed"], logging_steps=1,
    )  # fmt: skip
    lengths = [example.length for example in examples]
    compilation = Compilation("default", graphs=False) if order["kind"] == "ours-compiled" else None
    fused = order["kind"] in {"ours", "ours-packing"}
    loss = CausalLoss(
        model, precision, pad_id=0, longest=max(lengths), fused=fused, compilation=compilation
    )
    if (loss.forward_mode == "fused") != fused:
        raise SystemExit("the quick way was not taken")
    compiling = warm_up(model, loss, examples, order) if compilation else 0.0
    data = Dataset(examples, (), RowCounts(len(examples), 0, 0, 0), ())
    packing = DataSection(packing=packs, max_length=order["bin"] if packs else 1024)
    method = SupervisedFineTuning(MethodInputs(data, loss, section, precision.device, data=packing))
    policy = PlainStepPolicy(model, method, examples, section)
    training = Trainer(
        model, method, policy, section, report=lambda _message: None, clock=lambda: clock(order)
    )
    outcome = training.run()
    return {"seconds": outcome.train_seconds, "loss": outcome.train_loss, "compiling": compiling}


def warm_up(model: Any, loss: Any, examples: Any, order: dict[str, Any]) -> float:
    """Compile the training step for several rows and for one; returns the seconds, including those of g++."""
    import torch

    from trainer.training.compilation import require_compiler
    from trainer.training.token_store import single_batch

    require_compiler()
    started, children = clock(order), resource.getrusage(resource.RUSAGE_CHILDREN)
    model.train()
    for count in (order["batch"], 1):
        loss.total_loss(single_batch(examples[:count], torch.device("cpu"))).backward()
    model.zero_grad(set_to_none=True)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = ended.ru_utime + ended.ru_stime - children.ru_utime - children.ru_stime
    return clock(order) - started + (spent if order["cpu_clock"] else 0.0)


def train_peer(model: Any, order: dict[str, Any]) -> dict[str, float]:
    """Train with HF Trainer or TRL's SFTTrainer."""
    from transformers import TrainerCallback

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_arguments: Any, **_named: Any) -> None:
            times.append(clock(order))

        def on_train_end(self, *_arguments: Any, **_named: Any) -> None:
            times.append(clock(order))

    trainer = make_trl(model, order) if order["kind"].startswith("trl") else make_hf(model, order)
    trainer.add_callback(Clock())
    result = trainer.train()
    return {"seconds": times[-1] - times[0], "loss": float(result.training_loss), "compiling": 0.0}


def clock(order: dict[str, Any]) -> float:
    return time.process_time() if order["cpu_clock"] else time.perf_counter()


def common_arguments(order: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that HF's and TRL's configuration share."""
    return {
        "output_dir": order["folder"], "per_device_train_batch_size": order["batch"], "num_train_epochs": 1,
        "learning_rate": order["rate"], "lr_scheduler_type": "constant", "seed": order["seed"],
        "bf16": order["dtype"] == "bf16", "use_cpu": True, "report_to": "none", "save_strategy": "no",
        "logging_steps": 1, "disable_tqdm": True, "gradient_checkpointing": False, "max_grad_norm": 1.0,
    }  # fmt: skip


def one_at_a_time(order: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with which a step's rows go through the model one by one, without padding."""
    return {"per_device_train_batch_size": 1, "gradient_accumulation_steps": order["batch"]}


def make_hf(model: Any, order: dict[str, Any]) -> Any:
    import torch
    from transformers import Trainer, TrainingArguments

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, filler: int) -> torch.Tensor:
            return torch.tensor([row[name] + [filler] * (width - len(row[name])) for row in rows])

        mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
        ids = padded("input_ids", 0)
        return {
            "input_ids": ids,
            "labels": padded("labels", -100),
            "attention_mask": torch.tensor(mask),
        }

    rows = [
        {
            "input_ids": ids,
            "labels": [id_ if own else -100 for id_, own in zip(ids, trained, strict=True)],
        }
        for ids, trained in order["rows"]
    ]
    arguments = common_arguments(order)
    if order["kind"] == "hf-grouped":
        arguments["train_sampling_strategy"] = "group_by_length"
    if order["kind"] == "hf-single":
        arguments |= one_at_a_time(order)
    return Trainer(model, TrainingArguments(**arguments), data_collator=collate, train_dataset=rows)


def make_trl(model: Any, order: dict[str, Any]) -> Any:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    arguments = common_arguments(order) | {"completion_only_loss": True, "max_length": None}
    if order["kind"] == "trl-packing":
        arguments |= {"packing": True, "max_length": order["bin"]} | one_at_a_time(
            {"batch": order["bins"]}
        )
    if order["kind"] == "trl-single":
        arguments |= one_at_a_time(order)
    if order["kind"] == "trl-as-shipped":
        arguments |= {"gradient_checkpointing": True}
    if order["kind"] == "trl-padding-free":
        arguments |= {"padding_free": True}
    rows = Dataset.from_list(
        [{"input_ids": ids, "completion_mask": own} for ids, own in order["rows"]]
    )
    return SFTTrainer(
        model,
        args=SFTConfig(**arguments),
        train_dataset=rows,
        processing_class=tokenizer(PreTrainedTokenizerFast),
    )


def tokenizer(make: Any) -> Any:
    """Make a tokenizer: TRL requires one, but does not use it for rows of token ids."""
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"<eos>": 0, "<pad>": 1}, unk_token="<eos>"))
    return make(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")


def held_out_loss(model: Any, order: dict[str, Any]) -> float:
    """Return the loss per trained token, row by row, with the model's own forward pass."""
    import torch

    torch.compiler.set_stance("force_eager")
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=order["dtype"] == "bf16"):
        for ids, trained in order["held_out"]:
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
            losses = torch.nn.functional.cross_entropy(
                logits, torch.tensor(ids[1:]), reduction="none"
            )
            own = torch.tensor(trained[1:])
            total, count = total + float((losses * own).sum()), count + int(own.sum())
    return total / count


def gemm_rate(order: dict[str, Any]) -> float:
    """Measure operations per second of the matrix products of one forward and backward pass over 512 tokens."""
    import torch

    dtype = torch.bfloat16 if order["dtype"] == "bf16" else torch.float32
    best, operations = 0.0, 0
    for outputs, inputs in order["shapes"]:
        weight = torch.randn(outputs, inputs).to(dtype)
        x, dy = torch.randn(512, inputs).to(dtype), torch.randn(512, outputs).to(dtype)
        best += min(timed(torch.nn.functional.linear, x, weight, order=order) for _ in range(12))
        best += min(timed(torch.mm, dy, weight, order=order) for _ in range(12))
        operations += 2 * 2 * 512 * outputs * inputs
    return operations / best


def timed(product: Callable[..., object], *operands: object, order: dict[str, Any]) -> float:
    started = clock(order)
    product(*operands)
    return clock(order) - started


if __name__ == "__main__":
    print(json.dumps(contend(json.loads(sys.stdin.read()))))
