"""Writes the merged model: base and adapter as one model in 16 bits, for servers without PEFT.

The base model is loaded once more, in bfloat16 and without quantization. Merging computes W + scale * B A: with W
in 4 bits, the small update would be lost in its rounding.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import torch

_MAX_SHARD_SIZE: Final = "5GB"
_WEIGHT_FILES: Final = (".safetensors", ".safetensors.index.json")


def save_merged(model_dir: Path, adapter: Path, target: Path) -> None:
    """Writes a model directory that transformers loads without PEFT.

    Args:
        model_dir: the base model's files.
        adapter: directory of the saved adapter.
        target: new directory; receives safetensors in bfloat16, and the base model's tokenizer and other text
            files.
    """
    from peft import PeftModel  # noqa: PLC0415 -- after the choice of the engine
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    base: Any = AutoModelForCausalLM.from_pretrained(
        model_dir, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.bfloat16
    )
    # `safe_merge` refuses an adapter whose product is not finite.
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload(safe_merge=True)
    merged.config._name_or_path = ""  # noqa: SLF001 -- a path inside the VM, which means nothing elsewhere
    merged.save_pretrained(str(target), safe_serialization=True, max_shard_size=_MAX_SHARD_SIZE)
    # The other files of the base model, such as its tokenizer and its licence. Those that were just written stay:
    # the configuration has changed.
    for path in sorted(model_dir.rglob("*")):
        name = path.relative_to(model_dir)
        if path.is_file() and not path.name.endswith(_WEIGHT_FILES) and not (target / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
