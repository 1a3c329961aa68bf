"""A base model and an adapter of it side by side: both continue the same prompts by greedy decoding."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from peft import PeftModel
from transformers.utils import logging

from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.errors import ErrorCode, JobError
from trainer.spec import DataSection, Dtype
from trainer.training.engines.base import Precision, choose_inference_precision
from trainer.training.engines.base_model_loading import load_base_model
from trainer.training.generation import generate_answers
from trainer.training.out_of_memory import raise_if_out_of_memory
from trainer.training.tokenizer import load_tokens

_BATCH_PROMPTS: Final = 8


@dataclass(frozen=True)
class ComparedAnswer:
    """What base model and adapter answer to one prompt; special tokens are plain text, the stop token left out.

    Attributes:
        base: the base model's answer.
        adapter: the answer with the adapter.
        base_is_cut: whether the base model's answer reached the length limit.
        adapter_is_cut: likewise with the adapter.
    """

    base: str
    adapter: str
    base_is_cut: bool
    adapter_is_cut: bool


class AdapterComparison:
    """A base model with an adapter that can be switched off.

    Args:
        model: PEFT model of a causal language model.
        tokens: its tokenizer.
        precision: its device and number formats.
    """

    def __init__(self, model: Any, tokens: ModelTokenizer, precision: Precision) -> None:
        self._model = model
        self.tokens = tokens
        self.precision = precision

    @classmethod
    def load(cls, model_dir: Path, adapter: Path, data: DataSection, dtype: Dtype) -> Self:
        """Loads both, on the GPU if there is one.

        Args:
            model_dir: the base model's weights and configuration, with tokenizer and template as trained with.
            adapter: directory of the adapter, as PEFT writes it.
            data: section `data`; of it, the variables of the chat template apply.
            dtype: type of the base weights.

        Raises:
            JobError: `MODEL_INVALID` or `OUT_OF_MEMORY`.
        """
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        precision = choose_inference_precision(dtype)
        tokens = load_tokens(model_dir, data)
        place = {"": precision.device} if precision.device.type == "cuda" else None
        base = load_base_model(model_dir, dtype=precision.weights, device_map=place)
        return cls(_attach(base, adapter).eval(), tokens, precision)

    def compare(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int
    ) -> Iterator[ComparedAnswer]:
        """Yields the answers of both to each prompt.

        Args:
            prompts: token ids of each.
            max_new_tokens: length of an answer at most.
        """
        for start in range(0, len(prompts), _BATCH_PROMPTS):
            batch = prompts[start : start + _BATCH_PROMPTS]
            with self._model.disable_adapter():
                base = self._generate(batch, max_new_tokens)
            adapter = self._generate(batch, max_new_tokens)
            for (said, is_cut), (changed, changed_is_cut) in zip(base, adapter, strict=True):
                yield ComparedAnswer(said, changed, is_cut, changed_is_cut)

    def _generate(self, prompts: Sequence[Sequence[int]], limit: int) -> list[tuple[str, bool]]:
        answers = generate_answers(
            self._model, self.tokens, self.precision, prompts, max_new_tokens=limit
        )
        compared = []
        for ids in answers:
            is_cut = not ids or ids[-1] not in self.tokens.stop_ids
            compared.append((self.tokens.text(ids if is_cut else ids[:-1]), is_cut))
        return compared


def _attach(base: Any, adapter: Path) -> Any:
    """Attaches an adapter with PEFT, for inference.

    Raises:
        JobError: `MODEL_INVALID` or `OUT_OF_MEMORY`.
    """
    try:
        with warnings.catch_warnings():
            # PEFT warns and goes on with random weights where the file has fewer tensors than its configuration.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(base, str(adapter))
    except Exception as error:  # a damaged file can make the libraries raise anything
        raise_if_out_of_memory(error)
        raise JobError(
            ErrorCode.MODEL_INVALID,
            f"the adapter in {adapter} cannot be loaded",
            expected="an adapter of PEFT for this base model",
            found=f"{type(error).__name__}: {str(error)[:200]}",
        ) from error
