"""Load an adapter with stock PEFT and compute its loss on the held-out rows, without this project's training code.

The base model must have the loss `eval_loss_before` of `report/summary.json`, and the base model with the adapter
`eval_loss_after`. Rows are chat rows; which of them the job holds out follows from their token ids and
`train.seed` (trainer/SPEC.md). The split of a job with a section `privacy` is secret.

Usage: python scripts/check_adapter.py RESULT_DIR --model DIR --data FILE --job JOB [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import os
import sys
from array import array
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# Set before the libraries read them: this script must not contact a model hub.
os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TQDM_DISABLE="1"
)

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.spec import JobSpec, read_job_spec

TOLERANCE: Final = 0.005
"""Largest relative difference of a loss. The worker computes batches and this script single rows, which round
differently."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of one conversation; tokens from `answer_start` on are in the loss."""

    ids: list[int]
    answer_start: int


def held_out(rows: Sequence[Encoded], spec: JobSpec) -> list[int]:
    """Return the indices of the rows that the job did not train on, ascending."""
    if spec.privacy.enabled:
        raise SystemExit(
            "the job has a section privacy: the rows held out are a secret of the sealed dataset"
        )
    key = hashlib.sha256(b"confidential-trainer/split-by-seed/v1\0%d" % spec.train.seed).digest()
    limit = int(spec.data.test_split_size * 2**64)
    digests = [hashlib.sha256(array("i", row.ids).tobytes() + b"/").digest() for row in rows]
    words = [int.from_bytes(hmac.digest(key, digest, "sha256")[:8], "big") for digest in digests]
    return [index for index, word in enumerate(words) if word < limit]


def encode(tokenizer: Any, messages: list[dict[str, str]]) -> Encoded:
    """Encode one question and one answer, up to the token that ends the answer's turn."""
    prompt = tokenizer.apply_chat_template(
        messages[:-1], tokenize=False, add_generation_prompt=True
    )
    answer = messages[-1]["content"] + tokenizer.eos_token
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    if ids[: len(start)] != start:
        raise SystemExit(
            "a token spans the end of the prompt; this check cannot tell the answer's tokens apart"
        )
    return Encoded(ids, len(start))


@torch.inference_mode()
def mean_loss(model: Any, rows: Sequence[Encoded], context: AbstractContextManager[Any]) -> float:
    """Return the mean negative log-likelihood per answer token over all rows, in nats."""
    total, count = 0.0, 0
    with context:
        for row in rows:
            ids = torch.tensor([row.ids], device=model.device)
            # The logits at position t predict token t + 1.
            logits = model(input_ids=ids).logits[0, row.answer_start - 1 : -1].float()
            targets = ids[0, row.answer_start :]
            total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
            count += len(targets)
    return total / count


def load(model_dir: Path, adapter_dir: Path, weights: str) -> Any:
    """Load the base model in the precision that the report names, with the adapter."""
    base = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=getattr(torch, weights), local_files_only=True
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return PeftModel.from_pretrained(base, str(adapter_dir)).to(device).eval()


def check(result: Path, model_dir: Path, data: Path, spec: JobSpec) -> dict[str, Any]:
    """Compute both losses and compare them with those of the report."""
    summary = json.loads((result / "report" / "summary.json").read_bytes())
    lines = [
        json.loads(line)["messages"]
        for line in data.read_text("utf-8").splitlines()
        if line.strip()
    ]
    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    encoded = [encode(tokenizer, line) for line in lines]
    chosen = held_out(encoded, spec)
    if summary["rows"]["dropped"] or summary["rows"]["eval"] != len(chosen):
        raise SystemExit("the job did not hold out the rows that its spec names, or dropped some")
    rows = [encoded[index] for index in chosen]
    model = load(model_dir, result / "adapter", summary["environment"]["weights"])
    after = mean_loss(model, rows, _context(model, summary))
    with model.disable_adapter():
        before = mean_loss(model, rows, _context(model, summary))
    comparisons = {
        "eval_loss_before": compare(before, summary["eval_loss_before"]),
        "eval_loss_after": compare(after, summary["eval_loss_after"]),
    }
    passed = all(comparison["passed"] for comparison in comparisons.values())
    return {"passed": passed, **comparisons, "tolerance": TOLERANCE, "held_out_rows": chosen}


def _context(model: Any, summary: dict[str, Any]) -> AbstractContextManager[Any]:
    if summary["environment"]["autocast"] == "off":
        return nullcontext()
    return torch.autocast(model.device.type, dtype=torch.bfloat16)


def compare(found: float, reported: float) -> dict[str, Any]:
    """Compare a loss with the reported one; they may differ by `TOLERANCE`."""
    difference = abs(found - reported) / reported
    return {
        "reported": reported,
        "found": found,
        "difference": difference,
        "passed": difference <= TOLERANCE,
    }


def main(arguments: list[str]) -> int:
    """Run the command line; returns 1 if a loss differs."""
    parser = argparse.ArgumentParser(
        description="Take the losses of an adapter again, with stock PEFT."
    )
    parser.add_argument("result", type=Path, help="directory with adapter/ and report/")
    parser.add_argument("--model", type=Path, required=True, help="directory of the base model")
    parser.add_argument(
        "--data", type=Path, required=True, help="the JSONL file that was submitted"
    )
    parser.add_argument("--job", type=Path, required=True, help="job.yaml")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on the last line"
    )
    options = parser.parse_args(arguments)
    found = check(options.result, options.model, options.data, read_job_spec(options.job))
    sys.stdout.write(f"{json.dumps(found)}\n" if options.json else describe(found))
    return 0 if found["passed"] else 1


def describe(found: dict[str, Any]) -> str:
    """Return the comparison as text."""
    lines = [
        f"held-out rows ({len(found['held_out_rows'])}): {', '.join(map(str, found['held_out_rows']))}"
    ]
    for name in ("eval_loss_before", "eval_loss_after"):
        loss = found[name]
        verdict = "same" if loss["passed"] else "DIFFERENT"
        lines.append(
            f"{name}: reported {loss['reported']:.4f}, stock PEFT {loss['found']:.4f}: {verdict}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
