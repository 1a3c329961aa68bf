"""The tokens of a dataset, flattened and on the device; batches are slices of it.

A dataset is uploaded once, when training begins. For each section of about `SECTION_TOKENS` tokens a small upload
of row numbers says in which order its rows are trained on; the tokens are brought into that order on the device,
and every batch of the section is a view. So an optimizer step copies nothing to the device and waits for nothing.
On a GPU in a confidential VM that matters: each copy over the bus is encrypted, and each wait is long.

Rows are concatenated without padding. `cu_seqlens`, as in FlashAttention's interface, says where each row begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from trainer.data.examples.example import Example

SECTION_TOKENS: Final = 1 << 22
"""Minimum number of tokens that are brought into their training order at a time: 16 MiB of int32 ids."""

PaddedShape = Callable[[int, int], tuple[int, int]]
"""Maps (rows, longest row in tokens) to the (rows, width) of the padded rectangle that a model is given."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Batch:
    """Some rows, concatenated without padding, on a device.

    Attributes:
        input_ids: int32 [tokens].
        position_ids: int32 [tokens]: position of each token in its row, from 0.
        lengths: tokens of each row, on the host, so that reading them does not wait for the device.
        cu_seqlens: int32 [rows + 1]: index of each row's first token, and the number of tokens.
        logit_positions: int32 [targets]: index of the token whose logits predict the target, in ascending order.
        targets: int64 [targets]: the token id to predict there.
    """

    input_ids: Tensor
    position_ids: Tensor
    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    logit_positions: Tensor
    targets: Tensor

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)

    def row_of_targets(self) -> Tensor:
        """Returns the row that each target is in: int64 [targets]."""
        # Row r covers the token indices cu_seqlens[r] <= i < cu_seqlens[r + 1].
        return torch.searchsorted(self.cu_seqlens[1:], self.logit_positions, right=True)

    def sum_by_row(self, values: Tensor) -> Tensor:
        """Returns the sum of values [targets] over each row: [rows].

        It is deterministic on a GPU as well, where `index_add` is not: each row is a masked sum of its own.
        """
        rows = torch.arange(len(self.lengths), device=values.device)
        in_row = self.row_of_targets() == rows.unsqueeze(1)
        return torch.where(in_row, values, values.new_zeros(())).sum(1)

    def padded(self, pad_id: int, padded_shape: PaddedShape | None = None) -> tuple[Tensor, Tensor]:
        """Pads the rows to a rectangle, for models that take nothing else.

        Padding is on the right and in rows of its own. Causal attention keeps it from every real token, and it is
        never a target, so no attention mask is needed.

        Args:
            pad_id: token id of the padding.
            padded_shape: enlarges the rectangle; with None it is as small as the rows allow.

        Returns:
            Token ids [rows, width], and the logit positions [targets] as indices into the flattened rectangle.
        """
        cu_seqlens, rows, width = self.cu_seqlens, len(self.lengths), self.max_seqlen
        if padded_shape is not None:
            rows, width = padded_shape(rows, width)
        # Token (r, c) of the rectangle is token cu_seqlens[r] + c of the batch, if row r is that long.
        column = torch.arange(width, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
        index = cu_seqlens[:-1, None] + column
        is_token = index < cu_seqlens[1:, None]
        # Past the end of the last row the index is clamped: the token that is read there is replaced by padding.
        ids = torch.where(
            is_token, self.input_ids[index.clamp_max(self.input_ids.shape[0] - 1)], pad_id
        )
        ids = torch.nn.functional.pad(ids, (0, 0, 0, rows - len(ids)), value=pad_id)
        # Token i of row r has the index r * width + i in the flattened rectangle.
        row = self.row_of_targets()
        return ids, row * width + self.logit_positions - cu_seqlens[row]


class OrderedTokens:
    """Rows of a store in the order in which they are trained on.

    Args:
        input_ids, position_ids, cu_seqlens, logit_positions, targets: as in `Batch`, over all of these rows.
        row_numbers: number of each row in the store, on the host.
        rows: int64 [rows]: the same on the device.
        lengths: tokens of each row, on the host.
        target_counts: targets of each row, on the host.

    Attributes:
        row_numbers, rows, lengths: as given.
    """

    def __init__(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        logit_positions: Tensor,
        targets: Tensor,
        *,
        row_numbers: Sequence[int],
        rows: Tensor,
        lengths: Sequence[int],
        target_counts: Sequence[int],
    ) -> None:
        self.row_numbers = row_numbers
        self.rows = rows
        self.lengths = lengths
        self._input_ids, self._position_ids, self._cu_seqlens = input_ids, position_ids, cu_seqlens
        self._logit_positions, self._targets = logit_positions, targets
        # On the host, so that a slice of rows becomes a slice of tokens without reading the device.
        self._token_starts = [0, *itertools.accumulate(lengths)]
        self._target_starts = [0, *itertools.accumulate(target_counts)]

    def batch(self, rows: slice) -> Batch:
        """Returns the rows of a slice as views; no token is copied, and nothing waits for the device."""
        first, last = self._token_starts[rows.start], self._token_starts[rows.stop]
        targets = slice(self._target_starts[rows.start], self._target_starts[rows.stop])
        return Batch(
            self._input_ids[first:last],
            self._position_ids[first:last],
            tuple(self.lengths[rows]),
            self._cu_seqlens[rows.start : rows.stop + 1] - first,
            self._logit_positions[targets] - first,
            self._targets[targets],
        )


class TokenStore:
    """The tokens of some rows on the device.

    A row is stored up to the token that predicts its last trained token. Attention is causal, so later tokens
    cannot change the loss.

    Args:
        examples: the rows; each has at least one trained token, which is not its first.
        device: device of the tokens.

    Attributes:
        lengths: stored tokens of each row.
        target_counts: trained tokens of each row.
    """

    def __init__(self, examples: Sequence[Example], device: torch.device) -> None:
        # The last trained token, at position p, is predicted from position p - 1: the first p tokens are stored.
        self.lengths = [example.trained.rindex(1) for example in examples]
        self.target_counts = [example.targets for example in examples]
        input_ids = np.empty(sum(self.lengths), dtype=np.int32)
        logit_positions = np.empty(sum(self.target_counts), dtype=np.int32)
        targets = np.empty_like(logit_positions)
        token = target = 0
        # Row by row into the arrays: beside them no second copy of the dataset is made.
        for example, length, count in zip(examples, self.lengths, self.target_counts, strict=True):
            row = np.asarray(example.ids, dtype=np.int32)
            positions = np.flatnonzero(np.frombuffer(example.trained, dtype=np.uint8))
            input_ids[token : token + length] = row[:length]
            # Token i is predicted from token i - 1.
            logit_positions[target : target + count] = positions - 1
            targets[target : target + count] = row[positions]
            token, target = token + length, target + count
        self._input_ids, self._logit_positions = (
            _upload(input_ids, device),
            _upload(logit_positions, device),
        )
        self._targets = _upload(targets, device)
        # Two rows, `_TOKENS` and `_TARGETS`. A start is the sum of the sizes before it: their cumulative sum
        # without the row's own size.
        sizes = np.asarray([self.lengths, self.target_counts], dtype=np.int64)
        self._sizes = _upload(sizes, device)
        self._starts = _upload(np.cumsum(sizes, axis=1) - sizes, device)

    def reorder(self, rows: Sequence[int]) -> OrderedTokens:
        """Brings rows into an order, on the device; the only upload is that of the row numbers.

        Args:
            rows: the rows in their new order; a row may occur more than once.
        """
        lengths, target_counts = (
            [self.lengths[row] for row in rows],
            [self.target_counts[row] for row in rows],
        )
        order = _upload(np.asarray(rows, dtype=np.int64), self._input_ids.device)
        cu_seqlens, row, position_ids = self._enumerate(order, _TOKENS, sum(lengths))
        input_ids = self._input_ids[self._starts[_TOKENS][order][row] + position_ids]
        _, target_row, number = self._enumerate(order, _TARGETS, sum(target_counts))
        index = self._starts[_TARGETS][order][target_row] + number
        # A stored logit position counts from the start of its row; in a batch it counts from the first row's.
        logit_positions = (cu_seqlens[target_row] + self._logit_positions[index]).to(torch.int32)
        targets = self._targets[index].to(torch.int64)
        return OrderedTokens(
            input_ids, position_ids.to(torch.int32), cu_seqlens.to(torch.int32), logit_positions, targets,
            row_numbers=rows, rows=order, lengths=lengths, target_counts=target_counts,
        )  # fmt: skip

    def _enumerate(self, order: Tensor, kind: int, total: int) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers the tokens, or the targets, of rows in an order.

        Returns:
            Cumulative sizes [rows + 1]; and for each element its row and its number in the row, both [total].
        """
        sizes = self._sizes[kind][order]
        starts = torch.nn.functional.pad(torch.cumsum(sizes, 0), (1, 0))
        numbers = torch.arange(len(order), device=order.device)
        # With `output_size` the result's length need not be read back from the device.
        row = torch.repeat_interleave(numbers, sizes, output_size=total)
        return starts, row, torch.arange(total, device=order.device) - starts[row]


_TOKENS: Final = 0
_TARGETS: Final = 1
"""Rows of `TokenStore._sizes` and `TokenStore._starts`."""


def _upload(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)


def split_sections(items: Iterable[_T], count_tokens: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Yields items in sections of at least `SECTION_TOKENS` tokens; the last one may have fewer.

    Args:
        items: groups of rows that stay together, such as the rows of a step; read section by section.
        count_tokens: number of tokens of an item.
    """
    section: list[_T] = []
    tokens = 0
    for item in items:
        section.append(item)
        tokens += count_tokens(item)
        if tokens >= SECTION_TOKENS:
            yield section
            section, tokens = [], 0
    if section:
        yield section


def single_batch(examples: Sequence[Example], device: torch.device) -> Batch:
    """Returns one batch of a few rows, in their order."""
    return TokenStore(examples, device).reorder(range(len(examples))).batch(slice(0, len(examples)))
