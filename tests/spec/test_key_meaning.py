"""Every key of a job spec, and when it means something: one that is set and means nothing is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from trainer.errors import ErrorCode, UsageError
from trainer.spec import JobSpec, leaf_names, parse_job_spec
from trainer.spec.key_meaning import MEANINGS

Sections = dict[str, dict[str, Any]]

HUB = {"model_name_or_path": "org/name", "model_revision": "a" * 40}
LOCAL = {"model_name_or_path": "./m", "model_revision": None}
URLS = {"config.json": "https://example.org/c"}
UNHELD: Sections = {"data": {"test_split_size": 0}}
BY_FILES: Sections = {"data": {"eval_files": "dev/*"}}
DPO: Sections = {"train": {"method": "dpo"}}
ORPO: Sections = {"train": {"method": "orpo"}}
KTO: Sections = {"train": {"method": "kto"}}
EPSILON = {"target_epsilon": 3.0, "target_delta": 1e-5}
PRIVATE: Sections = {
    "privacy": EPSILON,
    "data": {"split_turns": "never"},
    "train": {"engine": "transformers"},
}


def data(**leaves: Any) -> Sections:
    return {"data": leaves}


def train(**leaves: Any) -> Sections:
    return {"train": leaves}


@dataclass(frozen=True)
class Key:
    """A value of a key, sections in which it means something, and sections in which it does not."""

    value: Any
    meant: tuple[Sections, ...]
    meaningless: tuple[Sections, ...]


NOTHING: Sections = {}
EVALUATED = (NOTHING, BY_FILES)
STORE: Sections = {"exchange": {"store": "s3://bucket/prefix"}}
STEPS = train(eval_steps=5)
TASK: Sections = {"evaluation": {"metrics": ["exact_match"]}}
CHOICES: Sections = {"evaluation": {"metrics": ["choice_accuracy"]}}
UNHELD_STEPS: Sections = {**UNHELD, **STEPS}

KEYS = {
    "model.model_revision": Key("a" * 40, ({"model": HUB},), ({"model": LOCAL},)),
    "model.model_urls": Key(URLS, ({"model": HUB},), ({"model": LOCAL},)),
    "model.attn_implementation": Key(
        "eager", (NOTHING, train(engine="transformers")), (train(engine="unsloth"),)
    ),
    "lora.init_lora_weights": Key("gaussian", (NOTHING,), ({"lora": {"start_from": "adapter"}},)),
    "data.test_split_size": Key(0.2, (NOTHING,), (BY_FILES,)),
    "data.assistant_only_loss": Key(
        False,
        (NOTHING, data(format="messages"), data(format="sharegpt"), data(format="alpaca")),
        (data(format="text"), data(format="prompt_completion"), DPO, ORPO),
    ),
    "data.completion_only_loss": Key(
        False,
        (NOTHING, data(format="prompt_completion")),
        (data(format="text"), data(format="messages"), DPO, ORPO),
    ),
    "data.train_on": Key(
        "last_turn",
        (NOTHING, data(format="messages"), data(assistant_only_loss=False)),
        (DPO, data(format="text"), data(format="messages", assistant_only_loss=False)),
    ),
    "data.split_turns": Key(
        "never",
        (NOTHING, PRIVATE, {**PRIVATE, "data": {"format": "text"}}),
        (DPO, data(format="text"), data(assistant_only_loss=False, completion_only_loss=False)),
    ),
    "data.chat_template": Key("{{ messages }}", (NOTHING, DPO), (data(format="text"),)),
    "data.allow_unrendered": Key(["tools"], (NOTHING, DPO), (data(format="text"),)),
    "data.chat_template_path": Key("config.json", (NOTHING, DPO), (data(format="text"),)),
    "data.chat_template_kwargs": Key({"quick": True}, (NOTHING, DPO), (data(format="text"),)),
    "data.ignore_message_keys": Key(["id"], (NOTHING, DPO), (data(format="text"),)),
    "data.packing": Key(True, (NOTHING,), (DPO, ORPO, KTO)),
    "data.packing_strategy": Key("bfd", (data(packing=True),), (NOTHING, data(packing=False))),
    "train.per_device_eval_batch_size": Key(2, EVALUATED, (UNHELD,)),
    "train.warmup_steps": Key(
        5,
        (NOTHING, train(lr_scheduler_type="constant_with_warmup")),
        (train(lr_scheduler_type="constant"),),
    ),
    "train.warmup_ratio": Key(
        0.1,
        (NOTHING, train(warmup_steps=0)),
        (train(lr_scheduler_type="constant"), train(warmup_steps=5)),
    ),
    "train.adam_beta1": Key(0.8, (NOTHING, train(optim="adamw_8bit")), (train(optim="sgd"),)),
    "train.adam_beta2": Key(0.8, (NOTHING,), (train(optim="adafactor"),)),
    "train.adam_epsilon": Key(1e-6, (NOTHING,), (train(optim="sgd"),)),
    "train.num_train_epochs": Key(2, (NOTHING, train(max_steps=-1)), (train(max_steps=5),)),
    "train.beta": Key(0.2, (DPO, ORPO, KTO), (NOTHING,)),
    "train.desirable_weight": Key(2, (KTO,), (NOTHING, DPO)),
    "train.undesirable_weight": Key(2, (KTO,), (NOTHING, DPO)),
    "train.loss_type": Key("ipo", (DPO,), (NOTHING, ORPO)),
    "train.loss_weights": Key([2], (DPO,), (NOTHING, ORPO)),
    "train.label_smoothing": Key(0.1, (train(method="dpo", loss_type="robust"),), (NOTHING, ORPO)),
    "train.neftune_noise_alpha": Key(5, (NOTHING,), (DPO, ORPO, KTO)),
    "train.torch_compile_mode": Key("default", (train(torch_compile=True),), (NOTHING,)),
    "train.eval_steps": Key(5, EVALUATED, (UNHELD,)),
    "train.max_eval_rows": Key(5, EVALUATED, (UNHELD,)),
    "train.early_stopping_patience": Key(
        2, (STEPS, {**STEPS, **BY_FILES}), (NOTHING, UNHELD_STEPS)
    ),
    "train.early_stopping_threshold": Key(
        0.1, (train(eval_steps=5, early_stopping_patience=1),), (NOTHING, train(eval_steps=5))
    ),
    "train.load_best_model_at_end": Key(True, (STEPS,), (NOTHING, UNHELD_STEPS)),
    "train.save_total_limit": Key(3, (train(save_steps=5),), (NOTHING,)),
    "evaluation.metrics": Key(
        ["token_f1"],
        (*EVALUATED, DPO, ORPO, KTO, data(format="messages")),
        (
            UNHELD,
            data(format="text"),
            {**BY_FILES, "data": {"format": "text", "eval_files": "dev/*"}},
        ),
    ),
    "evaluation.max_rows": Key(5, (TASK, CHOICES), (NOTHING,)),
    "evaluation.max_new_tokens": Key(5, (TASK,), (NOTHING, CHOICES)),
    "output.samples": Key(2, EVALUATED, (UNHELD,)),
    "output.sample_max_new_tokens": Key(8, EVALUATED, (UNHELD, {"output": {"samples": 0}})),
    "exchange.host": Key("127.0.0.1", (NOTHING,), (STORE,)),
    "exchange.port": Key(0, (NOTHING,), (STORE,)),
    "privacy.max_grad_norm": Key(0.5, (PRIVATE,), (NOTHING, {"privacy": {"audit": True}})),
    "privacy.accountant": Key("rdp", (PRIVATE,), (NOTHING,)),
    "privacy.audit": Key(True, EVALUATED, (UNHELD,)),
    "privacy.audit_rows": Key(
        64, ({"privacy": {"audit": True}},), (NOTHING, {"privacy": {"canaries": 2}})
    ),
    "privacy.max_membership_auc": Key(0.7, ({"privacy": {"audit": True}},), (NOTHING,)),
    "privacy.canary_repetitions": Key(2, ({"privacy": {"canaries": 2}},), (NOTHING,)),
    "privacy.max_exposure": Key(5.0, ({"privacy": {"canaries": 2}},), (NOTHING,)),
}

ALWAYS = """
    model.model_name_or_path model.model_file_sha256 model.dtype model.load_in_4bit model.load_in_8bit
    model.trust_remote_code model.license
    lora.lora_r lora.lora_alpha lora.lora_dropout lora.lora_target_modules lora.use_rslora lora.use_dora
    lora.exclude_modules lora.modules_to_save lora.start_from
    data.format data.columns data.ignore_columns data.eval_files data.max_length data.on_overlong data.max_rows
    data.mix train.loraplus_lr_ratio
    train.method train.engine train.num_processes train.fsdp train.per_device_train_batch_size
    train.gradient_accumulation_steps train.learning_rate train.lr_scheduler_type train.lr_scheduler_kwargs
    train.weight_decay train.max_steps train.max_grad_norm train.seed train.gradient_checkpointing
    train.torch_compile train.optim train.bf16 train.logging_steps train.save_steps
    output.include_logs output.merged_16bit
    privacy.target_epsilon privacy.target_delta privacy.noise_multiplier privacy.canaries
    exchange.store exchange.max_upload_bytes exchange.dataset_timeout_seconds exchange.dataset_tries
    exchange.linger_seconds exchange.joint exchange.providers
    tee.evidence_lifetime_seconds tee.sandbox
