"""Whether a base model has the weights that its config.json promises, as far as this is known without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any, Final

from trainer.errors import ErrorCode, JobError
from trainer.model_files.architecture import ATTENTION, architecture_of
from trainer.model_files.known_layers import LAYER_MODULES
from trainer.model_files.tensor_listing import Shape, TensorListing, layer_numbers, shorten

_TOWER: Final = re.compile(r"(^|\.)(vision|visual|audio|image|speech|multi_modal|mm_)")
_HEAD_FROM_HIDDEN: Final = frozenset({"llama", "mistral", "qwen2", "smollm3", "granite"})
"""`model_type`s whose heads are hidden_size / num_attention_heads wide where config.json has no `head_dim`."""


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the configuration of the language model: a model with several modalities has it in `text_config`."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def is_in_tower(name: str) -> bool:
    """Returns whether a tensor or module belongs to a part for images or sound, by the names of transformers."""
    return _TOWER.search(name) is not None


def require_whole(config: Mapping[str, Any], listing: TensorListing) -> None:
    """Requires all layers, and of a known architecture all tensors, in their shapes.

    Raises:
        JobError: `MODEL_INVALID`: names what is missing, differs or is left over.
    """
    text = text_config(config)
    count = text.get("num_hidden_layers")
    if not isinstance(count, int) or count < 1:
        return  # the architecture has another name for it
    names = [name for name in listing.shapes if not is_in_tower(name)]
    wanted = set(range(count))
    stacks = layer_numbers(names)
    stack = max(stacks, key=lambda name: len(stacks[name] & wanted), default="layers")
    if absent := wanted - stacks.get(stack, set()):
        expected = f"num_hidden_layers {count}: layers 0 to {count - 1}"
        raise _incomplete(expected, f"no {shorten([f'{stack}.{number}' for number in absent])}")
    if modules := LAYER_MODULES.get(str(text.get("model_type"))):
        if further := stacks[stack] - wanted:
            found = f"{len(further)} more layers from {stack}.{min(further)} on"
            raise _incomplete(f"num_hidden_layers {count}", found)
        _require_tensors(
            config, listing, stack, [f"{number}.{name}" for number in wanted for name in modules]
        )


def _require_tensors(
    config: Mapping[str, Any], listing: TensorListing, stack: str, layer_modules: Iterable[str]
) -> None:
    """Requires the tensors of a known architecture whose layers are below `stack`, such as `model.layers`."""
    # `model.`, or nothing where the model was saved without its head.
    root = stack.removesuffix("layers")
    needed = {f"{stack}.{module}.weight" for module in layer_modules}
    absent = (needed | {f"{root}embed_tokens.weight", f"{root}norm.weight"}) - listing.shapes.keys()
    tied = text_config(config).get("tie_word_embeddings", config.get("tie_word_embeddings"))
    # Without the key the architecture's own default applies, which the worker knows.
    if tied is False and not any(name.endswith("lm_head.weight") for name in listing.shapes):
        absent.add("lm_head.weight (tie_word_embeddings is false)")
    if absent:
        raise _incomplete("every tensor of the architecture", f"no {shorten(absent)}")
    expected = dict(_known_shapes(config, stack))
    different = [
        f"{name} {list(shape)} for {list(expected[name])}"
        for name, shape in listing.shapes.items()
        if shape is not None and expected.get(name, shape) != shape
    ]
    if different:
        raise _incomplete("the shapes that config.json says", shorten(different))


def _known_shapes(config: Mapping[str, Any], stack: str) -> Iterator[tuple[str, Shape]]:
    """Yields name and shape of the embedding and of the linear modules, where config.json determines them."""
    text = text_config(config)
    architecture = architecture_of(config)
    if architecture is None:
        return
    yield (
        f"{stack.removesuffix('layers')}embed_tokens.weight",
        (architecture.vocabulary, architecture.hidden),
    )
    # Where one of these keys is left out, other defaults than those of `architecture_of` may apply.
    if "num_key_value_heads" not in text or not (
        "head_dim" in text or text.get("model_type") in _HEAD_FROM_HIDDEN
    ):
        return
    for number, (name, (inputs, outputs)) in product(
        range(architecture.layers), architecture.linears.items()
    ):
        part = "self_attn" if name in ATTENTION else "mlp"
        yield f"{stack}.{number}.{part}.{name}.weight", (outputs, inputs)


def _incomplete(expected: str, found: str) -> JobError:
    return JobError(
        ErrorCode.MODEL_INVALID,
        "the base model is not complete",
        expected=expected,
        found=found,
        hint="pin all files of one and the same model",
    )
