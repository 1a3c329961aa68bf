"""Writes the merged model: base and adapter as one model in 16 bits, for servers without PEFT.

The base model is loaded once more, in bfloat16 and without quantization. Merging computes W + scale * B A: with W
in 4 bits, the small update would be lost in its rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from trainer.model_files.companion_files import copy_all_but_weights
from trainer.training.adapter import without_misleading_warnings
from trainer.training.engines.base_model_loading import load_base_model

_MAX_SHARD_SIZE: Final = "5GB"


def save_merged(
    model_dir: Path, adapter: Path, target: Path, chat_template: str | None = None
) -> None:
    """Writes a model directory that transformers loads without PEFT.

    Args:
        model_dir: the base model's files.
        adapter: directory of the saved adapter.
        target: new directory; receives safetensors in bfloat16, and the base model's tokenizer and other text
            files.
        chat_template: the template that was trained with, where it is not the base model's own.

    Raises:
        JobError: `MODEL_INVALID` or `OUT_OF_MEMORY`.
    """
    from peft import PeftModel  # noqa: PLC0415 -- after the choice of the engine

    base = load_base_model(model_dir, dtype=torch.bfloat16)
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    with without_misleading_warnings():
        adapted = PeftModel.from_pretrained(base, str(adapter))
    is_replaced = (head, embedding) != (base.get_output_embeddings(), base.get_input_embeddings())
    if is_replaced and head is not None and head.weight is embedding.weight:
        # An adapter on one of the two changes that one alone. Merged into the common matrix, it would change both.
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        # Otherwise PEFT warns that they are no longer tied.
        base.config.tie_word_embeddings = False
    # `safe_merge` refuses an adapter whose product is not finite.
    with without_misleading_warnings():
        merged = adapted.merge_and_unload(safe_merge=True)
    # The configuration says whether head and embedding share one matrix; only then one of them is saved.
    head, embedding = merged.get_output_embeddings(), merged.get_input_embeddings()
    tied = head is not None and head.weight is embedding.weight
    for config in (merged.config, merged.config.get_text_config(decoder=True)):
        config.tie_word_embeddings = tied
    merged.config._name_or_path = ""  # noqa: SLF001 -- a path inside the VM, which means nothing elsewhere
    merged.save_pretrained(str(target), safe_serialization=True, max_shard_size=_MAX_SHARD_SIZE)
    copy_all_but_weights(model_dir, target, chat_template)
