"""Measure the cost of the sandbox: the same loop and the same small training, with and without it.

    python benchmarks/sandbox.py [--rounds 7] [--steps 60] [--json]

Each round runs every case with and without the sandbox, in alternating order and in a new process each. `calls`
makes system calls that every seccomp filter permits, `compute` makes none. `worker` is `python -m trainer.worker`
on a small random Llama with one thread, from start to end; `training` is the part from the first optimizer step
to the last. All are in seconds of processor time, which depends less on other work of the machine than wall-clock
time. `start` is the wall-clock time in which the worker enters its sandbox and measures it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from trainer.encoding import file_sha256

CALLS = """
import os, sys, time
{confine}
started = time.process_time()
for _ in range(400_000):
    os.getppid()
print(time.process_time() - started)
"""
COMPUTE = """
import sys, time
{confine}
started = time.process_time()
total = 0
for number in range(12_000_000):
    total += number * number
print(time.process_time() - started)
"""
START = """
import time
from trainer.sandbox.confine import confine
from trainer.sandbox.plan import Role, SandboxPlan
started = time.perf_counter()
confine(SandboxPlan(role=Role.WORKER))
print(time.perf_counter() - started)
"""
IMPORT = """
from trainer.sandbox.confine import confine
from trainer.sandbox.plan import Role, SandboxPlan
"""
CONFINE = IMPORT + "confine(SandboxPlan(role=Role.WORKER))\n"


def loop(code: str, *, confined: bool) -> float:
    """Run a loop in a new process; returns the processor seconds that it printed."""
    text = code.format(confine=CONFINE if confined else IMPORT)
    done = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True)
    return float(done.stdout)


class Training:
    """A small model and a dataset on a tmpfs, and a worker that trains on them.

    Args:
        folder: a directory on a tmpfs.
        steps: number of optimizer steps of one run.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        self.model = folder / "model"
        self.data = folder / "rows.jsonl"
        self.data.write_text(
            "".join(json.dumps({"text": text(number)}) + "\n" for number in range(400))
        )
        make_model(self.model, [text(number) for number in range(400)])
        self.spec = {
            "version": 1,
            "model": {
                "model_name_or_path": "/model",
                "model_file_sha256": {
                    file.name: file_sha256(file) for file in sorted(self.model.iterdir())
                },
                "dtype": "float32",
            },
            "data": {"max_length": 128, "test_split_size": 0.0},
            "train": {
                "engine": "transformers",
                "max_steps": steps,
                "bf16": False,
                "learning_rate": 1e-3,
            },
        }

    def seconds(self, *, confined: bool) -> tuple[float, float]:
        """Run one worker; returns its processor seconds in total, and between its first and last step."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with tempfile.TemporaryDirectory(dir=self.folder) as output:
            steps = self._run(Path(output), confined=confined)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, steps

    def _run(self, output: Path, *, confined: bool) -> float:
        order = {
            "kind": "training-order",
            "spec": self.spec,
            "model_dir": str(self.model),
            "data_files": {"rows.jsonl": str(self.data)},
            "output_dir": str(output),
        }
        plan = {
            "role": "worker",
            "readable": [str(self.model), str(self.data)],
            "writable": [str(output)],
        }
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "trainer.worker", "--events-fd", str(writing)]
        command += ["--plan-json", json.dumps(plan)] if confined else []
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            pass_fds=[writing],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ) as process:
            os.close(writing)
            assert process.stdin is not None
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.close()
            spent = []
            with os.fdopen(reading, "rb") as events:
                for line in events:
                    message = json.loads(line)
                    if message["kind"] == "failed":
                        raise RuntimeError(message)
                    if message["kind"] == "progress":
                        spent.append(processor_seconds(process.pid))
        return spent[-1] - spent[0]


def processor_seconds(pid: int) -> float:
    """Return user and system time of a process so far (proc(5), /proc/PID/stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def text(number: int) -> str:
    """Return a row of a hundred words, the same for the same number."""
    chosen = random.Random(number)
    return " ".join(
        chosen.choice(["seal", "open", "train", "prove", "check", "send"]) for _ in range(100)
    )


def make_model(folder: Path, texts: list[str]) -> None:
    """Write a random Llama of about four million parameters with its own tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet),
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


def measure(rounds: int, steps: int) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds (without, with the sandbox) of each case and round."""
    found: dict[str, list[tuple[float, float]]] = {
        name: [] for name in ("calls", "compute", "worker", "training")
    }
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        training = Training(Path(folder), steps)
        training.seconds(confined=False)  # warm-up: fills the page cache
        for number in range(rounds):
            order = [False, True] if number % 2 else [True, False]
            for name, code in (("calls", CALLS), ("compute", COMPUTE)):
                spent = {confined: loop(code, confined=confined) for confined in order}
                found[name].append((spent[False], spent[True]))
            runs = {confined: training.seconds(confined=confined) for confined in order}
            for part, name in enumerate(("worker", "training")):
                found[name].append((runs[False][part], runs[True][part]))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.rounds, given.steps)
    start = statistics.median(loop(START, confined=False) for _ in range(given.rounds))
    report = {
        name: {
            "without_s": statistics.median(without for without, _ in pairs),
            "with_s": statistics.median(confined for _, confined in pairs),
            "overhead": statistics.median(confined / without - 1 for without, confined in pairs),
        }
        for name, pairs in found.items()
    }
    if given.json:
        print(json.dumps({**report, "start_s": start}))
        return
    for name, row in report.items():
        print(
            f"{name:10} {row['without_s']:8.3f} s  {row['with_s']:8.3f} s  {row['overhead']:+7.2%}"
        )
    print(f"{'start':10} {start:8.3f} s")


if __name__ == "__main__":
    main()
