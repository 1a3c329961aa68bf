"""Measure the training step on a GPU: speed, copies and synchronisations, compared with other trainers.

    scripts/gpu_training [--shapes smollm2,llama-8b] [--peers ours,trl-packing,unsloth] [--json]

Weights are random, so nothing is fetched. Each contender runs in a process of its own. Columns: tokens read a
second; model FLOPs utilisation (4 operations a weight and token, 6 for the adapter's, against --peak-tflops);
copies to and from the device and waits a step, as the profiler and CUDA's synchronisation warnings count them.

Not yet seen running on a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import time
import warnings
from array import array
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "llama-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip
ROWS, CAPACITY, RANK, WARM, MEASURED = 4096, 2048, 16, 4, 12
COPIES = ("Memcpy HtoD", "Memcpy DtoH")


def make_rows(vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """Make rows of a few hundred random tokens; the second half is trained on."""
    source = random.Random(7)
    lengths = [min(CAPACITY, max(32, int(source.lognormvariate(5.5, 0.6)))) for _ in range(ROWS)]
    return [
        ([source.randrange(10, vocabulary) for _ in range(length)], [0] * (length // 2) + [1] * (-(-length // 2)))
        for length in lengths
    ]


def write_model(shape: str, folder: Path) -> Path:
    """Write a model directory with random bfloat16 weights of the given shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model: Any = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], dtype="bfloat16", pad_token_id=0))  # type: ignore[no-untyped-call]
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / shape)
    return folder / shape


def load(model: Path) -> Any:
    """Load the model with a new adapter."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.spec import LoraSection
    from trainer.training.adapter import attach_adapter

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, device_map={"": 0})
    base.config.use_cache = False
    return attach_adapter(base, LoraSection(lora_r=RANK))


class Observer:
    """Counts steps; measures time, copies and synchronisations of those after the warm-up."""

    def __init__(self) -> None:
        self.steps = 0
        self.seconds = 0.0
        self._profiler: Any = None
        self._caught: Any = None
        self.waits = 0

    def step_ended(self) -> None:
        """Count one step; call it after each optimizer step."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        self.steps += 1
        if self.steps == WARM:
            torch.cuda.synchronize()
            self.seconds = time.perf_counter()
        elif self.steps == WARM + MEASURED:
            torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.seconds
            self._caught = warnings.catch_warnings(record=True)
            self._log = self._caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            self._profiler = profile(activities=[ProfilerActivity.CUDA])
            self._profiler.__enter__()
        elif self.steps == WARM + 2 * MEASURED:
            torch.cuda.set_sync_debug_mode("default")
            self.waits = sum("synchronizing" in str(item.message) for item in self._log)
            self._caught.__exit__(None, None, None)
            self._profiler.__exit__(None, None, None)

    def figures(self, tokens_each: float) -> dict[str, float]:
        """Return the measurements."""
        import torch

        events = self._profiler.key_averages()
        copies = sum(event.count for event in events if event.key.startswith(COPIES))
        return {
            "tokens_per_second": tokens_each * MEASURED / self.seconds,
            "copies_per_step": copies / MEASURED,
            "waits_per_step": self.waits / MEASURED,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        }


def ours(model: Path, rows: list[Any]) -> dict[str, float]:
    """Train with the job's loop and packing."""
    import torch

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

    examples = tuple(Example(array("i", ids), bytes(own), stops=True) for ids, own in rows)
    adapted, observer = load(model), Observer()
    loss = CausalLoss(
        adapted, Precision(torch.device("cuda"), torch.bfloat16, autocast=True), pad_id=0, longest=CAPACITY
    )
    section = TrainSection(
        per_device_train_batch_size=4, max_steps=WARM + 2 * MEASURED, logging_steps=1000,
    )  # fmt: skip
    data = Dataset(examples, (), RowCounts(len(examples), 0, 0, 0), ())
    packing = DataSection(packing=True, max_length=CAPACITY)
    method = SupervisedFineTuning(MethodInputs(data, loss, section, torch.device("cuda"), data=packing))
    training = Trainer(
        adapted, method, PlainStepPolicy(adapted, method, examples, section), section,
        report=lambda event: observer.step_ended() if isinstance(event, StepCompleted) else None,
    )  # fmt: skip
    outcome = training.run()
    return observer.figures(outcome.input_tokens / outcome.steps)


