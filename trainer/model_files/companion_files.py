"""Files that a model needs beside its weights: tokenizer, chat template, generation settings."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from trainer.encoding import sha256_hex

COMPANION_FILES: Final = (
    "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "chat_template.jinja",
)  # fmt: skip
"""Files beside weights and config.json that transformers reads from a model's directory, each if it is there."""

CHAT_TEMPLATE_FILE: Final = "chat_template.jinja"

_TEMPLATE_FILE: Final = re.compile(r"additional_chat_templates/\w[\w.-]*\.jinja")
_WEIGHT_FILES: Final = (".safetensors", ".safetensors.index.json")


def is_companion(name: str) -> bool:
    """Returns whether a file of a model belongs to its tokenizer, chat template or generation settings."""
    return name in COMPANION_FILES or _TEMPLATE_FILE.fullmatch(name) is not None


def copied_digests(
    pinned: Mapping[str, str], template: object, template_path: object
) -> dict[str, str]:
    """Returns the files that a job may copy into its result: name → SHA-256.

    Args:
        pinned: the base model's files by name, with their digests.
        template: `data.chat_template`, a text that replaces all templates of the base model, or None.
        template_path: `data.chat_template_path`, the name of a pinned file that replaces them, or None.
    """
    by_path = pinned.get(template_path) if isinstance(template_path, str) else None
    chosen = sha256_hex(template.encode()) if isinstance(template, str) else by_path
    if chosen is None:
        return dict(pinned)
    own = {name: digest for name, digest in pinned.items() if not _is_template(name)}
    return own | {CHAT_TEMPLATE_FILE: chosen}


def _is_template(name: str) -> bool:
    return name == CHAT_TEMPLATE_FILE or _TEMPLATE_FILE.fullmatch(name) is not None


def companion_bytes(model_dir: Path) -> int:
    """Returns the size of a model's companion files together, in bytes."""
    return sum(
        (model_dir / name).stat().st_size for name in _file_names(model_dir) if is_companion(name)
    )


def copy_companions(model_dir: Path, target: Path, chat_template: str | None) -> None:
    """Copies tokenizer and generation settings of a base model, with the chat template that was trained with."""
    _copy(model_dir, target, filter(is_companion, _file_names(model_dir)), chat_template)


def copy_all_but_weights(model_dir: Path, target: Path, chat_template: str | None) -> None:
    """Copies the other files of a base model, such as its licence, too; those that `target` has already stay."""
    names = (name for name in _file_names(model_dir) if not name.endswith(_WEIGHT_FILES))
    _copy(
        model_dir, target, (name for name in names if not (target / name).exists()), chat_template
    )


def _file_names(model_dir: Path) -> list[str]:
    return sorted(
        path.relative_to(model_dir).as_posix() for path in model_dir.rglob("*") if path.is_file()
    )


def _copy(model_dir: Path, target: Path, names: Iterable[str], chat_template: str | None) -> None:
    for name in names:
        if chat_template is None or not _is_template(name):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model_dir / name, target / name)
    if chat_template is not None:
        (target / CHAT_TEMPLATE_FILE).write_bytes(chat_template.encode())
