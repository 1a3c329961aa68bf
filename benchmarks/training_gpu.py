"""Measure the training step on a GPU: speed, memory, copies and waits, compared with other trainers.

    python -m benchmarks.training_gpu [--shapes smollm2,llama-8b] [--peers ours,trl-packing,unsloth] [--json]

Weights are random, so nothing is fetched. Each contender runs in a process of its own, with the same rows and
adapter, in bfloat16, without checkpointing, with four packed bins of one length a step. Columns: tokens read a
second; model FLOPs utilisation (4 operations a weight and token, 6 for the adapter's, against --peak-tflops); peak
memory; copies to and from the device and waits a step, by the profiler and CUDA's synchronisation warnings.

`--device cpu --shapes tiny` takes the same way on a CPU; its figures mean nothing. Not yet seen running on a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.training_contender import tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "smollm2": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "llama-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip
RANK, ALPHA, BINS = 16, 32, 4
COPIES = ("Memcpy HtoD", "Memcpy DtoH")


@dataclass(frozen=True)
class Extent:
    """How much is measured: rows, tokens of a bin, and steps: before, for the time, and for copies and waits."""

    rows: int
    capacity: int
    warm: int
    measured: int

    @property
    def steps(self) -> int:
        return self.warm + 2 * self.measured


EXTENTS = {"cuda": Extent(4096, 2048, 4, 12), "cpu": Extent(64, 64, 1, 2)}


def make_rows(vocabulary: int, extent: Extent) -> list[tuple[list[int], list[int]]]:
    """Make rows of random tokens, a few hundred each on a GPU; the second half is trained on."""
    source = random.Random(7)
    longest, middle = extent.capacity, extent.capacity / 8
    drawn = [int(middle * source.lognormvariate(0, 0.6)) for _ in range(extent.rows)]
    lengths = [min(longest, max(longest // 64, length)) for length in drawn]
    return [
        (
            [source.randrange(10, vocabulary) for _ in range(length)],
            [0] * (length // 2) + [1] * (-(-length // 2)),
        )
        for length in lengths
    ]


def count_waits(messages: Iterable[str]) -> int:
    """Count the waits among the warnings of `set_sync_debug_mode`, which also says once that it is a prototype."""
    return sum("called a synchronizing CUDA operation" in message for message in messages)


def write_model(shape: str, folder: Path, device: str) -> Path:
    """Write a model directory with random bfloat16 weights of the given shape, and the tokenizer of peers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model: Any = LlamaForCausalLM(
            LlamaConfig(**SHAPES[shape], dtype="bfloat16", pad_token_id=0)
        )  # type: ignore[no-untyped-call]
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / shape)
    tokenizer(PreTrainedTokenizerFast).save_pretrained(folder / shape)
    return folder / shape


