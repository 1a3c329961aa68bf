"""The tensors of an adapter that training starts from: do their names and shapes agree with section `lora`?

PEFT names them `base_model.model.MODULE.lora_A.weight` (A: [rank, inputs]) and `….lora_B.weight` (B: [outputs,
rank]), `lora_embedding_A` and `lora_embedding_B` on an embedding, `….lora_magnitude_vector` for DoRA's magnitudes,
and `base_model.model.MODULE.weight` for a module that is trained in full. Weights of experts are parameters and no
modules; which of them there are, the worker compares with the model itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from trainer.data.rows.file_roles import layout_error
from trainer.errors import DataError
from trainer.model_files.completeness import text_config
from trainer.model_files.known_layers import LAYER_MODULES
from trainer.model_files.lora_targets import language_modules, select
from trainer.model_files.model_check import ModelFiles
from trainer.model_files.safetensors_header import TensorEntry
from trainer.model_files.tensor_listing import Shape, TensorListing, shorten
from trainer.spec import LoraSection

WEIGHTS_FILE: Final = "adapter/adapter_model.safetensors"

ELEMENT_BYTES: Final[Mapping[str, int]] = {"F32": 4, "BF16": 2, "F16": 2}
"""Types of numbers that an adapter may have → bytes of one."""

_NAME: Final = re.compile(
    r"base_model\.model\.(?P<module>[\w.]{1,512}?)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|weight|bias)"
)
_PAIRS: Final = ({"lora_A.weight", "lora_B.weight"}, {"lora_embedding_A", "lora_embedding_B"})
_MAGNITUDE: Final = "lora_magnitude_vector"
_OUTER: Final = ("embed_tokens", "lm_head")


@dataclass
class _AdapterModules:
    """Module → part → shape, for modules with an adapter, for weights of experts, and for modules in full."""

    adapted: dict[str, dict[str, Shape]] = field(default_factory=dict)
    experts: dict[str, dict[str, Shape]] = field(default_factory=dict)
    in_full: dict[str, dict[str, Shape]] = field(default_factory=dict)


def check_adapter_tensors(
    tensors: Mapping[str, TensorEntry], lora: LoraSection, base: ModelFiles | None
) -> None:
    """Requires the tensors of an adapter that section `lora` makes.

    Args:
        tensors: name → what the file's header says.
        lora: the section.
        base: the base model's files; None where they are not known, and modules and shapes are then compared with
            the section alone.

    Raises:
        DataError: `DATASET_INVALID`: names the tensor or module.
    """
    modules = _group_by_module(tensors)
    for module, parts in (modules.adapted | modules.experts).items():
        _require_pair(module, parts, lora)
    for module, parts in modules.adapted.items():
        rank = parts[min(parts.keys() - {_MAGNITUDE})][0]
        if rank != lora.lora_r:
            what = f"the rank of module {module}"
            raise tensor_error(what, f"{lora.lora_r} (lora.lora_r)", str(rank))
    _require_selected(modules, lora)
    listing = base.tensors if base is not None and _is_known(base) else None
    if listing is not None and not modules.experts:
        _require_same_modules(modules, lora, listing)


def tensor_error(reason: str, expected: str, found: str, hint: str | None = None) -> DataError:
    """Returns the error for a file of weights that is not the start adapter's."""
    return layout_error(WEIGHTS_FILE, reason, expected=expected, found=found, hint=hint)


def _group_by_module(tensors: Mapping[str, TensorEntry]) -> _AdapterModules:
    modules = _AdapterModules()
    for name, entry in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            shown = name if re.fullmatch(r"[\w.]{1,256}", name) else "a tensor of an unusual name"
            raise tensor_error(
                "it has a tensor that no adapter has", "names as PEFT gives them", shown
            )
        width = ELEMENT_BYTES.get(entry.dtype)
        count = 1
        for size in entry.shape:
            count *= max(size, 0)
        if width is None or entry.end - entry.begin != count * width or not count:
            found = f"{name}: {entry.dtype} {list(entry.shape)} in {entry.end - entry.begin} bytes"
            raise tensor_error(
                "a tensor cannot be read", f"{', '.join(ELEMENT_BYTES)} of its shape", found
            )
        module, part = match["module"], match["part"]
        if part in ("weight", "bias"):
            modules.in_full.setdefault(module, {})[part] = entry.shape
        elif ".experts" in f".{module}":
            modules.experts.setdefault(module, {})[part] = entry.shape
        else:
            modules.adapted.setdefault(module, {})[part] = entry.shape
    return modules


