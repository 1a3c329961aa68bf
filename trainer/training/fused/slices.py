"""Slices of concatenated parts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable


def consecutive_slices(sizes: Iterable[int]) -> list[slice]:
    """Returns the slice of each part in the concatenation of parts of these sizes."""
    ends = itertools.accumulate(sizes, initial=0)
    return [slice(start, end) for start, end in itertools.pairwise(ends)]
