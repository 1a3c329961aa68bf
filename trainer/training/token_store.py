"""All tokens of a set of rows, on the device; batches are slices of it.

Uploaded once. For a stretch of training one more small upload says in what order the rows come; then their
tokens are brought into that order on the device, and every batch is a view. In a step nothing is copied to the
device, and nothing is waited for: on a GPU in a confidential VM each copy is encrypted and each wait is long.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from trainer.data.examples.example import Example
from trainer.training.fused.segments import Segments

SECTION_TOKENS: Final = 1 << 22
"""So many tokens are brought into their order at a time."""


Shape = Callable[[int, int], tuple[int, int]]
"""From how many rows of how many tokens there are to how many a model is given, padded."""


@dataclass(frozen=True)
class Batch:
    """Rows behind one another, on a device.

    Attributes:
        ids: int32 [tokens].
        positions: int32 [tokens]: of each token in its row, from 0.
        segments: where the rows are.
        predicting: int32 [targets]: index of the token that predicts.
        targets: int64 [targets]: id to be predicted there.
    """

    ids: Tensor
    positions: Tensor
    segments: Segments
    predicting: Tensor
    targets: Tensor

    def sharing(self, size: int) -> Batch:
        """The same rows, which all begin with the same `size` tokens; those stand once, in front."""
        if not size:
            return self
        lengths = [length - size for length in self.segments.lengths]
        bounds = size + torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        starts = self.segments.bounds[:-1]
        first = int(starts[0])
        own = [torch.arange(start + size, end) for start, end in itertools.pairwise(self.segments.bounds.tolist())]
        tokens = torch.arange(first, first + size)
        index = torch.cat([tokens, *own])
        row = torch.searchsorted(self.segments.bounds[1:], self.predicting, right=True)
        place = self.predicting - starts[row]
        predicting = torch.where(place < size, place, bounds[row] + place - size)
        segments = Segments(tuple(lengths), bounds, size)
        return Batch(self.ids[index], self.positions[index], segments, predicting, self.targets)

    def common_beginning(self) -> int:
        """How many tokens all rows begin with; at most one less than the shortest has."""
        starts, shortest = self.segments.bounds[:-1], min(self.segments.lengths)
        if len(starts) == 1:
            return 0
        table = self.ids[starts[:, None] + torch.arange(shortest)]
        same = (table == table[0]).all(0).to(torch.int8).cumprod(0)
        return min(int(same.sum()), shortest - 1)

    def by_row(self, values: Tensor) -> Tensor:
        """Sums over each row's targets: [rows], of [targets]. In the same order each time, on a GPU too."""
        row = torch.searchsorted(self.segments.bounds[1:], self.predicting, right=True)
        numbers = torch.arange(len(self.segments.lengths), device=values.device)
        return torch.where(row == numbers.unsqueeze(1), values, values.new_zeros(())).sum(1)

    def padded(self, pad_id: int, shape: Shape | None = None) -> tuple[Tensor, Tensor]:
        """As a rectangle, for models that take nothing else.

        Padding stands on the right, where causal attention keeps it from every real token, and in rows of its own;
        it is never a target: so no attention mask is needed.

        Args:
            pad_id: stands where nothing is.
            shape: from what the rows need, at least, to the rectangle's rows and width.

        Returns:
            Ids (rows, width), and the indices [targets] into them, flattened, of the tokens that predict.
        """
        bounds, rows, width = self.segments.bounds, len(self.segments.lengths), self.segments.longest
        if shape is not None:
            rows, width = shape(rows, width)
        column = torch.arange(width, dtype=bounds.dtype, device=bounds.device)
        index = bounds[:-1, None] + column
        inside = index < bounds[1:, None]
        ids = torch.where(inside, self.ids[index.clamp_max(self.ids.shape[0] - 1)], pad_id)
        ids = torch.nn.functional.pad(ids, (0, 0, 0, rows - len(ids)), value=pad_id)
        row = torch.searchsorted(bounds[1:], self.predicting, right=True)
        return ids, row * width + self.predicting - bounds[row]


