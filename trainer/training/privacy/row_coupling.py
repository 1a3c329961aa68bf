"""Refuses models in which a row changes the gradients of other rows: the noise hides one row, not its neighbours.

ε holds if one row moves the sum of clipped gradients by at most C. A row that also changes what the model computes
for others moves it by more: with a rotary embedding that is rescaled by the longest row of a batch, one long row
was seen to move the sum by several times C. What is looked at:

1. The configuration: rotary embeddings whose frequencies depend on the longest sequence seen
   (`require_fixed_positions`), and quantized weights, whose activations may be scaled by the maximum of a batch
   (`require_float_weights`).
2. The model while it computes (`ModelState`): no buffer changes, and nothing is drawn from a random generator. A
   running mean, or a dropout mask from a public seed, carries a row into later rows.
3. Gradients of real rows in every cut of a batch (`trainer.training.privacy.per_example_gradients`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from trainer.errors import ErrorCode, JobError

_STATIC_ROPE: Final = frozenset({"default", "linear", "yarn", "llama3", "proportional"})
"""Kinds of rotary embeddings of transformers whose frequencies follow from the configuration alone."""

_RESCALED_ROPE: Final = frozenset({"dynamic", "longrope"})
"""Kinds that are rescaled when a sequence is longer than those of pretraining, for all rows of the batch."""

_ROPE_KEYS: Final = ("rope_parameters", "rope_scaling")
_LENGTH_KEYS: Final = ("max_position_embeddings", "original_max_position_embeddings")
_QUANTIZATION_KEYS: Final = ("quantization_config", "compression_config")

Config = Mapping[str, Any]


def unproven(
    message: str,
    *,
    expected: object,
    found: object,
    hint: str = "choose other lora.lora_target_modules, or another base model",
) -> JobError:
    """Returns the error for a run whose privacy guarantee cannot be established."""
    return JobError(
        ErrorCode.PRIVACY_UNPROVEN,
        message,
        expected=expected,
        found=found,
        hint=f"{hint}; see docs/privacy.md",
    )


def require_float_weights(config: Config) -> None:
    """Checks that a model's configuration, as config.json holds it, names no quantization; nested ones too.

    Raises:
        JobError: `PRIVACY_UNPROVEN`.
    """
    for nested in _mappings(config):
        for key in _QUANTIZATION_KEYS:
            if nested.get(key) is not None:
                raise unproven(
                    "the base model is quantized: its products may be scaled by the largest value of a batch",
                    expected=f"no {key} in config.json",
                    found=key,
                    hint="choose the base model that it was quantized from",
                )


def require_fixed_positions(config: Config, max_length: int) -> None:
    """Checks that a loaded model's configuration rescales no rotary embedding; nested ones too.

    Args:
        config: the configuration as transformers completed it.
        max_length: largest number of tokens of a row (`data.max_length`).

    Raises:
        JobError: `PRIVACY_UNPROVEN`.
    """
    for nested in _mappings(config):
        for key in _ROPE_KEYS:
            # One rotary embedding for all layers, or one for each layer or type of layer.
            for rope in _mappings(nested.get(key)):
                if "rope_type" in rope or "type" in rope:
                    _require_fixed_frequencies(nested, rope, max_length)


def _mappings(found: object) -> Iterator[Config]:
    """Yields every mapping in a part of a configuration, itself included; in lists too."""
    if isinstance(found, Mapping):
        yield found
        found = list(found.values())
    if isinstance(found, list | tuple):
        for value in found:
            yield from _mappings(value)


def _require_fixed_frequencies(config: Config, rope: Config, max_length: int) -> None:
    kind = str(rope.get("rope_type", rope.get("type")))
    if kind in _STATIC_ROPE:
        return
    # The smallest of the lengths that are named: `dynamic` is rescaled beyond one, `longrope` beyond the other.
    named = [place.get(key) for place in (config, rope) for key in _LENGTH_KEYS]
    lengths = [length for length in named if isinstance(length, int)]
    if kind in _RESCALED_ROPE and lengths and max_length <= min(lengths):
        return
    raise unproven(
        "one long row changes what the model computes for the others: its rotary embedding is rescaled",
        expected=f"rope_type {', '.join(sorted(_STATIC_ROPE))}, or data.max_length within the original length",
        found=f"{kind} from {min(lengths, default='an unknown number of')} tokens, data.max_length {max_length}",
        hint="lower data.max_length, or choose another base model",
    )


class ModelState:
    """What may carry one row into the computation of another: buffers, and the states of random generators.

    Args:
        model: the model, as it is before the first row.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}

    def random(self) -> tuple[Tensor, ...]:
        """Returns the states of torch's generators."""
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return (torch.get_rng_state(), *gpus)

    def require_undrawn(self, before: tuple[Tensor, ...]) -> None:
        """Checks that nothing was drawn since `random` returned `before`.

        Raises:
            JobError: `PRIVACY_UNPROVEN`: the model has dropout or noise of its own.
        """
        if not all(map(torch.equal, before, self.random())):
            raise unproven(
                "the model draws random numbers while it computes: a row would shift those of all later rows",
                expected="no dropout and no noise in the base model",
                found="a generator that moved",
                hint="choose a base model whose config.json has no dropout",
            )

    def require_unchanged(self) -> None:
        """Checks that no buffer has changed since this object was made.

        Raises:
            JobError: `PRIVACY_UNPROVEN`: names the first buffer that did.
        """
        now = dict(self._model.named_buffers())
        for name in sorted(self._buffers.keys() | now.keys()):
            old, new = self._buffers.get(name), now.get(name)
            if old is None or new is None or not torch.equal(old, new):
                raise unproven(
                    "the model keeps something of the rows that it computed",
                    expected="buffers that do not change",
                    found=name,
                    hint="choose another base model",
                )
