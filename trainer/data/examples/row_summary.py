"""What is counted of an encoded row: numbers and digests, a few hundred bytes, and none of its text.

A summary is made where the row is encoded, and counted (`row_outcomes`) in the order of the rows: `trainer
validate` encodes in several processes, and counts in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trainer.data.examples.evaluation_files import is_for_evaluation
from trainer.data.examples.example import EncodedRow, Example
from trainer.data.examples.held_out import is_held_out, row_digest
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.token_boundaries import any_of
from trainer.data.rows import CompletionRow
from trainer.spec import DataSection

NO_PROMPT = 0


class ExamplesSummary(NamedTuple):
    """Numbers and digests of the examples of a row.

    Attributes:
        digest: of the token ids of all examples. Of digests 64 bits: among ten million rows a collision has a
            probability of about 3e-6, and makes a count wrong by one.
        digests: the same of each example.
        prompt: the same of the tokens before the first trained one; `NO_PROMPT` without any.
        held_by_hash: whether the row is held out, if no file is for evaluation.
        lengths: number of tokens of each example.
        endless: number of examples that train on no end of a turn.
        cut: number of examples that were cut to `data.max_length`.
        labels: labels of the answers that have one.
    """

    digest: int
    digests: tuple[int, ...]
    prompt: int
    held_by_hash: bool
    lengths: tuple[int, ...]
    endless: int
    cut: int
    labels: tuple[bool, ...]


class RowSummary(NamedTuple):
    """What is counted of a row.

    Attributes:
        file: name of its file, relative to `data/`.
        is_split_for_evaluation: whether the split that its file belongs to is one for evaluation.
        in_evaluation_file: whether its file is for evaluation, by its split or its name.
        special: whether it contains the text of a special token.
        without_template: whether it is a plain prompt, which no chat template renders.
        ignored_keys: number of keys of its messages that were left out.
        unrendered: parts of a conversation that the chat template prints without, sorted.
        examples: None if the row was dropped.
    """

    file: str
    is_split_for_evaluation: bool
    in_evaluation_file: bool
    special: bool
    without_template: bool
    ignored_keys: int
    unrendered: tuple[str, ...]
    examples: ExamplesSummary | None


class RowSummarizer:
    """Makes the summaries of rows.

    Args:
        tokenizer: the base model's tokenizer.
        data: how rows become examples, and which are held out.
        split_key: decides which rows are held out, where no file does.
    """

    def __init__(self, tokenizer: ModelTokenizer, data: DataSection, split_key: bytes) -> None:
        self._tokenizer = tokenizer
        self._special = any_of(tokenizer.special_texts)
        self._data = data
        self._split_key = split_key

    def summarize(self, encoded: EncodedRow) -> RowSummary:
        """Returns the summary of a row, whose tokens must be in the base model's embedding.

        Raises:
            JobError: they are not.
        """
        row = encoded.row
        return RowSummary(
            file=row.file,
            is_split_for_evaluation=row.for_evaluation,
            in_evaluation_file=row.for_evaluation or is_for_evaluation(row.file, self._data),
            special=any(map(self._special.search, row.texts)),
            without_template=isinstance(row.answer_row, CompletionRow),
            ignored_keys=row.ignored_keys,
            unrendered=tuple(sorted(part.value for part in encoded.unrendered)),
            examples=self._summarize_examples(encoded.examples) if encoded.examples else None,
        )

    def _summarize_examples(self, examples: Sequence[Example]) -> ExamplesSummary:
        self._tokenizer.require_embedded(max(max(example.ids) for example in examples))
        digest = row_digest(examples)
        # Of a single example it is the digest of the row.
        each = [row_digest([example]) for example in examples] if len(examples) > 1 else [digest]
        return ExamplesSummary(
            digest=_short(digest),
            digests=tuple(map(_short, each)),
            prompt=_prompt_digest(examples[0]),
            held_by_hash=is_held_out(digest, self._data.test_split_size, self._split_key),
            lengths=tuple(example.length for example in examples),
            endless=sum(not example.stops for example in examples),
            cut=sum(example.truncated for example in examples),
            labels=tuple(example.label for example in examples if example.label is not None),
        )


def _short(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


def _prompt_digest(example: Example) -> int:
    """Returns 64 bits of the digest of the tokens before the first trained one; `NO_PROMPT` without any.

    Index 0 is never trained, so a single token before the first trained one is no prompt: plain text has it too.
    """
    first = example.trained.index(1)
    if first <= 1:
        return NO_PROMPT
    return _short(row_digest([Example(example.ids[:first], bytes(first), stops=False)])) or 1