def _require_pair(module: str, parts: Mapping[str, Shape], lora: LoraSection) -> None:
    """Requires A and B of one inner dimension, and DoRA's magnitudes where section `lora` has them."""
    magnitude = {_MAGNITUDE} if lora.use_dora else set()
    if not any(parts.keys() == pair | magnitude for pair in _PAIRS):
        raise tensor_error(
            f"module {module} has other parts than section lora makes",
            "lora_A and lora_B" + (f" and {_MAGNITUDE}" if lora.use_dora else ""),
            ", ".join(sorted(parts)),
        )
    first, second = (parts[name] for name in sorted(parts.keys() - {_MAGNITUDE}))
    if len(first) != 2 or len(second) != 2 or first[0] != second[1]:
        raise tensor_error(
            f"the matrices of module {module} do not fit together",
            "A [rank, inputs] and B [outputs, rank]",
            f"{list(first)} and {list(second)}",
        )


def _require_selected(modules: _AdapterModules, lora: LoraSection) -> None:
    """Requires that section `lora` selects the modules, and that each of its names selects one of them."""
    adapted, in_full = modules.adapted.keys(), modules.in_full.keys()
    if not adapted and not modules.experts:
        raise tensor_error("the start adapter adapts nothing", "a lora_A and a lora_B", "none")
    wanted = (
        adapted
        if isinstance(lora.lora_target_modules, str)
        else select(lora.lora_target_modules, adapted)
    )
    # Names of experts' projections select parameters that have other names in the file.
    further = (set() if modules.experts else adapted - wanted) | select(
        lora.exclude_modules, adapted
    )
    wanted_in_full = select(lora.modules_to_save, in_full)
    if any(name.rpartition(".")[2] in _OUTER for name in wanted_in_full):
        # Where embedding and head are one matrix, PEFT saves it under both names.
        wanted_in_full |= {name for name in in_full if name.rpartition(".")[2] in _OUTER}
    further |= in_full - wanted_in_full
    if further:
        raise _other_modules(f"also {shorten(further)}")
    targets = (
        ()
        if isinstance(lora.lora_target_modules, str) or modules.experts
        else lora.lora_target_modules
    )
    lost = {name for name in targets if not select([name], adapted)}
    lost |= {name for name in lora.modules_to_save if not select([name], in_full)}
    if lost:
        raise _other_modules(f"no {shorten(lost)}")


def _is_known(base: ModelFiles) -> bool:
    """Returns whether the names of the base model's tensors are those of its modules, in known shapes."""
    shapes = base.tensors.shapes if base.tensors is not None else {}
    return (
        text_config(base.config).get("model_type") in LAYER_MODULES
        and "model.embed_tokens.weight" in shapes
        and None not in shapes.values()
    )


def _require_same_modules(
    modules: _AdapterModules, lora: LoraSection, listing: TensorListing
) -> None:
    """Requires an adapter on exactly the base model's modules that section `lora` selects, in their shapes."""
    known = language_modules(listing)
    if isinstance(lora.lora_target_modules, str):
        wanted = {name for name in known if name.rpartition(".")[2] not in _OUTER}
    else:
        wanted = set(select(lora.lora_target_modules, known))
    wanted -= select(lora.exclude_modules, known) | select(lora.modules_to_save, known)
    if absent := wanted - modules.adapted.keys():
        raise _other_modules(f"no {shorten(absent)}")
    if further := (modules.adapted.keys() - wanted) | (modules.in_full.keys() - known):
        raise _other_modules(f"also {shorten(further)}")
    for module, parts in modules.adapted.items():
        first, second = (parts[name] for name in sorted(parts.keys() - {_MAGNITUDE}))
        _require_shape(module, (second[0], first[1]), _weight_shape(module, parts, listing))
    for module, parts in modules.in_full.items():
        _require_shape(module, parts.get("weight"), _weight_shape(module, parts, listing))


def _weight_shape(module: str, parts: Collection[str], listing: TensorListing) -> Shape | None:
    """Returns [outputs, inputs] of a module; of an embedding with an adapter the other way round."""
    # A tied head has no tensor of its own.
    name = (
        f"{module}.weight" if f"{module}.weight" in listing.shapes else "model.embed_tokens.weight"
    )
    shape = listing.shapes[name]
    return shape[::-1] if shape is not None and "lora_embedding_A" in parts else shape


def _require_shape(module: str, found: Shape | None, expected: Shape | None) -> None:
    if found != expected:
        raise tensor_error(
            f"the start adapter does not fit module {module} of the base model",
            str(expected),
            str(found),
        )


def _other_modules(found: str) -> DataError:
    return tensor_error(
        "the start adapter lies on other modules than section lora selects",
        "those of lora_target_modules, exclude_modules and modules_to_save",
        found,
    )