def load(model: Path, device: str) -> Any:
    """Load the model with a new adapter."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.spec import LoraSection
    from trainer.training.adapter import attach_adapter

    base = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, device_map={"": device}
    )
    base.config.use_cache = False
    return attach_adapter(base, LoraSection(lora_r=RANK, lora_alpha=ALPHA))


class Observer:
    """Counts steps; measures the time of some after the warm-up, then copies and waits of as many."""

    def __init__(self, extent: Extent, device: str) -> None:
        self._extent = extent
        self._cuda = device == "cuda"
        self.steps, self.waits, self.seconds = 0, 0, 0.0
        self._profiler: Any = None
        self._caught: Any = None

    def step_ended(self) -> None:
        """Count one step; call it after each optimizer step."""
        self.steps += 1
        if self.steps == self._extent.warm:
            self._synchronise()
            self.seconds = time.perf_counter()
        elif self.steps == self._extent.warm + self._extent.measured:
            self._synchronise()
            self.seconds = time.perf_counter() - self.seconds
            self._start_counting()
        elif self.steps == self._extent.steps:
            self._stop_counting()

    def _synchronise(self) -> None:
        import torch

        if self._cuda:
            torch.cuda.synchronize()

    def _start_counting(self) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        self._caught = warnings.catch_warnings(record=True)
        self._log = self._caught.__enter__()
        warnings.simplefilter("always")
        if self._cuda:
            torch.cuda.set_sync_debug_mode("warn")
        activity = ProfilerActivity.CUDA if self._cuda else ProfilerActivity.CPU
        self._profiler = profile(activities=[activity])
        self._profiler.__enter__()

    def _stop_counting(self) -> None:
        import torch

        if self._cuda:
            torch.cuda.set_sync_debug_mode("default")
        self.waits = count_waits(str(item.message) for item in self._log)
        self._caught.__exit__(None, None, None)
        self._profiler.__exit__(None, None, None)

    def figures(self, tokens_each: float) -> dict[str, float]:
        """Return the measurements of steps that read `tokens_each` tokens."""
        import torch

        copies = sum(
            event.count for event in self._profiler.key_averages() if event.key.startswith(COPIES)
        )
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "tokens_per_second": tokens_each * self._extent.measured / self.seconds,
            "copies_per_step": copies / self._extent.measured,
            "waits_per_step": self.waits / self._extent.measured,
            "peak_gib": (torch.cuda.max_memory_allocated() if self._cuda else resident) / 2**30,
        }


def ours(model: Path, rows: list[Any], device: str) -> dict[str, float]:
    """Train with the job's loop and packing."""
    import torch

    from benchmarks.older_torch import accept_grouped_queries
    from trainer.data.examples.example import Example
    from trainer.data.examples.example_set import Dataset, RowCounts
    from trainer.spec import DataSection, TrainSection
    from trainer.training.engines.base import Precision
    from trainer.training.events import StepCompleted
    from trainer.training.loop import Trainer
    from trainer.training.loss import CausalLoss
    from trainer.training.methods.method import MethodInputs
    from trainer.training.methods.sft import SupervisedFineTuning
    from trainer.training.step_policy import PlainStepPolicy

    accept_grouped_queries()
    extent, place = EXTENTS[device], torch.device(device)
    examples = tuple(Example(array("i", ids), bytes(own), stops=True) for ids, own in rows)
    adapted, observer = load(model, device), Observer(extent, device)
    loss = CausalLoss(
        adapted, Precision(place, torch.bfloat16, autocast=True), pad_id=0, longest=extent.capacity
    )
    if loss.forward_mode != "fused":
        raise SystemExit("the fused pass was not taken")
    section = TrainSection(
        per_device_train_batch_size=BINS, max_steps=extent.steps, logging_steps=1000
    )
    data = Dataset(examples, (), RowCounts(len(examples), 0, 0, 0), ())
    packing = DataSection(packing=True, max_length=extent.capacity)
    method = SupervisedFineTuning(MethodInputs(data, loss, section, place, data=packing))
    training = Trainer(
        adapted, method, PlainStepPolicy(adapted, method, examples, section), section,
        report=lambda event: observer.step_ended() if isinstance(event, StepCompleted) else None,
    )  # fmt: skip
    outcome = training.run()
    return observer.figures(outcome.input_tokens / outcome.steps)


def unsloth_model(model: Path, extent: Extent) -> Any:
    """Load the model with unsloth's kernels, in 16 bits and without checkpointing as everybody else."""
    import torch
    from unsloth import FastLanguageModel  # before trl and transformers

    base, _ = FastLanguageModel.from_pretrained(
        str(model), max_seq_length=extent.capacity, use_exact_model_name=True, dtype=torch.bfloat16,
        load_in_4bit=False, local_files_only=True, use_gradient_checkpointing=False,
    )  # fmt: skip
    return FastLanguageModel.get_peft_model(
        base, r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, use_gradient_checkpointing=False
    )


