"""Where rows stand in a run of tokens without padding.

Rows that begin with the same tokens (a system prompt, a template) may share them: the beginning stands once in
front, every row sees it, and nothing in it depends on what follows. So sharing changes no number, it saves work.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from trainer.training.fused.attention_layout import Group, Heads, Layout


@dataclass(frozen=True)
class Segments:
    """Where rows begin and end in a run of tokens.

    Attributes:
        lengths: of each row, in order, without what is shared; on the host.
        bounds: int32 [rows + 1] on the device: where each row begins, and where the last one ends.
        shared: tokens in front that every row begins with.
        groups: where groups of neighbours share a beginning each: the groups, with the tokens that each takes up;
            then the rows above are the groups.
    """

    lengths: tuple[int, ...]
    bounds: Tensor
    shared: int = 0
    groups: tuple[tuple[slice, Segments], ...] = ()
    _layouts: dict[Heads, Layout] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def longest(self) -> int:
        """Tokens of the longest row, with what is shared."""
        if self.groups:
            return max(group.longest for _, group in self.groups)
        return self.shared + max(self.lengths)

    def layout(self, heads: Heads) -> Layout:
        """How attention on a CPU takes them; made once, since every layer of a pass asks for it."""
        if heads not in self._layouts:
            own = [Group(0, self.lengths, self.shared)]
            groups = [Group(place.start, group.lengths, group.shared) for place, group in self.groups]
            self._layouts[heads] = Layout(groups or own, heads)
        return self._layouts[heads]
