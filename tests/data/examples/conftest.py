"""Tokens for any template, without transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from trainer.data.examples.model_tokenizer import ModelTokenizer

MakeTokens = Callable[..., ModelTokenizer]


@pytest.fixture(scope="session")
def make_tokens(backend: Tokenizer) -> MakeTokens:
    """Tokens with a template: `make_tokens(template, eos="</s>", bos=None, add_bos=False, stop=(), …)`."""

    def make(
        template: str | None,
        *,
        eos: str | None = "<|im_end|>",
        bos: str | None = None,
        pad: str | None = None,
        add_bos: bool = False,
        stop: tuple[str, ...] = (),
        **options: Any,
    ) -> ModelTokenizer:
        copy = Tokenizer.from_str(backend.to_str())
        if add_bos and bos:
            copy.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, copy.token_to_id(bos))]
            )
        named = {"eos_token": eos, "bos_token": bos, "pad_token": pad}
        special = {name: text for name, text in named.items() if text is not None}
        stop_ids = frozenset(id_ for name in stop if (id_ := copy.token_to_id(name)) is not None)
        templates = {} if template is None else {"default": template}
        return ModelTokenizer(copy, special, templates, stop_ids, **options)

    return make