def trl_packing(
    model: Path, rows: list[Any], device: str, *, unsloth: bool = False
) -> dict[str, float]:
    """Train with TRL's trainer and packing, optionally on unsloth's model."""
    extent = EXTENTS[device]
    adapted = unsloth_model(model, extent) if unsloth else load(model, device)
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    observer = Observer(extent, device)

    class Watch(TrainerCallback):
        """Reports the end of each step to the observer."""

        def on_step_end(self, *_arguments: Any, **_named: Any) -> None:
            observer.step_ended()

    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            adapted,
            args=SFTConfig(
                output_dir=folder, per_device_train_batch_size=BINS, max_steps=extent.steps, bf16=True,
                packing=True, max_length=extent.capacity, gradient_checkpointing=False, report_to="none",
                save_strategy="no", logging_steps=1000, completion_only_loss=True, disable_tqdm=True,
                use_cpu=device == "cpu",
            ),
            train_dataset=Dataset.from_list([{"input_ids": ids, "completion_mask": own} for ids, own in rows]),
            processing_class=tokenizer(PreTrainedTokenizerFast),
            callbacks=[Watch()],
        )  # fmt: skip
        packed = sum(len(ids) for ids in trainer.train_dataset["input_ids"]) / len(
            trainer.train_dataset
        )
        trainer.train()
    return observer.figures(BINS * packed)


def contend(kind: str, model: Path, shape: str, device: str) -> dict[str, float]:
    """Run one contender in this process."""
    rows = make_rows(SHAPES[shape]["vocab_size"], EXTENTS[device])
    if kind == "ours":
        return ours(model, rows, device)
    return trl_packing(model, rows, device, unsloth=kind == "unsloth")


def work_per_token(shape: str) -> float:
    """Return operations per token; the head counts for the half of the tokens that is trained on."""
    sizes = SHAPES[shape]
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    key = width * sizes["num_key_value_heads"] // sizes["num_attention_heads"]
    layer = [(width, width)] * 2 + [(key, width)] * 2 + [(inner, width)] * 2 + [(width, inner)]
    linear = sum(outputs * inputs for outputs, inputs in layer) * sizes["num_hidden_layers"]
    adapter = (
        sum(RANK * (outputs + inputs) for outputs, inputs in layer) * sizes["num_hidden_layers"]
    )
    total: float = 4.0 * linear + 6.0 * adapter + 2.0 * sizes["vocab_size"] * width
    return total


def measured(kind: str, model: Path, shape: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one contender in a process of its own; one that fails is a result too, and the others go on."""
    if kind != "ours" and importlib.util.find_spec(kind.partition("-")[0]) is None:
        return {"skipped": f"{kind.partition('-')[0]} is not installed"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.training_gpu",
        "--contend",
        kind,
        str(model),
        shape,
    ]
    command += ["--device", options.device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr[-3000:]}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    figures["mfu"] = (
        figures["tokens_per_second"] * work_per_token(shape) / options.peak_tflops / 1e12
    )
    return figures


def main() -> int:
    """Run the command line; returns 1 if a contender failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shapes", type=lambda text: text.split(","), default=["smollm2", "llama-8b"]
    )
    parser.add_argument(
        "--peers", type=lambda text: text.split(","), default=["ours", "trl-packing", "unsloth"]
    )
    parser.add_argument("--device", choices=EXTENTS, default="cuda")
    parser.add_argument(
        "--peak-tflops", type=float, default=989.0, help="in bfloat16; H100 and H200: 989"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--contend", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        kind, model, shape = options.contend
        print(json.dumps(contend(kind, Path(model), shape, options.device)))
        return 0
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for shape in options.shapes:
            model = write_model(shape, Path(folder), options.device)
            for kind in options.peers:
                results[f"{shape} {kind}"] = measured(kind, model, shape, options)
    print(
        json.dumps(results)
        if options.json
        else "\n".join(f"{name}: {row}" for name, row in results.items())
    )
    return int(any("failed" in row for row in results.values()))


if __name__ == "__main__":
    sys.exit(main())
