"""The base model's tokenizer as training needs it: chat template, stop tokens, and a safe padding token."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from trainer.errors import ErrorCode, JobError
from trainer.rows import Message

_STOP_FILES: Final = ("generation_config.json", "config.json")


class TemplateRefusedError(Exception):
    """The chat template cannot render these messages. Holds no text: templates quote what they refuse."""


class Tokens:
    """Text ↔ token ids.

    Args:
        tokenizer: a Hugging Face tokenizer.
        stop_ids: ids at which generation with this model ends.

    Attributes:
        stop_ids: ids at which generation ends; the end of a turn is learned only if one of them is trained on.
        append_id: what ends plain text: the tokenizer's end of sequence; None where it has none.
        pad_id: fills up batches; never one of `stop_ids`. Padding is kept out of attention and loss by position,
            not by comparing ids, so a token that also occurs in text does no harm.
        start_ids: what the tokenizer puts before plain text (a BOS token, or nothing).
    """

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self.append_id: int | None = tokenizer.eos_token_id
        self.stop_ids = stop_ids | ({self.append_id} if self.append_id is not None else set())
        self.pad_id = self._choose_padding()
        self.start_ids = self._find_start()
        self.special_texts: tuple[str, ...] = tuple(tokenizer.all_special_tokens)

    @property
    def size(self) -> int:
        """Number of known tokens: one more than the largest id."""
        return len(self._tokenizer)

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered."""
        return bool(self._tokenizer.chat_template)

    def ids(self, text: str) -> list[int]:
        """Token ids of `text` alone; tokens written out in it are read as such, none are added."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def text(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included."""
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    def render(self, messages: Sequence[Message], *, prompt: bool) -> str:
        """Render a conversation with the model's own chat template.

        Args:
            messages: its turns.
            prompt: whether the opening of an assistant's turn is added, as it is for generation.

        Raises:
            TemplateRefusedError: the template failed, or refuses these messages.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        except Exception:  # noqa: BLE001 -- a template may raise anything, with the row's text in it
            raise TemplateRefusedError from None
        return str(text)

    def _choose_padding(self) -> int:
        candidates = (self._tokenizer.pad_token_id, self._tokenizer.unk_token_id, *range(self.size))
        for candidate in candidates:
            if candidate is not None and candidate not in self.stop_ids:
                return int(candidate)
        raise JobError(ErrorCode.MODEL_INVALID, "no token of the tokenizer could pad", expected="one", found=0)

    def _find_start(self) -> tuple[int, ...]:
        plain = self.ids("a")
        framed = list(self._tokenizer("a")["input_ids"])
        for start in range(len(framed) - len(plain) + 1):
            if framed[start : start + len(plain)] == plain:
                return tuple(framed[:start])
        return ()


def load_tokens(model_dir: Path) -> Tokens:
    """Load the tokenizer of a model directory; nothing outside it is read.

    Raises:
        JobError: `MODEL_INVALID`.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise JobError(
            ErrorCode.MODEL_INVALID,
            f"the tokenizer cannot be loaded ({type(error).__name__})",
            hint="model.model_file_sha256 must list the tokenizer's files, such as tokenizer.json",
        ) from error
    return Tokens(tokenizer, frozenset(_stop_ids(model_dir)))


def _stop_ids(model_dir: Path) -> Iterator[int]:
    for name in _STOP_FILES:
        path = model_dir / name
        if path.is_file():
            value = json.loads(path.read_bytes()).get("eos_token_id")
            yield from value if isinstance(value, list) else [value] * (value is not None)
