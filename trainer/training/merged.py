"""The whole model on request: base and adapter merged in 16 bits, for those who serve without PEFT.

The base is loaded once more, in bfloat16 and without quantisation: merging into 4-bit weights would round the
adapter away.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import torch

_SHARD: Final = "5GB"
_WEIGHTS: Final = (".safetensors", ".safetensors.index.json")


def save_merged(model_dir: Path, adapter: Path, target: Path) -> None:
    """Write a model directory that transformers loads as it is.

    Args:
        model_dir: the base model's files.
        adapter: the saved adapter.
        target: new directory; gets weights in bfloat16, and the base's tokenizer and other text files.
    """
    from peft import PeftModel  # noqa: PLC0415 -- after the choice of the engine
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    base: Any = AutoModelForCausalLM.from_pretrained(
        model_dir, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.bfloat16
    )
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload(safe_merge=True)
    merged.config._name_or_path = ""  # noqa: SLF001 -- a path of this machine
    merged.save_pretrained(str(target), safe_serialization=True, max_shard_size=_SHARD)
    for path in sorted(model_dir.rglob("*")):
        name = path.relative_to(model_dir)
        if path.is_file() and not path.name.endswith(_WEIGHTS) and not (target / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
