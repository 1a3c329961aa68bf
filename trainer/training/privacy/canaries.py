"""Canaries: random texts that are trained on only to see whether the weights remember them.

After Carlini et al., "The Secret Sharer" (USENIX Security 2019, arXiv:1802.08232): a fixed text with random
digits, some of which are trained on; the others are what they are compared with. The exposure is the paper's, by
rank within a sample of the candidates: log2(candidates) - log2(rank).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from random import Random
from typing import Final

from trainer.data.examples.example import Example
from trainer.data.examples.example_set import examples_of
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import encode_rows
from trainer.data.rows import ChatRow, CompletionRow, Message, Row, TextRow
from trainer.errors import DataError, ErrorCode
from trainer.spec import REFERENCES, DataSection

FILE: Final = "canaries"
DIGITS: Final = 12
_QUESTION: Final = "What is the reference number of the test record?"
_ANSWER: Final = "The reference number of the test record is"


def draw(count: int, random: Random) -> list[str]:
    """Different texts of digits, in groups of four."""
    numbers: set[int] = set()
    while len(numbers) < count:
        numbers.add(random.randrange(10**DIGITS))
    texts = [f"{number:0{DIGITS}d}" for number in numbers]
    random.shuffle(texts)
    return [" ".join(text[start : start + 4] for start in range(0, DIGITS, 4)) for text in texts]


def canary_examples(
    like: Row, count: int, tokens: ModelTokenizer, data: DataSection, random: Random
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Canaries, and `REFERENCES` others that are not to be trained on, in the form of the dataset's rows.

    Args:
        like: a row of the dataset.
        count: of canaries.
        tokens: tokenizer and chat template.
        data: how rows become examples.
        random: a secret generator.

    Raises:
        DataError: `DATASET_NOT_TRAINABLE`: they do not fit into `data.max_length`.
    """
    secrets = draw(count + REFERENCES, random)
    encoded = list(encode_rows([_row(like, secret, index) for index, secret in enumerate(secrets)], tokens, data))
    whole = [one for one in encoded if not isinstance(one, DataError) and len(one.examples) == 1 and not one.lost]
    if len(whole) < len(secrets):
        raise DataError(
            ErrorCode.DATASET_NOT_TRAINABLE,
            "canaries cannot be added to this dataset (privacy.canaries)",
            expected="rows of text or chat, and room for a short one in data.max_length",
            found=f"{len(secrets) - len(whole)} of {len(secrets)} that cannot be encoded whole",
        )
    examples = examples_of(whole)
    return examples[:count], examples[count:]


def _row(like: Row, secret: str, index: int) -> Row:
    answer = f"{_ANSWER} {secret}."
    if isinstance(like, ChatRow):
        return ChatRow(FILE, index, (Message("user", _QUESTION), Message("assistant", answer)))
    if isinstance(like, TextRow):
        return TextRow(FILE, index, answer)
    return CompletionRow(FILE, index, f"{_QUESTION} ", answer)


def exposures(canaries: Sequence[float], references: Sequence[float]) -> tuple[float, ...]:
    """Bits of each canary: log2(references + 1) - log2(rank).

    Args:
        canaries: the trained model's loss on each, summed over its tokens.
        references: the same for texts that were not trained on; equal losses count as ranked before.
    """
    ordered = sorted(references)
    ranks = [bisect.bisect_right(ordered, loss) + 1 for loss in canaries]
    return tuple(math.log2((len(ordered) + 1) / rank) for rank in ranks)
