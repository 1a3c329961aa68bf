"""Compare DPO training with TRL's: same model, pairs, order, precision and adapter, one process each, in turn.

    python benchmarks/preference.py --model DIR --data rows.jsonl [--rounds 2] [--steps 12] [--cpu-clock]

Without --model: a Llama of 15 million random weights and pairs of made-up tokens. With --data, rows of questions
with answers, each pair's rejected answer is another question's. TRL has an environment of its own, as in
`training`, and gets the pairs as tokens, in the order in which our loop takes them: neighbours in length share its
batches too.

Contenders: `ours`; `trl`, which runs the reference in each step; and `trl-precompute`, which does so once before
(`precompute_ref_log_probs`). None with gradient checkpointing.

Columns: trained tokens a second over the optimizer steps; the same with the seconds spent on the reference before
them; loss and reward margin at the last step; peak memory. Below: the loss of each step, side by side. Times are
the best of all rounds, since other work on the machine only ever adds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import training, training_contender
from benchmarks.peer_environment import peer_interpreter

KINDS = ("ours", "trl-precompute", "trl")
BETA = 0.1

Pair = tuple[list[int], list[int], list[int]]
"""Token ids of a prompt, its chosen and its rejected answer."""


def made_up_pairs(count: int, vocabulary: int) -> list[Pair]:
    """Make pairs from the random rows of `training`; the second half of a row is its answer."""
    rows = training.made_up_rows(count + 1, vocabulary)
    return [pair_of(rows[place], rows[place + 1]) for place in range(count)]


def real_pairs(model: Path, data: Path) -> list[Pair]:
    """Pair each question with its own answer (chosen) and the next question's (rejected)."""
    rows = training.real_rows(model, data)
    random.Random(3).shuffle(rows)
    return [pair_of(row, other) for row, other in itertools.pairwise(rows) if row != other]


def pair_of(row: training.Row, other: training.Row) -> Pair:
    start, end = row[1].index(1), other[1].index(1)
    return row[0][:start], row[0][start:], other[0][end:]


def in_our_order(pairs: list[Pair], order: dict[str, Any]) -> list[Pair]:
    """Return the pairs in the order in which our loop trains on them."""
    from trainer.training.batches import StepPlan

    sizes = [2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in pairs]
    return [pairs[unit] for step in StepPlan(sizes, section_of(order)).steps() for unit in step]


def section_of(order: dict[str, Any]) -> Any:
    from trainer.spec import TrainSection

    return TrainSection(
        method="dpo", beta=BETA, loss_type=order["loss_type"], label_smoothing=smoothing(order),
        per_device_train_batch_size=order["batch"], per_device_eval_batch_size=order["batch"], seed=order["seed"],
        learning_rate=order["rate"], lr_scheduler_type="constant",
    )  # fmt: skip


def smoothing(order: dict[str, Any]) -> float:
    """Return the label smoothing, which only the loss `robust` uses."""
    return 0.1 if order["loss_type"] == "robust" else 0.0


