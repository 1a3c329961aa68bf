"""Where the rows of a flattened batch begin, and which of them share a prefix.

Rows that begin with the same tokens (a system prompt, a template, the prompt of a preference pair) may share them:
the prefix is computed once and every row of the group attends to it. Attention is causal, so nothing in the prefix
depends on the rows; sharing changes no number, it only saves work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from trainer.training.fused.attention_layout import AttentionLayout, Heads, PrefixGroup


@dataclass(frozen=True)
class Segments:
    """The rows of a flattened batch, as groups that share a prefix each.

    Attributes:
        groups: consecutive groups that cover all tokens; one group with an empty prefix where nothing is shared.
        cu_seqlens: int32 [rows + 1] on the device: index of each row's first token, and the number of tokens; None
            where rows share a prefix, which only attention on a CPU can compute.
    """

    groups: tuple[PrefixGroup, ...]
    cu_seqlens: Tensor | None = None
    _layouts: dict[Heads, AttentionLayout] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def without_prefix(cls, lengths: Sequence[int], cu_seqlens: Tensor) -> Segments:
        """Describes rows that share nothing.

        Args:
            lengths: tokens of each row.
            cu_seqlens: as in the class.
        """
        return cls((PrefixGroup(0, tuple(lengths), 0),), cu_seqlens)

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest row, its prefix included."""
        return max(group.prefix_length + max(group.lengths) for group in self.groups)

    def attention_layout(self, heads: Heads) -> AttentionLayout:
        """Returns the layout for attention on a CPU; computed once and used by every layer of a pass."""
        if heads not in self._layouts:
            self._layouts[heads] = AttentionLayout(self.groups, heads)
        return self._layouts[heads]
