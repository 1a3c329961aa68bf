"""`trainer validate` is the dry run of the job: both refuse and warn alike, case by case."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from trainer.data.examples.example_set import row_schema
from trainer.data.examples.tokenizer_files import read_tokenizer
from trainer.data.rows import read_files
from trainer.errors import JobError
from trainer.model_files.model_check import check_model_files
from trainer.spec import JobSpec
from trainer.validation.survey import survey


def chats(first: int, last: int, words: int = 1) -> list[object]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is the number {number}?"},
                {"role": "assistant", "content": f"It is {number}" + " indeed" * (words - 1)},
            ]
        }
        for number in range(first, last)
    ]


def pairs(count: int) -> list[object]:
    """Five pairs to each prompt, as the answers of several models give them."""
    return [
        {
            "prompt": f"Name the number {number // 5}.",
            "chosen": f" {number}",
            "rejected": f" not {number}",
        }
        for number in range(count)
    ]


@dataclass(frozen=True)
class Case:
    """A job and its data, and what both sides must say of them."""

    says: str | None
    files: dict[str, list[object]] = field(default_factory=lambda: {"train.jsonl": chats(0, 12)})
    config: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=lambda: {"test_split_size": 0.0})
    train: dict[str, Any] = field(default_factory=dict)
    privacy: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    refused: bool = False


THOUGHTS = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and enable_thinking %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THOUGHTFUL = {
    "messages": [
        {"role": "user", "content": "How many are left?"},
        {
            "role": "assistant",
            "content": "Five.",
            "reasoning_content": "Two shelves, and three on one.",
        },
    ]
}
AUDIT = {"audit": True}
GATE = {"audit": True, "max_membership_auc": 0.7}


def audited(first: int, last: int, says: str | None, privacy: dict[str, Any]) -> Case:
    """Twelve rows to train on, and rows of a file for evaluation to compare them with."""
    files = {"train.jsonl": chats(0, 12), "eval/x.jsonl": chats(first, last)}
    return Case(says, files, data={}, privacy=privacy, refused=says is not None)


CASES = {
    "nothing": Case(None),
    "eval_files matches nothing": Case(
        "no file is for evaluation: expected a file whose name matches data.eval_files (./dev/*.jsonl)",
        {"train.jsonl": chats(0, 5), "dev/x.jsonl": chats(5, 9)},
        data={"eval_files": "./dev/*.jsonl"},
        refused=True,
    ),
    "only evaluation files": Case(
        "every file is for evaluation", {"eval/x.jsonl": chats(0, 3)}, refused=True
    ),
    "all held out": Case(
        "data.test_split_size holds out all", data={"test_split_size": 0.9999}, refused=True
    ),
    "none held out": Case(
        "NO ROW IS HELD OUT: data.test_split_size 0.0001", data={"test_split_size": 0.0001}
    ),
    "none to evaluate on": Case(
        "no row is held out: expected held-out rows, for train.eval_steps",
        data={"test_split_size": 0.0001},
        train={"eval_steps": 1},
        refused=True,
    ),
    "an evaluation that never comes": Case(
        "train.eval_steps 50 is not below the 2 steps",
        {"train.jsonl": chats(0, 5), "eval/x.jsonl": chats(5, 9)},
        data={"eval_files": "eval/*"},
        train={"eval_steps": 50},
    ),
    "split files": Case(
        "test.jsonl, validation.jsonl: trained on",
        {"train.jsonl": chats(0, 5), "test.jsonl": chats(5, 9), "validation.jsonl": chats(9, 12)},
    ),
    "files decide, not the fraction": Case(
        "data.test_split_size 0.5 is not applied",
        {"train.jsonl": chats(0, 5), "eval/x.jsonl": chats(5, 9)},
        data={"test_split_size": 0.5},
    ),
    "rows on both sides": Case(
        "2 of 4 evaluation rows are in the training part too",
        {"train.jsonl": chats(0, 7), "eval/x.jsonl": chats(5, 9)},
    ),
    "prompts on both sides": Case(
        "2 of 3 evaluation rows have a prompt that is trained on",
        {"train.jsonl": chats(0, 7), "eval/x.jsonl": chats(5, 8, words=2)},
    ),
    "prompts of pairs on both sides": Case(
        "have a prompt that is trained on",
        {"train.jsonl": pairs(40)},
        data={"test_split_size": 0.3},
        train={"method": "dpo"},
    ),
    "beyond the context": Case(
        "12 of 12 rows have more than 16 tokens",
        config={"max_position_embeddings": 16},
        data={"test_split_size": 0.0},
    ),
    "no such attention": Case(
        "architecture gpt_oss lacks an attention implementation",
        config={"model_type": "gpt_oss"},
        refused=True,
    ),
    "a module of another family": Case(
        "no module of a name in section lora",
        lora={"lora_target_modules": ["q_proj", "qkv_proj"]},
        refused=True,
    ),
    "fewer weights than layers": Case(
        "num_hidden_layers 3: layers 0 to 2", config={"num_hidden_layers": 3}, refused=True
    ),
    "weights that are quantized": Case(
        "quantized by a scheme that is not supported",
        config={"quantization_config": {"quant_method": "gptq", "bits": 4}},
        refused=True,
    ),
    "no end in the vocabulary": Case(
        "the token for the end of a text or turn is outside the embedding",
        config={"eos_token_id": 10**6},
        refused=True,
    ),
    "no learning rate": Case(
        "the learning rate is 0 at every step",
        train={"max_steps": 1, "warmup_ratio": 0.03},
        refused=True,
    ),
    "no peak": Case(
        "the learning rate never reaches train.learning_rate 0.0002",
        train={"max_steps": 4, "warmup_steps": 100},
    ),
    "no learning rate with packing": Case(
        "the learning rate is 0 at every step: expected a rate above 0 in 1 steps, 1 of them warm-up",
        data={"test_split_size": 0.0, "packing": True, "max_length": 1024},
        train={"warmup_steps": 1, "per_device_train_batch_size": 1},
        refused=True,
    ),
    "all dropped under a secret split": Case(
        "no rows are left",
        data={"max_length": 8, "on_overlong": "drop", "test_split_size": 0.1},
        privacy={"audit": True},
        refused=True,
    ),
    "too few held out to audit": audited(
        12, 13, "2 held-out ones that are no copies of any, got 12 and 1", AUDIT
    ),
    "enough held out to audit": audited(12, 14, None, AUDIT),
    "too few held out for the gate": audited(
        12, 31, "20 held-out ones that are no copies of any", GATE
    ),
    "enough held out for the gate": audited(12, 32, None, GATE),
    "tools, thoughts and arguments, packed": Case(
        None,
        {"train.jsonl": [{**THOUGHTFUL, "tools": json.dumps([{"name": "stock_of"}])}]},
        data={
            "test_split_size": 0.0,
            "packing": True,
            "chat_template": THOUGHTS,
            "chat_template_kwargs": {"enable_thinking": True},
        },
    ),
    "thoughts without the argument": Case(
        "the chat template does not print all of the row",
        {"train.jsonl": [THOUGHTFUL]},
        data={"test_split_size": 0.0, "chat_template": THOUGHTS},
        refused=True,
    ),
    "canaries": Case(
        "6 rows with random numbers were added to the training rows (privacy.canaries)",
        data={"test_split_size": 0.0},
        privacy={"canaries": 3, "canary_repetitions": 2},
    ),
    "canaries that do not fit": Case(
        "canaries cannot be added to this dataset (privacy.canaries)",
        {"train.jsonl": [{"text": f"row {number}"} for number in range(9)]},
        data={"max_length": 24, "test_split_size": 0.0},
        privacy={"canaries": 1},
        refused=True,
    ),
    "a delta that promises nothing": Case(
        "privacy.target_delta is too large for so many rows",
        data={"test_split_size": 0.0, "split_turns": "never"},
        train={"engine": "transformers"},
        privacy={"noise_multiplier": 1.0, "target_delta": 0.09},
        refused=True,
    ),
    "twice the same": Case(
        "3 of 10 rows repeat another one", {"a.jsonl": chats(0, 7), "b.jsonl": chats(0, 3)}
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_dry_run_says_what_the_job_says(case: Case, tmp_path: Path, tiny_model: Path) -> None:
    model = model_with(tiny_model, case.config, tmp_path / "model")
    files = {name: write(tmp_path / "data" / name, rows) for name, rows in case.files.items()}
    spec = spec_of(case)
    provider, job = provider_says(files, spec, model), job_says(files, spec, model)
    assert provider == job
    refused, texts = job
    assert refused == case.refused
    assert (case.says in "\n".join(texts)) if case.says else not texts


def model_with(source: Path, config: dict[str, Any], target: Path) -> Path:
    shutil.copytree(source, target)
    document = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(document | config))
    return target


def write(path: Path, rows: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spec_of(case: Case) -> JobSpec:
    model = {
        "model_name_or_path": "./m",
        "model_file_sha256": {"config.json": "0" * 64, "model.safetensors": "0" * 64},
    }
    data = {"max_length": 256, **case.data}
    sections = {"data": data, "train": case.train, "privacy": case.privacy, "lora": case.lora}
    return JobSpec.model_validate_json(json.dumps({"version": 1, "model": model, **sections}))


def provider_says(files: dict[str, Path], spec: JobSpec, model: Path) -> tuple[bool, list[str]]:
    try:
        config = check_model_files(model, [path.name for path in model.iterdir()], spec).config
        tokens = read_tokenizer(model, spec.data)
    except JobError as error:
        return True, [str(error)]
    found = survey(files, spec, tokens, config)
    refusal = found.first_problem
    return (True, [str(refusal)]) if refusal else (False, found.warnings)


def job_says(files: dict[str, Path], spec: JobSpec, model: Path) -> tuple[bool, list[str]]:
    from trainer.training.run_inputs import RunInputs
    from trainer.training.stages.prepare import prepare
    from trainer.training.stages.run_context import RunContext
    from trainer.training.stopwatch import Stopwatch

    rows = read_files(files, max_rows=spec.data.max_rows, schema=row_schema(spec.data))
    try:
        prepared = prepare(
            RunInputs(spec, model, model), rows, RunContext(lambda _event: None, Stopwatch())
        )
    except JobError as error:
        return True, [str(error)]
    return False, list(prepared.dataset.warnings)