def contend(order: dict[str, Any]) -> dict[str, Any]:
    """Run one contender in this process."""
    import torch

    torch.set_num_threads(1 if order["cpu_clock"] else torch.get_num_threads())
    result: dict[str, Any] = train_ours(order) if order["kind"] == "ours" else train_trl(order)
    return result | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def set_adapter(model: Any) -> None:
    """Set the adapter's initial weights from a seed, the same in every process."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_A" in name:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5
                )


def train_ours(order: dict[str, Any]) -> dict[str, Any]:
    """Train with the job's loop on the given steps."""
    import torch

    from trainer.data.examples.example import Example
    from trainer.data.examples.example_set import Dataset, RowCounts
    from trainer.training.engines.base import Precision
    from trainer.training.events import MetricsMeasured
    from trainer.training.loop import Trainer
    from trainer.training.loss import CausalLoss
    from trainer.training.methods.dpo import DirectPreferenceOptimization
    from trainer.training.methods.method import MethodInputs
    from trainer.training.step_policy import PlainStepPolicy

    model = training_contender.adapted_model(order)
    set_adapter(model)
    bf16 = order["dtype"] == "bf16"
    precision = Precision(
        torch.device("cpu"), torch.bfloat16 if bf16 else torch.float32, autocast=bf16
    )
    examples = tuple(
        Example(array("i", prompt + answer), bytes(len(prompt)) + b"\1" * len(answer), stops=True)
        for prompt, *answers in order["pairs"]
        for answer in answers
    )
    loss = CausalLoss(
        model, precision, pad_id=0, longest=max(example.length for example in examples)
    )
    if loss.forward_mode != "fused":
        raise SystemExit("the quick way was not taken")
    data, section = (
        Dataset(examples, (), RowCounts(len(examples) // 2, 0, 0, 0), ()),
        section_of(order),
    )
    begun = training_contender.clock(order)
    method = DirectPreferenceOptimization(
        MethodInputs(data, loss, section, precision.device, reference=loss.adapter_disabled)
    )
    reference_seconds = training_contender.clock(order) - begun
    seen: list[dict[str, float]] = []

    def report(message: object) -> None:
        if isinstance(message, MetricsMeasured):
            seen.append(message.values)

    policy = PlainStepPolicy(model, method, examples, section)
    units, size = list(range(len(order["pairs"]))), order["batch"]
    policy.plan = InOrder([units[start : start + size] for start in range(0, len(units), size)])  # type: ignore[assignment]
    loop = Trainer(
        model, method, policy, section, report=report, clock=lambda: training_contender.clock(order)
    )
    outcome = loop.run()
    return {
        "seconds": outcome.train_seconds, "reference_seconds": reference_seconds,
        "losses": [values["loss"] for values in seen], "margins": [values["rewards_margins"] for values in seen],
    }  # fmt: skip


class InOrder:
    """A step plan that keeps the order of the pairs."""

    def __init__(self, steps: list[list[int]]) -> None:
        self._steps = steps
        self.steps_per_epoch = self.total_steps = len(steps)

    def steps(self, done: int = 0) -> Iterator[list[int]]:
        """Yield the pairs of each step after the first `done` steps, as `StepPlan.steps` does."""
        return iter(self._steps[done:])


def train_trl(order: dict[str, Any]) -> dict[str, Any]:
    """Train with TRL's DPOTrainer on token ids, in the given order."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    times: list[float] = []
    reference_seconds = [0.0]

    class Clock(TrainerCallback):
        def on_train_begin(self, *_arguments: Any, **_named: Any) -> None:
            times.append(training_contender.clock(order))

        def on_train_end(self, *_arguments: Any, **_named: Any) -> None:
            times.append(training_contender.clock(order))

    class OnTokens(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_arguments: Any, **_named: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_arguments: Any, **_named: Any) -> Any:
            return SequentialSampler(self.train_dataset)

        def _precompute_ref_logps(self, *arguments: Any, **named: Any) -> Any:
            begun = training_contender.clock(order)
            result = super()._precompute_ref_logps(*arguments, **named)
            reference_seconds[0] += training_contender.clock(order) - begun
            return result

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = Dataset.from_list([dict(zip(names, pair, strict=True)) for pair in order["pairs"]])
    dtype = torch.bfloat16 if order["dtype"] == "bf16" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(order["model"], dtype=dtype)
    arguments = training_contender.common_arguments(order) | {
        "beta": BETA, "loss_type": [order["loss_type"]], "label_smoothing": smoothing(order), "max_length": None,
        "precompute_ref_log_probs": order["kind"] == "trl-precompute",
    }  # fmt: skip
    rank, alpha = training_contender.LORA_RANK, training_contender.LORA_ALPHA
    lora = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules="all-linear")
    trainer = OnTokens(
        model, args=DPOConfig(**arguments), train_dataset=rows, peft_config=lora,
        processing_class=training_contender.tokenizer(PreTrainedTokenizerFast),
    )  # fmt: skip
    set_adapter(trainer.model)
    trainer.model.to(torch.device("cpu"))
    for name, parameter in trainer.model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    trainer.add_callback(Clock())
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    return {
        "seconds": times[-1] - times[0], "reference_seconds": reference_seconds[0],
        "losses": [entry["loss"] for entry in logged], "margins": [entry["rewards/margins"] for entry in logged],
    }  # fmt: skip


def run_contender(order: dict[str, Any]) -> dict[str, Any]:
    """Run one contender in a new process, with the same environment for all."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "HF_HOME": order["folder"],
    }
    environment |= {"OMP_NUM_THREADS": "1"} if order["cpu_clock"] else {}
    interpreter = sys.executable if order["kind"] == "ours" else str(peer_interpreter(training.TRL))
    done = subprocess.run(
        [interpreter, __file__, "--contender"], input=json.dumps(order), capture_output=True, text=True,
        env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{order['kind']} failed:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all rounds and return the summary."""
    count = options.steps * options.batch
    model = options.model or training.random_model(folder)
    pairs = real_pairs(model, options.data) if options.data else made_up_pairs(count, 8192)
    order: dict[str, Any] = {
        "model": str(model), "batch": options.batch, "rate": options.rate, "seed": 5, "folder": str(folder),
        "dtype": options.dtype, "loss_type": options.loss_type, "cpu_clock": options.cpu_clock,
    }  # fmt: skip
    order["pairs"] = in_our_order(pairs[:count], order)
    results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in options.peers}
    for _ in range(options.rounds):
        for kind in options.peers:
            results[kind].append(run_contender(order | {"kind": kind}))
            print(
                f"{time.strftime('%H:%M:%S')} {kind}: {results[kind][-1]}",
                file=sys.stderr,
                flush=True,
            )
    return summarise(results, order["pairs"])


def summarise(results: dict[str, list[dict[str, Any]]], pairs: list[Pair]) -> dict[str, Any]:
    trained = sum(len(chosen) + len(rejected) for _, chosen, rejected in pairs)
    read = trained + 2 * sum(len(prompt) for prompt, _, _ in pairs)
    table: dict[str, Any] = {}
    for kind, made in results.items():
        seconds = min(result["seconds"] for result in made)
        whole = min(result["seconds"] + result["reference_seconds"] for result in made)
        table[kind] = {
            "trained_per_second": trained / seconds,
            "with_reference": trained / whole,
            "peak_mib": statistics.median(result["peak_mib"] for result in made),
            "losses": made[-1]["losses"],
            "margins": made[-1]["margins"],
        }
    for row in table.values():
        row["ours_against_it"] = table["ours"]["with_reference"] / row["with_reference"]
    return {
        "pairs": len(pairs),
        "trained_tokens": trained,
        "input_tokens": read,
        "contenders": table,
    }


def show(summary: dict[str, Any]) -> Iterator[str]:
    yield f"{summary['pairs']} pairs, {summary['input_tokens']} tokens, {summary['trained_tokens']} trained"
    yield f"{'':16}{'trained/s':>10}{'with ref.':>11}{'ours is':>9}{'last loss':>11}{'margin':>9}{'peak MiB':>10}"
    for kind, row in summary["contenders"].items():
        yield (
            f"{kind:16}{row['trained_per_second']:10.0f}{row['with_reference']:11.0f}"
            f"{row['ours_against_it']:8.2f}x{row['losses'][-1]:11.4f}{row['margins'][-1]:9.3f}{row['peak_mib']:10.0f}"
        )
    for step, losses in enumerate(
        zip(*(row["losses"] for row in summary["contenders"].values()), strict=True), 1
    ):
        yield f"step {step:3}: " + "  ".join(f"{loss:.4f}" for loss in losses)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument(
        "--data", type=Path, help="questions and answers for --model, in the job's formats"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4, help="pairs per optimizer step")
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--loss-type", default="sigmoid")
    parser.add_argument("--dtype", choices=training.DTYPES, default="bf16")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument(
        "--cpu-clock", action="store_true", help="one thread, CPU time: for a shared machine"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--contender", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(contend(json.loads(sys.stdin.read()))))
        return
    if (options.model is None) != (options.data is None):
        parser.error("--model and --data belong together")
    with tempfile.TemporaryDirectory() as name:
        summary = compare(options, Path(name))
    print(json.dumps(summary) if options.json else "\n".join(show(summary)))


if __name__ == "__main__":
    main()
