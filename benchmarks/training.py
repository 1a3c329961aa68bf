"""Compare the training step with other trainers: same model, rows, batch, precision, adapter; one process each.

    python benchmarks/training.py --model DIR --data rows.jsonl [--long] [--steps 24] [--peers ours,hf]

Without --model: a Llama of 15 million random weights, and rows of made-up tokens.

Contenders:

- `ours`; `ours-packing`; `ours-plain`, the job's loop over the model's own forward pass; `ours-compiled`, that
  with train.torch_compile; `ours@DIR`, that of another checkout, by its own code;
- `hf`: transformers' Trainer; `hf-grouped`: by length, so that there is little padding; `hf-single`: one row at a
  time, no padding, as many accumulated as a batch has;
- `trl`: TRL's SFTTrainer; `trl-packing`: bins by best fit; `trl-padding-free`; `trl-single` as above;
  `trl-as-shipped`: with the gradient checkpointing that TRL switches on. Each may name a version, as in
  `trl-packing@1.14.2`. TRL is installed below `.cache/peers`, in an environment of its own.

No other contender checkpoints gradients. All compute in bfloat16, under autocast over weights of that type, or all
in float32. Peers have torch's SDPA: other kernels for attention need a GPU.

Ours has the allocator that a job's worker is started with, where the system has it (`libtcmalloc-minimal4`), and
peers the system's; `--same-allocator` gives it to all.

Times are the best of all rounds, since other work on the machine only ever adds; the rest are medians.

One pass over `steps` times `batch` rows, so everyone is given the same tokens; the loss of a step is the mean over
its trained tokens for all. With `--long`, rows are joined to conversations of 1,024 to 4,096 tokens, evenly
distributed by the logarithms of their lengths. Columns:

- trained, input: tokens a second that the loss is taken on, and that are read; padding does not count;
- share: of the machine's rate of matrix products, measured in the same rounds in the same numbers on the model's
  layer shapes. What counts as work: 4 operations for each weight of a linear layer and each token read (forward,
  and the input's gradient), 6 for each of the adapter, 4 for each weight of the head and each trained token;
  attention does not count; work that a contender finds a way around counts as done;
- train loss: mean of the steps' losses, on the way;
- held-out: loss per trained token after training, of the plain model with the adapter, row by row, same numbers;
- compiling: seconds that it took before the first step, which are not in the rest;
- peak: resident memory of the process, as the kernel counted it up to the end of training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DTYPES = ("bf16", "fp32")
KINDS = (
    "ours",
    "ours-packing",
    "ours-plain",
    "ours-compiled",
    "hf",
    "hf-grouped",
    "hf-single",
    "trl",
    "trl-packing",
    "trl-padding-free",
    "trl-single",
    "trl-as-shipped",
)
TRL = "1.16.0"
"""The version of TRL that a contender runs which names none."""

LORA_RANK = 16
HELD_OUT = 24
LONG = (1024, 4096)
"""Tokens of the shortest and of the longest row with `--long`."""

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.peer_environment import ROOT, peer_interpreter  # noqa: E402 -- a script finds it by its path

Row = tuple[list[int], list[int]]
"""Token ids, and 1 for each that is trained on."""


def made_up_rows(count: int, vocabulary: int) -> list[Row]:
    """Make random rows with the lengths of a question-answer set (median 130); the second half is trained on."""
    source = random.Random(7)
    rows = []
    for _ in range(count):
        length = min(400, max(24, int(source.lognormvariate(4.87, 0.35))))
        start = source.randrange(vocabulary)
        ids = [(start + 31 * place + source.randrange(3)) % vocabulary for place in range(length)]
        rows.append((ids, [0] * (length // 2) + [1] * (length - length // 2)))
    return rows


def real_rows(model: Path, data: Path) -> list[Row]:
    """Encode a data file with the job's encoding, for all contenders."""
    from trainer.data.examples.row_encoding import encode
    from trainer.data.rows import read_files
    from trainer.spec import DataSection
    from trainer.training.tokenizer import load_tokens

    tokens, section = load_tokens(model), DataSection()
    rows = read_files({data.name: data}, max_rows=10_000)
    examples = [example for row in rows for example in encode(row, tokens, section)]
    return [(list(example.ids), list(example.trained)) for example in examples]