class OrderedTokens:
    """Rows of a store in one order; `batch` takes neighbours out.

    Args:
        ids, positions, bounds, predicting, targets: as in `Batch`, over all the rows.
        rows: int64 [rows]: which of the store's rows they are.
        lengths: of each row, on the host.
        counts: of each row how many of its tokens are trained on, on the host.
    """

    def __init__(
        self,
        ids: Tensor,
        positions: Tensor,
        bounds: Tensor,
        predicting: Tensor,
        targets: Tensor,
        *,
        rows: Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
    ) -> None:
        self.rows = rows
        self._ids, self._positions, self._bounds = ids, positions, bounds
        self._predicting, self._targets = predicting, targets
        self.lengths, self.counts = lengths, counts
        self._starts = [0, *itertools.accumulate(lengths)]
        self._target_starts = [0, *itertools.accumulate(counts)]

    def batch(self, rows: slice) -> Batch:
        """The rows of a slice: views, and nothing that waits for the device."""
        first, last = self._starts[rows.start], self._starts[rows.stop]
        targets = slice(self._target_starts[rows.start], self._target_starts[rows.stop])
        bounds = self._bounds[rows.start : rows.stop + 1] - first
        return Batch(
            self._ids[first:last],
            self._positions[first:last],
            Segments(tuple(self.lengths[rows]), bounds),
            self._predicting[targets] - first,
            self._targets[targets],
        )


class TokenStore:
    """All tokens of some rows that a prediction is made from: the last one that is trained on only is a target.

    Args:
        examples: the rows; of each at least one token is trained on.
        device: where they go.
    """

    def __init__(self, examples: Sequence[Example], device: torch.device) -> None:
        rows = [np.asarray(example.ids, dtype=np.int32) for example in examples]
        trained = [np.flatnonzero(np.frombuffer(example.trained, dtype=np.uint8)) for example in examples]
        self.lengths = [int(places[-1]) for places in trained]
        self.counts = [len(places) for places in trained]
        self._ids = _upload(
            np.concatenate([row[:length] for row, length in zip(rows, self.lengths, strict=True)]), device
        )
        self._predicting = _upload(np.concatenate(trained).astype(np.int32) - 1, device)
        self._targets = _upload(
            np.concatenate([row[places] for row, places in zip(rows, trained, strict=True)]), device
        )
        sizes = np.asarray([self.lengths, self.counts], dtype=np.int64)
        self._sizes = _upload(sizes, device)
        self._starts = _upload(np.cumsum(sizes, axis=1) - sizes, device)

    def ordered(self, rows: Sequence[int]) -> OrderedTokens:
        """Bring rows into an order: one upload, of their numbers."""
        lengths, counts = [self.lengths[row] for row in rows], [self.counts[row] for row in rows]
        order = _upload(np.asarray(rows, dtype=np.int64), self._ids.device)
        bounds, row, positions = self._spread(order, 0, sum(lengths))
        ids = self._ids[self._starts[0][order][row] + positions]
        _, target_row, number = self._spread(order, 1, sum(counts))
        place = self._starts[1][order][target_row] + number
        predicting = (bounds[target_row] + self._predicting[place]).to(torch.int32)
        targets = self._targets[place].to(torch.int64)
        return OrderedTokens(
            ids, positions.to(torch.int32), bounds.to(torch.int32), predicting, targets,
            rows=order, lengths=lengths, counts=counts,
        )  # fmt: skip

    def _spread(self, order: Tensor, what: int, total: int) -> tuple[Tensor, Tensor, Tensor]:
        """For rows of some sizes: their bounds, and for each element its row and its place in the row."""
        sizes = self._sizes[what][order]
        bounds = torch.nn.functional.pad(torch.cumsum(sizes, 0), (1, 0))
        numbers = torch.arange(len(order), device=order.device)
        row = torch.repeat_interleave(numbers, sizes, output_size=total)
        return bounds, row, torch.arange(total, device=order.device) - bounds[row]


def _upload(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)


def single_batch(examples: Sequence[Example], device: torch.device) -> Batch:
    """A few rows as one batch."""
    return TokenStore(examples, device).ordered(range(len(examples))).batch(slice(0, len(examples)))
