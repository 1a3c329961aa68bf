"""What the author of another tool's configuration is told: the key here, a reason, or what is accepted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainer.errors import ErrorCode, UsageError
from trainer.spec import JobSpec, leaf_names, parse_job_spec
from trainer.spec.key_hints import _NONE, _OTHER_NAMES, key_hint
from trainer.spec.value_hints import _OTHER_VALUES

KNOWN = [*leaf_names(), *JobSpec.model_fields]


def refused(**sections: Any) -> UsageError:
    model = {
        "model_name_or_path": "./m",
        "model_file_sha256": {"config.json": "0" * 64, "model.safetensors": "0" * 64},
        **sections.pop("model", {}),
    }
    with pytest.raises(UsageError) as caught:
        parse_job_spec(json.dumps({"version": 1, "model": model, **sections}).encode())
    return caught.value


def test_the_table_is_of_other_names_each_once() -> None:
    names = [name for group in (*_OTHER_NAMES.values(), *_NONE.values()) for name in group.split()]
    assert len(names) == len(set(names)) > 150
    assert not set(names) & {key.rpartition(".")[2] for key in leaf_names()}
    assert set(_OTHER_NAMES) <= set(KNOWN)
    assert set(_OTHER_VALUES) <= set(leaf_names())


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.micro_batch_size", "did you mean train.per_device_train_batch_size?"),
        ("train.learning_rat", "did you mean train.learning_rate?"),
        ("data.max_seq_length", "did you mean data.max_length?"),
        ("lora.r", "did you mean lora.lora_r?"),
        ("lora.rank", "did you mean lora.lora_r?"),
        ("train.packing", "did you mean data.packing?"),
        ("train.load_in_4bit", "did you mean model.load_in_4bit?"),
        ("adapter_name_or_path", "did you mean lora.start_from?"),
        ("max_grad_norm", "did you mean train.max_grad_norm or privacy.max_grad_norm?"),
        ("learning_rate", "did you mean train.learning_rate?"),
        ("train.rl", "did you mean train.method?"),
        ("train.lora_plus_ratio", "did you mean train.loraplus_lr_ratio?"),
        ("data.interleave_probs", "did you mean data.mix?"),
        ("train.kto_chosen_weight", "did you mean train.desirable_weight?"),
        ("train.gradient_clipping", "did you mean train.max_grad_norm?"),
        ("train.flash_attention", "did you mean model.attn_implementation?"),
        ("sample_packing", "did you mean data.packing?"),
        ("dataset_text_field", "did you mean data.columns?"),
        ("cutoff_len", "did you mean data.max_length?"),
        ("lora_target", "did you mean lora.lora_target_modules?"),
        ("val_set_size", "did you mean data.test_split_size?"),
        ("training_args", "did you mean train?"),
        ("tran", "did you mean train?"),
        (
            "report_to",
            "there is none: nothing leaves the job but the sealed result, which has all metrics and curves",
        ),
        (
            "train.push_to_hub",
            "there is none: the result is sealed to the data provider, and pushed to no hub",
        ),
        (
            "adapter",
            "there is none: the adapter is LoRA; with model.load_in_4bit it is what others call QLoRA",
        ),
        (
            "lora.trainable_token_indices",
            "there is none: embeddings of new tokens are trained in full: lora.modules_to_save: [embed_tokens]",
        ),
        ("lora.zzzzzz", None),
        ("train.lora_rnk", None),
        ("zzzzzz", None),
    ],
)
def test_hints(key: str, hint: str | None) -> None:
    assert key_hint(key, KNOWN) == hint


def test_reasons_where_there_is_no_such_key() -> None:
    for key in (
        "deepspeed",
        "fp16",
        "max_samples",
        "use_liger_kernel",
        "push_to_hub",
        "output_dir",
    ):
        hint = key_hint(key, KNOWN)
        assert hint is not None
        assert hint.startswith("there is none: ")


def test_one_unknown_key_has_its_hint_alone() -> None:
    error = refused(train={"micro_batch_size": 3})
    assert error.code is ErrorCode.SPEC_UNKNOWN_KEY
    assert str(error) == "job spec: unknown key 'train.micro_batch_size'"
    assert error.hint == "did you mean train.per_device_train_batch_size?"
    assert refused(lora={"zzz": 1}).hint == "see trainer/SPEC.md for all keys"


def test_all_unknown_keys_are_told_at_once() -> None:
    error = refused(train={"lr": 1, "seed": "x"}, lora={"rank": 8}, report_to="wandb", zzz=1)
    assert str(error) == "job spec: 4 unknown keys: 'lora.rank', 'train.lr', 'report_to', 'zzz'"
    assert error.hint is not None
    assert error.hint.split("\n      ") == [
        "lora.rank: did you mean lora.lora_r?",
        "train.lr: did you mean train.learning_rate?",
        "report_to: there is none: nothing leaves the job but the sealed result, which has all metrics and curves",
    ]


def test_many_unknown_keys_are_bounded() -> None:
    error = refused(train={f"lr{number}": 1 for number in range(1000)})
    assert "1000 unknown keys" in str(error)
    assert "and 936 more" in str(error)
    assert len(str(error)) < 2000


def test_shapes_of_others_are_explained() -> None:
    listed = refused(datasets=[{"path": "a", "type": "alpaca", "field_instruction": "q"}])
    assert listed.hint is not None
    assert listed.hint.startswith(
        "datasets: there is none: data files are named on the command line"
    )
    assert "type in datasets: did you mean data.format?" in listed.hint
    assert "field_instruction in datasets: did you mean data.columns?" in listed.hint
    nested = refused(peft_config={"r": 8, "target_modules": ["q_proj"]})
    assert nested.hint is not None
    assert "r in peft_config: did you mean lora.lora_r?" in nested.hint
    section = refused(data=[{"path": "a", "type": "alpaca"}])
    assert "job spec: data: expected keys below data, got " in str(section)
    assert section.hint is not None
    assert "data files are named on the command line" in section.hint
    assert "type: did you mean data.format?" in section.hint


@pytest.mark.parametrize(
    ("section", "key", "value", "expected", "hint"),
    [
        (
            "lora",
            "lora_target_modules",
            "q_proj,v_proj",
            '"all-linear" or list of text',
            "[q_proj, v_proj]",
        ),
        (
            "lora",
            "lora_target_modules",
            "all",
            '"all-linear" or list of text',
            "did you mean all-linear?",
        ),
        ("lora", "lora_target_modules", ["a b"], '"all-linear" or list of text', None),
        ("train", "num_processes", 0, '"auto" or integer, ≥ 1', None),
        ("lora", "init_lora_weights", "eva", '"pissa" or text, of the form', None),
        ("train", "loss_type", "bco_pair", "or list of ", None),
        ("train", "bf16", "auto", "a valid boolean", "did you mean true?"),
        (
            "train",
            "gradient_checkpointing",
            "unsloth",
            "a valid boolean",
            "did you mean true: activations",
        ),
        ("train", "optim", "adamw_bnb_8bit", "adamw_8bit", "did you mean adamw_8bit?"),
        ("train", "optim", "paged_adamw_8bit", "adamw_8bit", "did you mean adamw_8bit: paging"),
        ("model", "dtype", "torch.bfloat16", "bfloat16", "did you mean bfloat16?"),
        ("model", "dtype", "bf16", "bfloat16", "did you mean bfloat16?"),
    ],
)
def test_errors_name_every_form(
    section: str, key: str, value: object, expected: str, hint: str | None
) -> None:
    error = refused(**{section: {key: value}})
    assert str(error).startswith(f"job spec: {section}.{key}: expected ")
    assert expected in str(error)
    assert (hint in (error.hint or "")) if hint else error.hint is None


def test_a_long_value_is_shortened() -> None:
    assert len(str(refused(train={"seed": "x" * 10_000}))) < 400
