"""Loads the base model's tokenizer: from tokenizer.json with shared code, otherwise with transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from transformers import AutoTokenizer

from trainer.data.examples.model_config import read_config, vocabulary_size
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.tokenizer_files import (
    TOKENIZER_FILE,
    chosen_template,
    read_stop_ids,
    read_tokenizer,
)
from trainer.errors import ErrorCode, JobError
from trainer.spec import DataSection, TemplateArgument

_DEFAULTS: Final = DataSection()
_CLASSES_THAT_USE_THE_FILE: Final = (None, "PreTrainedTokenizerFast", "TokenizersBackend")
"""Values of `tokenizer_class` for which transformers uses tokenizer.json unchanged."""


def load_tokens(model_dir: Path, data: DataSection = _DEFAULTS) -> ModelTokenizer:
    """Loads the tokenizer of a model directory. Reads no file outside of it and executes no code from it.

    tokenizer.json is read with the code of `trainer validate`, so that the provider's machine and the worker
    produce the same ids. For a model without that file, transformers converts the tokenizer.

    Args:
        model_dir: the base model's files.
        data: the section of the job spec, which may replace the chat template and set its variables.

    Raises:
        JobError: `MODEL_INVALID`: the tokenizer cannot be loaded or converted.
    """
    if (model_dir / TOKENIZER_FILE).is_file():
        tokens = read_tokenizer(model_dir, data)
        tokens.notes = tuple(_differences_from_transformers(tokens, model_dir))
        return tokens
    tokenizer = _auto_tokenizer(model_dir)
    tokenizer.chat_template = chosen_template(model_dir, data) or tokenizer.chat_template
    size = (
        vocabulary_size(read_config(model_dir)) if (model_dir / "config.json").is_file() else None
    )
    return tokens_of(
        tokenizer, read_stop_ids(model_dir), data.chat_template_kwargs, vocabulary=size
    )


def _differences_from_transformers(tokens: ModelTokenizer, model_dir: Path) -> Iterator[str]:
    """Yields a note if transformers encodes sample texts differently.

    Some tokenizer classes of transformers rebuild the tokenizer instead of using tokenizer.json. Who uses the
    adapter with such a class would then give the model other ids than it was trained on.
    """
    try:
        config = json.loads((model_dir / "tokenizer_config.json").read_bytes())
        if config.get("tokenizer_class") in _CLASSES_THAT_USE_THE_FILE:
            return
        tokenizer = _auto_tokenizer(model_dir)
    except (OSError, ValueError, JobError):
        return  # transformers cannot load this tokenizer, so there is nothing to compare with
    # Spaces, line breaks and the surroundings of special tokens: these the rebuilt tokenizers normalise
    # differently.
    probes = ["a b", " a\n b", *(f"{special}a{special} b" for special in tokens.special_texts[:8])]
    transformers_ids = [
        list(tokenizer(probe, add_special_tokens=False)["input_ids"]) for probe in probes
    ]
    if transformers_ids != [ids.tolist() for ids in tokens.ids_of(probes)]:
        yield (
            f"transformers' {type(tokenizer).__name__} reads text differently from tokenizer.json, which training "
            "goes by: load the tokenizer with PreTrainedTokenizerFast to use the adapter"
        )


def _auto_tokenizer(model_dir: Path) -> Any:
    """Returns the tokenizer that transformers loads from a directory.

    Raises:
        JobError: `MODEL_INVALID`.
    """
    try:
        return AutoTokenizer.from_pretrained(
            model_dir, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a damaged file can make the library raise anything
        raise JobError(
            ErrorCode.MODEL_INVALID,
            f"the tokenizer cannot be loaded ({type(error).__name__})",
            hint="model.model_file_sha256 must list the tokenizer's files, such as tokenizer.json",
        ) from error


def tokens_of(
    tokenizer: Any,
    stop_ids: frozenset[int] = frozenset(),
    arguments: Mapping[str, TemplateArgument] = MappingProxyType({}),
    *,
    vocabulary: int | None = None,
) -> ModelTokenizer:
    """Converts a tokenizer of transformers.

    Args:
        tokenizer: a tokenizer of transformers, with its chat template.
        stop_ids: ids that end an answer.
        arguments: variables of the chat template by name.
        vocabulary: number of rows of the embedding; None if it is not known.

    Raises:
        JobError: `MODEL_INVALID`: the tokenizer is not based on the tokenizers package.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the tokenizer is of a kind that is not supported",
            expected="one with tokenizer.json, or that can be converted to it",
            found=type(tokenizer).__name__,
        )
    # transformers has one template as a text, or several as a dict by name.
    template = tokenizer.chat_template
    templates = {"default": template} if isinstance(template, str) else dict(template or {})
    return ModelTokenizer(
        backend,
        tokenizer.special_tokens_map,
        templates,
        stop_ids,
        arguments=arguments,
        vocabulary=vocabulary,
    )
