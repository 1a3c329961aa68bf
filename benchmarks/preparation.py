"""Measure how fast rows become token ids, in turn with another checkout: `trainer validate`, and the worker.

    python benchmarks/preparation.py --model DIR --against CHECKOUT [--megabytes 20] [--rounds 3] [--json]

The rows are chats of sentences from Python's documentation, the same for the same size. DIR has a tokenizer and a
chat template; the worker trains one step of a random model with one layer of it. Both checkouts run in this
environment.

Columns: seconds of `validate`, or those in which the worker read, rendered, tokenised, masked and split the rows;
processor seconds; peak memory. Seconds are less those of a run with few rows. Medians over the rounds. On a busy
machine compare processor seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import pydoc_data.topics
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SMALL_FILES = (
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
MAX_LENGTH = 2048
FEW_ROWS = 1000


@dataclass(frozen=True)
class Usage:
    """What a process took: seconds, processor seconds, and peak memory in MB."""

    seconds: float
    processor: float
    megabytes: float


def write_rows(path: Path, megabytes: float) -> None:
    """Write chats of two to six turns until the file has this size."""
    words = " ".join(pydoc_data.topics.topics.values()).split()
    chosen, size, number = random.Random(1), 0, 0
    with path.open("w") as file:
        while size < megabytes * 1e6:
            turns = []
            for turn in range(chosen.choice((2, 2, 2, 4, 6))):
                count = chosen.randint(20, 200) if turn % 2 else chosen.randint(10, 60)
                start = chosen.randrange(len(words) - count)
                text = f"{number} {' '.join(words[start : start + count])}"
                turns.append({"role": ("user", "assistant")[turn % 2], "content": text})
            size += file.write(json.dumps({"messages": turns}) + "\n")
            number += 1


def write_model(source: Path, folder: Path) -> None:
    """Write a random model with one narrow layer and the tokenizer of another one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir()
    for name in SMALL_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, folder)
    size = json.loads((source / "config.json").read_text())["vocab_size"]
    model: Any = LlamaForCausalLM
    model(
        LlamaConfig(
            vocab_size=size, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, max_position_embeddings=MAX_LENGTH,
        )
    ).save_pretrained(folder)  # fmt: skip


def spec_of(model: Path) -> dict[str, Any]:
    """Return a job spec for one step with the model."""
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(model.iterdir())
    }
    return {
        "version": 1,
        "model": {"model_name_or_path": "./model", "model_file_sha256": digests, "dtype": "float32"},
        "lora": {"lora_r": 1, "lora_alpha": 2, "lora_target_modules": ["q_proj"]},
        "data": {
            "max_length": MAX_LENGTH, "on_overlong": "truncate", "test_split_size": 0, "max_rows": 10_000_000,
        },
        "train": {"max_steps": 1, "per_device_train_batch_size": 1, "bf16": False, "engine": "transformers"},
        "output": {"samples": 0},
    }  # fmt: skip


def run(
    command: list[str], *, given: bytes = b"", pass_fds: tuple[int, ...] = (), **options: Any
) -> Usage:
    """Run a process to its end.

    Raises:
        RuntimeError: it failed; the message is the end of its log.
    """
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as stdin:
        stdin.write(given)
        stdin.seek(0)
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=stdin, stdout=log, stderr=log, pass_fds=pass_fds, **options
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(log.read()[-2000:].decode())
        return Usage(
            time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
        )


def validate(checkout: Path, folder: Path, rows: Path) -> Usage:
    """Run `trainer validate`."""
    environment = {
        name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"
    }
    command = [
        sys.executable,
        "-m",
        "trainer",
        "validate",
        str(rows),
        "--job",
        str(folder / "job.yaml"),
        "--json",
    ]
    return run([*command, "--model", str(folder / "model")], cwd=checkout, env=environment)


def prepare(checkout: Path, folder: Path, rows: Path) -> Usage:
    """Run a worker for one step; its seconds are those of the preparation alone."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as output:
        order = {
            "spec": json.loads((folder / "job.yaml").read_text()), "model_dir": str(folder / "model"),
            "data_files": {"rows.jsonl": str(rows)}, "output_dir": output,
        }  # fmt: skip
        if (
            checkout / "trainer" / "ipc"
        ).is_dir():  # before it existed, an order had no kind and no key
            order |= {"kind": "training-order", "split_key": "00" * 32}
        reading, writing = os.pipe()
        messages: list[bytes] = []
        listener = threading.Thread(
            target=lambda: messages.extend(os.fdopen(reading, "rb").read().splitlines())
        )
        listener.start()
        command = [sys.executable, "-m", "trainer.worker", "--events-fd", str(writing)]
        try:
            usage = run(
                command, given=json.dumps(order).encode() + b"\n", pass_fds=(writing,), cwd=checkout
            )
        finally:
            os.close(writing)
            listener.join()
        seconds = json.loads(messages[-1])["summary"]["seconds"]
        return Usage(seconds.get("read", 0) + seconds["tokenize"], usage.processor, usage.megabytes)


MEASURED = {"validate": validate, "prepare": prepare}


def measure(
    checkouts: Mapping[str, Path], folder: Path, rounds: int
) -> dict[str, dict[str, Usage]]:
    """Run every measurement of every checkout in turn; return the medians, less the runs with few rows."""
    found: dict[tuple[str, str], list[Usage]] = {
        (what, name): [] for what in MEASURED for name in checkouts
    }
    for _ in range(rounds):
        for (what, name), usages in found.items():
            idle, busy = (
                MEASURED[what](checkouts[name], folder, folder / f"{rows}.jsonl")
                for rows in ("few", "rows")
            )
            seconds = busy.seconds - (idle.seconds if what == "validate" else 0)
            usages.append(Usage(seconds, busy.processor - idle.processor, busy.megabytes))
            print(what, name, usages[-1], file=sys.stderr, flush=True)
    medians: dict[str, dict[str, Usage]] = {what: {} for what in MEASURED}
    for (what, name), usages in found.items():
        columns = zip(*(asdict(usage).values() for usage in usages), strict=True)
        medians[what][name] = Usage(*map(statistics.median, columns))
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--against", type=Path, required=True, help="another checkout")
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    checkouts = {
        "against": arguments.against.resolve(),
        "this": Path(__file__).resolve().parents[1],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", arguments.megabytes)
        with (folder / "rows.jsonl").open("rb") as rows:
            (folder / "few.jsonl").write_bytes(b"".join(rows.readline() for _ in range(FEW_ROWS)))
        # In a process of its own: torch here would count in the peak memory of every later process.
        writer = multiprocessing.get_context("spawn").Process(
            target=write_model, args=(arguments.model, folder / "model")
        )
        writer.start()
        writer.join()
        (folder / "job.yaml").write_text(json.dumps(spec_of(folder / "model")))
        medians = measure(checkouts, folder, arguments.rounds)
    if arguments.json:
        print(
            json.dumps(
                {
                    what: {name: asdict(one) for name, one in by.items()}
                    for what, by in medians.items()
                }
            )
        )
        return
    for what, by in medians.items():
        ratios = [
            old / new
            for old, new in zip(*(asdict(by[name]).values() for name in checkouts), strict=True)
        ]
        for name, usage in by.items():
            print(
                f"{what:9} {name:8} {usage.seconds:8.1f} s {usage.processor:8.1f} s {usage.megabytes:8.0f} MB"
            )
        print(f"{what:9} ratio    {ratios[0]:8.2f}   {ratios[1]:8.2f}   {ratios[2]:8.2f}")


if __name__ == "__main__":
    main()
