"""Hints for unknown keys: the names that other tools use, and similar spellings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

_KEYS_OF_OTHER_TOOLS: Final[Mapping[str, str]] = {
    "base_model": "model.model_name_or_path",
    "model_name": "model.model_name_or_path",
    "revision": "model.model_revision",
    "torch_dtype": "model.dtype",
    "quantization_bit": "model.load_in_4bit",
    "r": "lora.lora_r",
    "lora_rank": "lora.lora_r",
    "alpha": "lora.lora_alpha",
    "target_modules": "lora.lora_target_modules",
    "lora_target": "lora.lora_target_modules",
    "lora_target_linear": "lora.lora_target_modules",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "sample_packing": "data.packing",
    "type": "data.format",
    "formatting": "data.format",
    "dataset_format": "data.format",
    "dataset_text_field": "data.columns",
    "column_mapping": "data.columns",
    "field_messages": "data.columns",
    "field_instruction": "data.columns",
    "field_output": "data.columns",
    "remove_unused_columns": "data.ignore_columns",
    "remove_columns": "data.ignore_columns",
    "eval_dataset": "data.eval_files",
    "test_datasets": "data.eval_files",
    "validation_file": "data.eval_files",
    "mask_history": "data.train_on",
    "chat_template_jinja": "data.chat_template",
    "template": "data.chat_template",
    "template_kwargs": "data.chat_template_kwargs",
    "roles_to_train": "data.assistant_only_loss",
    "drop_exceeding_length": "data.on_overlong",
    "truncation_mode": "data.on_overlong",
    "excess_length_strategy": "data.on_overlong",
    "val_set_size": "data.test_split_size",
    "val_size": "data.test_split_size",
    "train_on_inputs": "data.completion_only_loss",
    "train_on_prompt": "data.completion_only_loss",
    "completion_only": "data.completion_only_loss",
    "train_on_responses_only": "data.assistant_only_loss",
    "batch_size": "train.per_device_train_batch_size",
    "micro_batch_size": "train.per_device_train_batch_size",
    "eval_batch_size": "train.per_device_eval_batch_size",
    "grad_accum": "train.gradient_accumulation_steps",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.lr_scheduler_type",
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "steps": "train.max_steps",
    "random_state": "train.seed",
    "optimizer": "train.optim",
    "noisy_embedding_alpha": "train.neftune_noise_alpha",
    "dpo_beta": "train.beta",
    "pref_beta": "train.beta",
    "rl_beta": "train.beta",
    "dpo_alpha": "train.beta",
    "pref_loss": "train.loss_type",
    "dpo_loss": "train.loss_type",
    "dpo_label_smoothing": "train.label_smoothing",
    "rpo_alpha": "train.loss_weights",
    "pref_ftx": "train.loss_weights",
    "rl": "train.method",
    "stage": "train.method",
    "training_type": "train.method",
    "compile": "train.torch_compile",
    "use_compile": "train.torch_compile",
    "torch_compile_backend": "train.torch_compile",
    "compile_mode": "train.torch_compile_mode",
    "dynamo_mode": "train.torch_compile_mode",
    "init_weights": "lora.init_lora_weights",
    "gradient_clipping": "train.max_grad_norm",
    "nproc_per_node": "train.num_processes",
    "num_gpus": "train.num_processes",
    "world_size": "train.num_processes",
    "fsdp_config": "train.fsdp",
    "epsilon": "privacy.target_epsilon",
    "dp_epsilon": "privacy.target_epsilon",
    "delta": "privacy.target_delta",
    "per_sample_max_grad_norm": "privacy.max_grad_norm",
}
"""Name of a key in other fine-tuning tools → its name here."""


def meant_key(unknown: str, known: Iterable[str]) -> str | None:
    """Returns the known `section.key` that the author of `unknown` most likely meant, or None.

    Args:
        unknown: the key as found, with its section if it has one.
        known: all acceptable `section.key` names.
    """
    leaf = unknown.rpartition(".")[2]
    if leaf in _KEYS_OF_OTHER_TOOLS:
        return _KEYS_OF_OTHER_TOOLS[leaf]
    # Without the section: users often put a known key into the wrong one.
    by_leaf = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.6)
    return by_leaf[close[0]] if close else None
