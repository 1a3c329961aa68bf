"""The base model's tokenizer in the worker: the shared code, and transformers for what that cannot read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from trainer.data.examples.model_tokenizer import (
    TOKENIZER_FILE,
    ModelTokenizer,
    TemplateRefusedError,
    read_stop_ids,
    read_tokenizer,
)
from trainer.errors import ErrorCode, JobError

_AS_THE_FILE_SAYS: Final = (None, "PreTrainedTokenizerFast", "TokenizersBackend")

__all__ = ["ModelTokenizer", "TemplateRefusedError", "load_tokens"]


def load_tokens(model_dir: Path, chat_template: str | None = None) -> ModelTokenizer:
    """Load the tokenizer of a model directory, and the job spec's chat template; nothing outside is read.

    tokenizer.json is read as `trainer validate` reads it. A model without one is left to transformers, which can
    convert other formats; what it makes of them works in the same way from there on.

    Raises:
        JobError: `MODEL_INVALID`.
    """
    if (model_dir / TOKENIZER_FILE).is_file():
        tokens = read_tokenizer(model_dir, chat_template)
        tokens.notes = tuple(_disagreement(tokens, model_dir))
        return tokens
    tokenizer = _auto_tokenizer(model_dir)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    return tokens_of(tokenizer, read_stop_ids(model_dir))


def _disagreement(tokens: ModelTokenizer, model_dir: Path) -> Iterator[str]:
    """A note where transformers makes other ids of the same text: some of its classes rebuild the tokenizer."""
    try:
        config = json.loads((model_dir / "tokenizer_config.json").read_bytes())
        if config.get("tokenizer_class") in _AS_THE_FILE_SAYS:
            return
        tokenizer = _auto_tokenizer(model_dir)
    except (OSError, ValueError, JobError):
        return  # then there is nothing to compare with
    probes = ["a b", " a\n b", *(f"{special}a{special} b" for special in tokens.special_texts[:8])]
    theirs = [list(tokenizer(probe, add_special_tokens=False)["input_ids"]) for probe in probes]
    if theirs != tokens.ids_of(probes):
        yield (
            f"transformers' {type(tokenizer).__name__} reads text differently from tokenizer.json, which training "
            "goes by: load the tokenizer with PreTrainedTokenizerFast to use the adapter"
        )


def _auto_tokenizer(model_dir: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise JobError(
            ErrorCode.MODEL_INVALID,
            f"the tokenizer cannot be loaded ({type(error).__name__})",
            hint="model.model_file_sha256 must list the tokenizer's files, such as tokenizer.json",
        ) from error


def tokens_of(tokenizer: Any, stop_ids: frozenset[int] = frozenset()) -> ModelTokenizer:
    """The tokens of a tokenizer of transformers.

    Raises:
        JobError: `MODEL_INVALID`: it is of a kind that works without the tokenizers package.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the tokenizer is of a kind that is not supported",
            expected="one with tokenizer.json, or that can be converted to it",
            found=type(tokenizer).__name__,
        )
    template = tokenizer.chat_template
    templates = {"default": template} if isinstance(template, str) else dict(template or {})
    return ModelTokenizer(backend, tokenizer.special_tokens_map, templates, stop_ids)
