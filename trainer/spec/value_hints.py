"""Hints for values that other fine-tuning tools accept for a key of the same meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_OTHER_VALUES: Final[Mapping[str, Mapping[str, str]]] = {
    "model.dtype": {
        "bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16", "auto": "bfloat16",
        "bfloat16": "bfloat16", "float16": "float16", "float32": "float32",
    },
    "model.attn_implementation": {
        "auto": "sdpa", "fa2": "flash_attention_2", "flash": "flash_attention_2",
        "flash_attn": "flash_attention_2", "disabled": "eager", "flex_attention": "sdpa",
    },
    "lora.lora_target_modules": {"all": "all-linear", "auto": "all-linear", "all_linear": "all-linear"},
    "data.format": {
        "chat": "messages", "openai": "messages", "chat_template": "messages", "chatml": "messages",
        "conversational": "messages", "dpo": "preference", "completion": "text",
        "pretraining": "text", "instruction": "alpaca",
    },
    "data.packing": {"bfd": "true", "ffd": "true", "wrapped": "true"},
    "train.method": {
        "pt": "sft with data.format text", "pretrain": "sft with data.format text",
        "ipo": "dpo with loss_type ipo",
    },
    "train.engine": {"auto": "transformers", "hf": "transformers", "huggingface": "transformers"},
    "train.optim": {
        "adamw_bnb_8bit": "adamw_8bit", "paged_adamw_8bit": "adamw_8bit: paging moves data to the host",
        "paged_adamw_32bit": "adamw_torch: paging moves data to the host", "paged_adamw": "adamw_torch",
        "adamw_hf": "adamw_torch", "adamw": "adamw_torch", "adam": "adamw_torch",
        "adamw_apex_fused": "adamw_torch_fused", "adamw_torch_8bit": "adamw_8bit",
    },
    "train.lr_scheduler_type": {
        "wsd": "warmup_stable_decay", "constant_warmup": "constant_with_warmup", "cosine_with_warmup": "cosine",
        "linear_with_warmup": "linear", "cosine_warmup": "cosine",
    },
    "train.bf16": {"auto": "true", "full": "true"},
    "train.gradient_checkpointing": {"unsloth": "true: activations are never moved to the host"},
    "train.fsdp": {"full_shard auto_wrap": "full_shard", "full": "full_shard", "fsdp2": "full_shard"},
    "lora.init_lora_weights": {"default": "true", "kaiming": "true"},
}  # fmt: skip
"""Key → values of other fine-tuning tools → the value here."""


def value_hint(key: str, value: object) -> str | None:
    """Returns the value of a key that means here what `value` means in another tool, or None."""
    if not isinstance(value, str):
        return None
    if key == "lora.lora_target_modules" and "," in value:
        return f"write a list: [{', '.join(part.strip() for part in value.split(','))}]"
    meant = _OTHER_VALUES.get(key, {}).get(value.lower().removeprefix("torch."))
    return f"did you mean {meant}?" if meant else None
