"""The training step against its peers: same model, rows, batch, numbers, seed and adapter, one process each, in turn.

    python benchmarks/training.py --model DIR --data rows.jsonl [--rounds 3] [--steps 24] [--peers ours,hf,…] [--json]

Without --model: a Llama of 15 million random weights, and rows of made-up tokens. Peers are left out where their
package is missing (`pip install trl==1.14.2`).

Times are the best of all rounds, since other work on the machine only ever adds; the rest are medians.

One pass over `steps` × `batch` rows, so everyone is given the same tokens. Columns:

- trained, input: tokens a second that the loss is taken on, and that are read; padding does not count;
- share: of the machine's rate of matrix products, measured in the same rounds in the same numbers on the model's
  layer shapes. What counts as work: 4 operations for each weight of a linear layer and each token read (forward, and
  the input's gradient), 6 for each weight of the adapter, 4 for each weight of the head and each trained token;
- held-out: loss per trained token after training, of the plain model with the adapter, row by row in the same numbers;
- peak: resident memory of the process, as the kernel counted it up to the end of training.
"""

from __future__ import annotations

import argparse
import importlib.util
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DTYPES = ("bf16", "fp32")
KINDS = ("ours", "ours-packing", "hf", "hf-grouped", "trl", "trl-packing", "trl-padding-free")
LORA_RANK, LORA_ALPHA = 16, 32
HELD_OUT = 24

Row = tuple[list[int], list[int]]
"""Token ids, and 1 for each that is trained on."""


