"""Dimensions of a language model from its config.json, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
_FEED_FORWARD: Final = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Architecture:
    """Dimensions of a decoder with rotary positions, RMS norms, grouped attention and gated feed-forward layers.

    Attributes:
        vocabulary: number of rows of the embedding.
        hidden: width of the residual stream.
        intermediate: width inside the feed-forward layers.
        layers: number of layers.
        heads: number of attention heads.
        key_value_heads: number of heads of keys and values.
        head: width of a head.
        tied: whether the output layer is the embedding.
    """

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head: int
    tied: bool

    @property
    def linears(self) -> Mapping[str, tuple[int, int]]:
        """Linear modules of one layer: name → (input features, output features)."""
        queries, keys = self.heads * self.head, self.key_value_heads * self.head
        outputs = (
            queries,
            keys,
            keys,
            self.hidden,
            self.intermediate,
            self.intermediate,
            self.hidden,
        )
        inputs = (
            self.hidden,
            self.hidden,
            self.hidden,
            queries,
            self.hidden,
            self.hidden,
            self.intermediate,
        )
        return dict(zip(ATTENTION + _FEED_FORWARD, zip(inputs, outputs, strict=True), strict=True))

    @property
    def linear_parameters(self) -> int:
        """Number of parameters of the linear modules in all layers; quantisation applies to these."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def other_parameters(self) -> int:
        """Number of parameters of embedding, output layer and norms; biases are few and not counted."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + (2 * self.layers + 1) * self.hidden


def architecture_of(config: Mapping[str, Any]) -> Architecture | None:
    """Returns the dimensions in a configuration; None if it describes another architecture."""
    # Models with several modalities have the dimensions of their language model in `text_config`. A mixture of
    # experts has several feed-forward networks in a layer, which the formulas here do not count.
    text = config.get("text_config", config)
    if not isinstance(text, dict) or any(
        name in text for name in ("num_experts", "num_local_experts")
    ):
        return None
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
    values = [value for name in names if isinstance(value := text.get(name), int) and value > 0]
    if len(values) != len(names):
        return None
    vocabulary, hidden, intermediate, layers, heads = values
    return Architecture(
        vocabulary=vocabulary,
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        # The defaults of transformers: a key and value head for each head, and hidden / heads for a head's width.
        key_value_heads=text.get("num_key_value_heads") or heads,
        head=text.get("head_dim") or hidden // heads,
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
    )