def long_rows(rows: list[Row], count: int) -> list[Row]:
    """Join rows, again and again from the first on, to conversations with lengths within `LONG`."""
    source, supply = random.Random(9), itertools.cycle(rows)
    joined = []
    for _ in range(count):
        length = int(LONG[0] * (LONG[1] / LONG[0]) ** source.random())
        ids: list[int] = []
        trained: list[int] = []
        while len(ids) < length:
            part = next(supply)
            ids += part[0]
            trained += part[1]
        joined.append((ids[:length], trained[:length]))
    return joined


def random_model(folder: Path) -> Path:
    """Write a random Llama of 15 million weights and return its directory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=384, intermediate_size=1152, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=True, dtype="bfloat16", bos_token_id=0, eos_token_id=1,
        pad_token_id=2,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    return folder / "model"


def layer_shapes(model: Path) -> tuple[list[tuple[int, int]], int]:
    """Return (outputs, inputs) of each linear layer of the model, and the number of weights of the head."""
    config = json.loads((model / "config.json").read_text())
    width, inner, heads = (
        config["hidden_size"],
        config["intermediate_size"],
        config["num_attention_heads"],
    )
    head_width = config.get("head_dim") or width // heads
    query, key = heads * head_width, config["num_key_value_heads"] * head_width
    layer = [(query, width), (key, width), (key, width), (width, query)]
    layer += [(inner, width), (inner, width), (width, inner)]
    return layer * config["num_hidden_layers"], config["vocab_size"] * width


def work(model: Path, rows: list[Row]) -> float:
    """Return the floating-point operations of one pass over the rows, as the module defines them."""
    shapes, head = layer_shapes(model)
    linear = sum(outputs * inputs for outputs, inputs in shapes)
    adapter = sum(LORA_RANK * (outputs + inputs) for outputs, inputs in shapes)
    read, trained = sum(len(ids) for ids, _ in rows), sum(sum(own) for _, own in rows)
    return (4.0 * linear + 6.0 * adapter) * read + 4.0 * head * trained


def run_contender(order: dict[str, Any]) -> dict[str, float]:
    """Run one contender in a new process, with the same environment for all; see the module for the allocator."""
    from trainer.sandbox.child_environment import allocator_variables
    from trainer.worker.environment import QUIET

    environment = {**os.environ, **QUIET}
    environment |= {"OMP_NUM_THREADS": "1"} if order["cpu_clock"] else {}
    environment |= (
        allocator_variables() if order["quick_malloc"] or order["kind"].startswith("ours") else {}
    )
    kind, _, origin = order["kind"].partition("@")
    root = Path(origin) if origin and kind == "ours" else ROOT
    environment["PYTHONPATH"] = str(root)
    interpreter = str(peer_interpreter(origin or TRL)) if kind.startswith("trl") else sys.executable
    with tempfile.TemporaryDirectory() as kernels:  # as in a job, nothing was compiled before
        done = subprocess.run(
            [interpreter, str(root / "benchmarks" / "training_contender.py")],
            input=json.dumps(order | {"kind": kind}), capture_output=True, text=True,
            env={**environment, "TORCHINDUCTOR_CACHE_DIR": kernels}, check=False,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{order['kind']}/{order['dtype']} failed:\n{done.stderr[-3000:]}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all rounds and return the summary."""
    model = options.model or random_model(folder)
    count = options.steps * options.batch
    rows = real_rows(model, options.data) if options.data else made_up_rows(count + HELD_OUT, 8192)
    random.Random(3).shuffle(rows)
    rows, held_out = rows[:-HELD_OUT], rows[-HELD_OUT:]
    rows = long_rows(rows, count) if options.long else rows[:count]
    longest, of_step = (
        max(len(ids) for ids, _ in rows),
        options.batch * sum(len(ids) for ids, _ in rows) // len(rows),
    )
    order = {
        "model": str(model), "rows": rows, "held_out": held_out, "batch": options.batch, "rate": 1e-3, "seed": 5,
        # What a packed step has: one bin of short rows, or several bins as long as the longest row; attention over
        # more than that takes time that no peer needs to spend.
        "bin": longest if options.long else max(longest, of_step),
        "bins": max(1, round(of_step / longest)) if options.long else 1,
        "shapes": sorted(set(layer_shapes(model)[0])), "folder": str(folder),
        "cpu_clock": options.cpu_clock, "quick_malloc": options.same_allocator,
    }  # fmt: skip
    results: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for dtype in options.dtypes:
            for kind in ("gemm", *options.peers):
                result = run_contender(order | {"kind": kind, "dtype": dtype})
                results.setdefault(f"{kind}/{dtype}", []).append(result)
                print(f"{kind}/{dtype}: {result}", file=sys.stderr, flush=True)
    return summarise(results, model, rows)


