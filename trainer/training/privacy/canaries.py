"""Canaries: random texts that are added to the training rows to measure whether the weights memorise them.

Source: Carlini et al., "The Secret Sharer" (USENIX Security 2019, arXiv:1802.08232). All texts consist of one
fixed sentence with random digits. The canaries are trained on, the references are not. Exposure is the paper's,
estimated by the rank of a canary's loss among the references: log2(candidates) - log2(rank).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from random import Random
from typing import Final

from trainer.data.examples.example import Example
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import encode_rows
from trainer.data.rows import ChatRow, CompletionRow, Message, Row, TextRow
from trainer.errors import DataError, ErrorCode
from trainer.spec import REFERENCES, DataSection, PrivacySection

FILE: Final = "canaries"
DIGITS: Final = 12
_QUESTION: Final = "What is the reference number of the test record?"
_ANSWER: Final = "The reference number of the test record is"


def draw_secret_digits(count: int, random: Random) -> list[str]:
    """Draws `count` distinct numbers of `DIGITS` digits; returns them as text in groups of four.

    Args:
        count: number of texts.
        random: a secret generator. Who can predict the digits can prepare a model that already knows them.
    """
    numbers: set[int] = set()
    while len(numbers) < count:
        numbers.add(random.randrange(10**DIGITS))
    texts = [f"{number:0{DIGITS}d}" for number in numbers]
    # The order of a set follows from its numbers. Without the shuffle, canaries (the first texts) would differ
    # from references in their digits, and their rank would not be uniform for a model that memorised nothing.
    random.shuffle(texts)
    return [" ".join(text[start : start + 4] for start in range(0, DIGITS, 4)) for text in texts]


def canary_examples(
    like: Row, privacy: PrivacySection, tokens: ModelTokenizer, data: DataSection, random: Random
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Creates canaries and references as examples, in the same row kind as the dataset.

    Args:
        like: a row of the dataset, which decides the row kind; with differential privacy canaries are texts.
        privacy: number of canaries.
        tokens: tokenizer and chat template.
        data: how rows become examples.
        random: a secret generator.

    Returns:
        The canaries, to be trained on, and `REFERENCES` references, not to be trained on.

    Raises:
        DataError: `DATASET_NOT_TRAINABLE`: they cannot be encoded within `data.max_length`. A canary that lost its
            digits to truncation would measure nothing.
    """
    count = privacy.canaries
    # Canaries are trained on. Under differential privacy they may not depend on a row: not even its kind.
    like = TextRow(like.file, like.index, "") if privacy.differential else like
    secrets = draw_secret_digits(count + REFERENCES, random)
    rows = [_canary_row(like, secret, index) for index, secret in enumerate(secrets)]
    encoded = list(encode_rows(rows, tokens, data))
    complete = [
        row
        for row in encoded
        if not isinstance(row, DataError) and len(row.examples) == 1 and not row.lost
    ]
    if len(complete) < len(secrets):
        raise DataError(
            ErrorCode.DATASET_NOT_TRAINABLE,
            "canaries cannot be added to this dataset (privacy.canaries)",
            expected="rows of text or chat, and room for a short one in data.max_length",
            found=f"{len(secrets) - len(complete)} of {len(secrets)} that cannot be encoded whole",
        )
    examples = tuple(example for row in complete for example in row.examples)
    return examples[:count], examples[count:]


def _canary_row(like: Row, secret: str, index: int) -> Row:
    # The digits follow the fixed sentence: its tokens are the context from which the model predicts them.
    answer = f"{_ANSWER} {secret}."
    if isinstance(like, ChatRow):
        return ChatRow(FILE, index, (Message("user", _QUESTION), Message("assistant", answer)))
    if isinstance(like, TextRow):
        return TextRow(FILE, index, answer)
    return CompletionRow(FILE, index, f"{_QUESTION} ", answer)


def exposures(canaries: Sequence[float], references: Sequence[float]) -> tuple[float, ...]:
    """Computes the exposure of each canary in bits: log2(references + 1) - log2(rank).

    The rank is 1 for a canary with a lower loss than every reference: exposure is then at its maximum of
    log2(references + 1). If nothing was memorised, ranks are uniform, and exposure exceeds b bits with probability
    2^-b.

    Args:
        canaries: the trained model's loss on each canary, summed over its tokens, in nats.
        references: the same for the references.
    """
    ordered = sorted(references)
    # `bisect_right` ranks a canary after references with the same loss: equal losses do not raise the exposure.
    ranks = [bisect.bisect_right(ordered, loss) + 1 for loss in canaries]
    return tuple(math.log2((len(ordered) + 1) / rank) for rank in ranks)