def made_up_rows(count: int, vocabulary: int) -> list[Row]:
    """Lengths as in a set of questions and answers: median 130; the second half is trained on."""
    source = random.Random(7)
    rows = []
    for _ in range(count):
        length = min(400, max(24, int(source.lognormvariate(4.87, 0.35))))
        start = source.randrange(vocabulary)
        ids = [(start + 31 * place + source.randrange(3)) % vocabulary for place in range(length)]
        rows.append((ids, [0] * (length // 2) + [1] * (length - length // 2)))
    return rows


def real_rows(model: Path, data: Path) -> list[Row]:
    """What the job makes of a data file: its own encoding, for all contenders."""
    from trainer.rows import read_files
    from trainer.spec import DataSection
    from trainer.worker.encode import encode
    from trainer.worker.tokens import load_tokens

    tokens, section = load_tokens(model), DataSection()
    examples = [encode(row, tokens, section) for row in read_files({data.name: data}, max_rows=10_000)]
    return [(list(example.ids), list(example.trained)) for example in examples if example is not None]


def random_model(folder: Path) -> Path:
    """A Llama of 15 million weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=384, intermediate_size=1152, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=True, dtype="bfloat16", bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    return folder / "model"


# --- a contender's process -------------------------------------------------------------------------------------


def adapted_model(order: dict[str, Any]) -> Any:
    """The model with a fresh adapter: the same in every process."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.spec import LoraSection
    from trainer.worker.model import attach_adapter

    torch.manual_seed(1)
    dtype = torch.bfloat16 if order["dtype"] == "bf16" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(order["model"], dtype=dtype)
    model.config.use_cache = False
    return attach_adapter(model, LoraSection(lora_r=LORA_RANK, lora_alpha=LORA_ALPHA))


def contend(order: dict[str, Any]) -> dict[str, float]:
    """Train, and say how it went."""
    if order["kind"] == "gemm":
        return {"flops": gemm_rate(order)}
    model = adapted_model(order)
    train: Callable[[Any, dict[str, Any]], tuple[float, float]]
    train = train_ours if order["kind"].startswith("ours") else train_peer
    seconds, loss = train(model, order)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "loss": loss, "peak_mib": peak, "held_out": held_out_loss(model, order)}


def train_ours(model: Any, order: dict[str, Any]) -> tuple[float, float]:
    """The job's loop; returns seconds and the mean training loss."""
    import torch

    from trainer.spec import TrainSection
    from trainer.worker.dataset import Dataset, RowCounts
    from trainer.worker.encode import Example
    from trainer.worker.loop import Training
    from trainer.worker.loss import CausalLoss
    from trainer.worker.model import Precision
    from trainer.worker.packing import best_fit_decreasing

    examples = tuple(Example(array("i", ids), bytes(trained), stops=True) for ids, trained in order["rows"])
    bf16 = order["dtype"] == "bf16"
    precision = Precision(torch.device("cpu"), torch.bfloat16 if bf16 else torch.float32, autocast=bf16)
    packs = order["kind"] == "ours-packing"
    section = TrainSection(
        per_device_train_batch_size=1 if packs else order["batch"], learning_rate=order["rate"],
        lr_scheduler_type="constant", max_grad_norm=1.0, seed=order["seed"], logging_steps=1,
    )  # fmt: skip
    lengths = [example.length for example in examples]
    loss = CausalLoss(model, precision, pad_id=0, longest=max(lengths))
    if loss.way != "fused":
        raise SystemExit("the quick way was not taken")
    data = Dataset(examples, (), RowCounts(len(examples), 0, 0, 0), ())
    bins = best_fit_decreasing(lengths, order["bin"]) if packs else None
    training = Training(
        model, loss, data, section, report=lambda _message: None, bins=bins, clock=lambda: clock(order)
    )
    outcome = training.run()
    return outcome.train_seconds, outcome.train_loss


def train_peer(model: Any, order: dict[str, Any]) -> tuple[float, float]:
    """HF Trainer or TRL's SFTTrainer."""
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
    return times[-1] - times[0], float(result.training_loss)


def clock(order: dict[str, Any]) -> float:
    return time.process_time() if order["cpu_clock"] else time.perf_counter()


def common_arguments(order: dict[str, Any]) -> dict[str, Any]:
    """What HF's and TRL's configuration share."""
    return {
        "output_dir": order["folder"], "per_device_train_batch_size": order["batch"], "num_train_epochs": 1,
        "learning_rate": order["rate"], "lr_scheduler_type": "constant", "seed": order["seed"],
        "bf16": order["dtype"] == "bf16", "use_cpu": True, "report_to": "none", "save_strategy": "no",
        "logging_steps": 1, "disable_tqdm": True, "gradient_checkpointing": False, "max_grad_norm": 1.0,
    }  # fmt: skip


def make_hf(model: Any, order: dict[str, Any]) -> Any:
    import torch
    from transformers import Trainer, TrainingArguments

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, filler: int) -> torch.Tensor:
            return torch.tensor([row[name] + [filler] * (width - len(row[name])) for row in rows])

        mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
        ids = padded("input_ids", 0)
        return {"input_ids": ids, "labels": padded("labels", -100), "attention_mask": torch.tensor(mask)}

    rows = [
        {"input_ids": ids, "labels": [id_ if own else -100 for id_, own in zip(ids, trained, strict=True)]}
        for ids, trained in order["rows"]
    ]
    arguments = common_arguments(order)
    if order["kind"] == "hf-grouped":
        arguments["train_sampling_strategy"] = "group_by_length"
    return Trainer(model, TrainingArguments(**arguments), data_collator=collate, train_dataset=rows)  # type: ignore[arg-type]


def make_trl(model: Any, order: dict[str, Any]) -> Any:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    arguments = common_arguments(order) | {"completion_only_loss": True, "max_length": None}
    if order["kind"] == "trl-packing":
        arguments |= {"packing": True, "max_length": order["bin"], "per_device_train_batch_size": 1}
    if order["kind"] == "trl-padding-free":
        arguments |= {"padding_free": True}
    rows = Dataset.from_list([{"input_ids": ids, "completion_mask": own} for ids, own in order["rows"]])
    return SFTTrainer(
        model, args=SFTConfig(**arguments), train_dataset=rows, processing_class=tokenizer(PreTrainedTokenizerFast)
    )


def tokenizer(make: Any) -> Any:
    """TRL asks for one even where rows are tokens; it is never used."""
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"<eos>": 0, "<pad>": 1}, unk_token="<eos>"))
    return make(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")


def held_out_loss(model: Any, order: dict[str, Any]) -> float:
    """Loss per trained token, row by row, by the model's own forward pass."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=order["dtype"] == "bf16"):
        for ids, trained in order["held_out"]:
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
            own = torch.tensor(trained[1:])
            total, count = total + float((losses * own).sum()), count + int(own.sum())
    return total / count


def gemm_rate(order: dict[str, Any]) -> float:
    """Operations a second in the products of one forward and backward pass, 512 tokens at once."""
    import torch

    dtype = torch.bfloat16 if order["dtype"] == "bf16" else torch.float32
    best, operations = 0.0, 0
    for outputs, inputs in order["shapes"]:
        weight = torch.randn(outputs, inputs).to(dtype)
        x, dy = torch.randn(512, inputs).to(dtype), torch.randn(512, outputs).to(dtype)
        best += min(timed(lambda: torch.nn.functional.linear(x, weight), order) for _ in range(12))
        best += min(timed(lambda: dy @ weight, order) for _ in range(12))
        operations += 2 * 2 * 512 * outputs * inputs
    return operations / best


def timed(work: Callable[[], object], order: dict[str, Any]) -> float:
    started = clock(order)
    work()
    return clock(order) - started


# --- the process that compares ---------------------------------------------------------------------------------


def layer_shapes(model: Path) -> tuple[list[tuple[int, int]], int]:
    """(outputs, inputs) of a layer's linear parts, the number of layers; and weights of the head."""
    config = json.loads((model / "config.json").read_text())
    width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_width = config.get("head_dim") or width // heads
    query, key = heads * head_width, config["num_key_value_heads"] * head_width
    layer = [(query, width), (key, width), (key, width), (width, query)]
    layer += [(inner, width), (inner, width), (width, inner)]
    return layer * config["num_hidden_layers"], config["vocab_size"] * width


def work(model: Path, rows: list[Row]) -> float:
    """Operations that one pass over the rows needs; see the module."""
    shapes, head = layer_shapes(model)
    linear = sum(outputs * inputs for outputs, inputs in shapes)
    adapter = sum(LORA_RANK * (outputs + inputs) for outputs, inputs in shapes)
    read, trained = sum(len(ids) for ids, _ in rows), sum(sum(own) for _, own in rows)
    return (4.0 * linear + 6.0 * adapter) * read + 4.0 * head * trained


def run_contender(order: dict[str, Any]) -> dict[str, float]:
    """In a process of its own, with the same variables for all."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "GOMP_SPINCOUNT": "10000", "TQDM_DISABLE": "1"}
    environment |= {"OMP_NUM_THREADS": "1"} if order["cpu_clock"] else {}
    done = subprocess.run(
        [sys.executable, __file__, "--contend"], input=json.dumps(order), capture_output=True, text=True,
        env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{order['kind']}/{order['dtype']} failed:\n{done.stderr[-3000:]}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds."""
    model = options.model or random_model(folder)
    count = options.steps * options.batch
    rows = real_rows(model, options.data) if options.data else made_up_rows(count + HELD_OUT, 8192)
    random.Random(3).shuffle(rows)
    rows, held_out = rows[: min(count, len(rows) - HELD_OUT)], rows[-HELD_OUT:]
    longest = max(len(ids) for ids, _ in rows)
    order = {
        "model": str(model), "rows": rows, "held_out": held_out, "batch": options.batch, "rate": 1e-3, "seed": 5,
        "bin": max(longest, options.batch * sum(len(ids) for ids, _ in rows) // len(rows)),
        "shapes": sorted(set(layer_shapes(model)[0])), "folder": str(folder),
        "cpu_clock": options.cpu_clock,
    }  # fmt: skip
    results: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for dtype in options.dtypes:
            for kind in ("gemm", *options.peers):
                result = run_contender(order | {"kind": kind, "dtype": dtype})
                results.setdefault(f"{kind}/{dtype}", []).append(result)
                print(f"{kind}/{dtype}: {result}", file=sys.stderr, flush=True)
    return summarise(results, model, rows)


def summarise(results: dict[str, list[dict[str, float]]], model: Path, rows: list[Row]) -> dict[str, Any]:
    def middle(name: str, key: str) -> float:
        return statistics.median(result[key] for result in results[name])

    read, trained = sum(len(ids) for ids, _ in rows), sum(sum(own) for _, own in rows)
    rates = {name: max(one["flops"] for one in results[name]) / 1e9 for name in results if name.startswith("gemm")}
    table: dict[str, Any] = {}
    for name in results:
        kind, dtype = name.split("/")
        if kind != "gemm":
            seconds = min(result["seconds"] for result in results[name])
            table[name] = {
                "trained_per_second": trained / seconds,
                "input_per_second": read / seconds,
                "share": work(model, rows) / seconds / rates[f"gemm/{dtype}"] / 1e9,
                "peak_mib": middle(name, "peak_mib"),
                "train_loss": middle(name, "loss"),
                "held_out_loss": middle(name, "held_out"),
            }
    for name, row in table.items():
        row["ours_against_it"] = (
            table[f"ours/{name.split('/')[1]}"]["trained_per_second"] / row["trained_per_second"]
        )
    return {
        "rows": len(rows),
        "trained_tokens": trained,
        "input_tokens": read,
        "gflops": rates,
        "contenders": table,
    }


def show(summary: dict[str, Any]) -> Iterator[str]:
    yield f"{summary['rows']} rows, {summary['input_tokens']} tokens, {summary['trained_tokens']} trained"
    yield ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in summary["gflops"].items())
    yield f"{'':22}{'trained/s':>10}{'input/s':>9}{'share':>7}{'peak MiB':>10}{'held-out':>10}{'ours is':>9}"
    for name, row in summary["contenders"].items():
        yield (
            f"{name:22}{row['trained_per_second']:10.0f}{row['input_per_second']:9.0f}{row['share']:7.0%}"
            f"{row['peak_mib']:10.0f}{row['held_out_loss']:10.3f}{row['ours_against_it']:8.2f}x"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path, help="rows for --model, in the job's formats")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4, help="rows per optimizer step")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--dtypes", type=lambda text: text.split(","), default=list(DTYPES))
    parser.add_argument(
        "--cpu-clock", action="store_true", help="one thread, CPU time: for a machine that is shared"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--contend", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        print(json.dumps(contend(json.loads(sys.stdin.read()))))
        return
    if (options.model is None) != (options.data is None):
        parser.error("--model and --data belong together")
    if importlib.util.find_spec("trl") is None:
        options.peers = [kind for kind in options.peers if not kind.startswith("trl")]
        print("trl is not installed: left out", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        summary = compare(options, Path(name))
    print(json.dumps(summary) if options.json else "\n".join(show(summary)))


if __name__ == "__main__":
    main()