def summarise(
    results: dict[str, list[dict[str, float]]], model: Path, rows: list[Row]
) -> dict[str, Any]:
    def middle(name: str, key: str) -> float:
        return statistics.median(result[key] for result in results[name])

    read, trained = sum(len(ids) for ids, _ in rows), sum(sum(own) for _, own in rows)
    rates = {
        name: max(one["flops"] for one in results[name]) / 1e9
        for name in results
        if name.startswith("gemm")
    }
    table: dict[str, Any] = {}
    for name, made in results.items():
        kind, _, dtype = name.rpartition("/")
        if kind != "gemm":
            seconds = min(result["seconds"] for result in made)
            table[name] = {
                "trained_per_second": trained / seconds,
                "input_per_second": read / seconds,
                "share": work(model, rows) / seconds / rates[f"gemm/{dtype}"] / 1e9,
                "peak_mib": middle(name, "peak_mib"),
                "compiling": middle(name, "compiling"),
                "train_loss": middle(name, "loss"),
                "held_out_loss": middle(name, "held_out"),
            }
    for name, row in table.items():
        row["ours_against_it"] = (
            table[f"ours/{name.rpartition('/')[2]}"]["trained_per_second"]
            / row["trained_per_second"]
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
    yield (
        f"{'':28}{'trained/s':>10}{'input/s':>9}{'share':>7}{'compiling':>11}{'peak MiB':>10}{'train loss':>12}"
        f"{'held-out':>10}{'ours is':>9}"
    )
    for name, row in summary["contenders"].items():
        yield (
            f"{name:28}{row['trained_per_second']:10.0f}{row['input_per_second']:9.0f}{row['share']:7.0%}"
            f"{row['compiling']:11.0f}{row['peak_mib']:10.0f}{row['train_loss']:12.3f}{row['held_out_loss']:10.3f}"
            f"{row['ours_against_it']:8.2f}x"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path, help="rows for --model, in the job's formats")
    parser.add_argument("--long", action="store_true", help="rows of one to four thousand tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4, help="rows per optimizer step")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--dtypes", type=lambda text: text.split(","), default=list(DTYPES))
    parser.add_argument(
        "--cpu-clock",
        action="store_true",
        help="one thread, CPU time: for a machine that is shared",
    )
    parser.add_argument(
        "--same-allocator", action="store_true", help="for all the one that ours has"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if (options.model is None) != (options.data is None):
        parser.error("--model and --data belong together")
    with tempfile.TemporaryDirectory() as name:
        summary = compare(options, Path(name))
    print(json.dumps(summary) if options.json else "\n".join(show(summary)))


if __name__ == "__main__":
    main()