def trl_packing(model: Path, rows: list[Any], *, unsloth: bool = False) -> dict[str, float]:
    """Train with TRL's trainer and packing, optionally on unsloth's model."""
    if unsloth:
        from unsloth import FastLanguageModel  # before trl and transformers

        base, _ = FastLanguageModel.from_pretrained(str(model), max_seq_length=CAPACITY, use_exact_model_name=True)
        adapted = FastLanguageModel.get_peft_model(base, r=RANK, lora_alpha=32)
    else:
        adapted = load(model)
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    observer = Observer()

    class Watch(TrainerCallback):
        """Reports the end of each step to the observer."""

        def on_step_end(self, *_arguments: Any, **_named: Any) -> None:
            observer.step_ended()

    words = Tokenizer(models.WordLevel({"<eos>": 0, "<pad>": 1}, unk_token="<eos>"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            adapted,
            args=SFTConfig(
                output_dir=folder, per_device_train_batch_size=4, max_steps=WARM + 2 * MEASURED, bf16=True,
                packing=True,
                max_length=CAPACITY, gradient_checkpointing=False,
                report_to="none", save_strategy="no",
                logging_steps=1000, completion_only_loss=True, disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"input_ids": ids, "completion_mask": own} for ids, own in rows]),
            processing_class=PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>"),  # type: ignore[no-untyped-call]
            callbacks=[Watch()],
        )  # fmt: skip
        packed = sum(len(ids) for ids in trainer.train_dataset["input_ids"]) / len(trainer.train_dataset)
        trainer.train()
    return observer.figures(4 * packed)


def contend(kind: str, model: Path, vocabulary: int) -> dict[str, float]:
    """Run one contender in this process."""
    rows = make_rows(vocabulary)
    return ours(model, rows) if kind == "ours" else trl_packing(model, rows, unsloth=kind == "unsloth")


def work_per_token(shape: str) -> float:
    """Return operations per token; the head counts for the half of the tokens that is trained on."""
    sizes = SHAPES[shape]
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    key = width * sizes["num_key_value_heads"] // sizes["num_attention_heads"]
    layer = [
        (width, width),
        (key, width),
        (key, width),
        (width, width),
        (inner, width),
        (inner, width),
        (width, inner),
    ]
    linear = sum(outputs * inputs for outputs, inputs in layer) * sizes["num_hidden_layers"]
    adapter = sum(RANK * (outputs + inputs) for outputs, inputs in layer) * sizes["num_hidden_layers"]
    total: float = 4.0 * linear + 6.0 * adapter + 2.0 * sizes["vocab_size"] * width
    return total


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=list(SHAPES))
    parser.add_argument("--peers", type=lambda text: text.split(","), default=["ours", "trl-packing", "unsloth"])
    parser.add_argument(
        "--peak-tflops", type=float, default=989.0, help="of the GPU in bfloat16; H100 and H200: 989"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--contend", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        kind, model, vocabulary = options.contend
        print(json.dumps(contend(kind, Path(model), int(vocabulary))))
        return
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for shape in options.shapes:
            model = write_model(shape, Path(folder))
            for kind in options.peers:
                if kind != "ours" and importlib.util.find_spec(kind.partition("-")[0]) is None:
                    print(f"{kind} is not installed: left out", file=sys.stderr)
                    continue
                command = [
                    sys.executable,
                    __file__,
                    "--contend",
                    kind,
                    str(model),
                    str(SHAPES[shape]["vocab_size"]),
                ]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{kind} on {shape} failed:\n{done.stderr[-3000:]}")
                figures = json.loads(done.stdout.splitlines()[-1])
                figures["mfu"] = figures["tokens_per_second"] * work_per_token(shape) / options.peak_tflops / 1e12
                results[f"{shape} {kind}"] = figures
    print(json.dumps(results) if options.json else "\n".join(f"{name}: {row}" for name, row in results.items()))


if __name__ == "__main__":
    main()