"""
"""Keys that mean something in every job, or that are refused where they stand for another reason."""


def parse(sections: Sections, key: str, value: Any) -> JobSpec:
    section, leaf = key.split(".")
    model = {"model_file_sha256": {"config.json": "0" * 64, "model.safetensors": "0" * 64}, **LOCAL}
    document: dict[str, Any] = {
        "version": 1,
        **sections,
        "model": {**model, **sections.get("model", {})},
    }
    document[section] = {**document.get(section, {}), leaf: value}
    return parse_job_spec(json.dumps(document).encode())


def test_every_key_is_here() -> None:
    assert sorted((*KEYS, *ALWAYS.split())) == sorted(leaf_names()) == sorted(MEANINGS)
    assert not any(MEANINGS[key] for key in ALWAYS.split())


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_means_nothing_is_refused_by_name(key: str) -> None:
    for sections in KEYS[key].meant:
        parse(sections, key, KEYS[key].value)
    for sections in KEYS[key].meaningless:
        with pytest.raises(UsageError, match=f"{key} means nothing ") as caught:
            parse(sections, key, KEYS[key].value)
        assert caught.value.code is ErrorCode.SPEC_INVALID


@pytest.mark.parametrize(
    ("sections", "key", "value"),
    [
        (train(lr_scheduler_type="constant"), "train.warmup_ratio", 0),
        (UNHELD, "train.eval_steps", None),
        (UNHELD, "output.samples", 0),
        (BY_FILES, "data.test_split_size", 0),
        (DPO, "data.packing", False),
        (UNHELD, "train.load_best_model_at_end", False),
    ],
)
def test_what_is_off_may_be_written_down(sections: Sections, key: str, value: object) -> None:
    parse(sections, key, value)


def test_all_of_them_are_told_at_once() -> None:
    sections: Sections = {
        **UNHELD,
        "train": {"warmup_ratio": 0.1, "lr_scheduler_type": "constant", "eval_steps": 9},
    }
    with pytest.raises(UsageError) as caught:
        parse(sections, "output.samples", 2)
    for key in (
        "train.warmup_ratio means nothing to lr_scheduler_type constant",
        "train.eval_steps",
        "output.samples",
    ):
        assert key in str(caught.value)


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_choices_need_answers_that_rows_have_in_common(method: str) -> None:
    with pytest.raises(UsageError, match=f"choice_accuracy means nothing to train.method {method}"):
        parse(train(method=method), "evaluation.metrics", ["choice_accuracy"])


def test_a_metric_is_named_once_and_known() -> None:
    with pytest.raises(UsageError, match="names a metric twice"):
        parse(NOTHING, "evaluation.metrics", ["token_f1", "token_f1"])
    with pytest.raises(UsageError, match="exact_match"):
        parse(NOTHING, "evaluation.metrics", ["bleu"])
