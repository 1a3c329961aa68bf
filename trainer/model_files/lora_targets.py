"""Which modules of a base model the names in section `lora` select: one judgement for `validate` and the worker.

A name selects a module as in PEFT: by the module's full name, or by its end after a dot. A name that selects
nothing is refused: the adapter would lie on less than was asked for, and training would succeed all the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from trainer.errors import ErrorCode, JobError
from trainer.model_files.completeness import is_in_tower
from trainer.model_files.tensor_listing import TensorListing, shorten
from trainer.spec import LoraSection

_EXPERT: Final = re.compile(r"\.experts\.\d+\.")


def selected_modules(name: str, modules: Iterable[str]) -> frozenset[str]:
    """Returns the modules that a name in section `lora` selects."""
    return frozenset(module for module in modules if module == name or module.endswith(f".{name}"))


def check_lora_names(lora: LoraSection, modules: Collection[str]) -> dict[str, int]:
    """Requires that every name in section `lora` selects a module, and no module is trained in two ways.

    Args:
        lora: the section.
        modules: names of the base model's modules that can have an adapter.

    Returns:
        Each name → how many modules it selects; nothing for `all-linear`.

    Raises:
        JobError: `MODEL_INVALID`: lists the names that select nothing, each with its key.
    """
    counts = {
        name: len(selected_modules(name, modules))
        for names in _written(lora).values()
        for name in names
    }
    if lost := _unmatched(lora, modules):
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the base model has no module of a name in section lora",
            expected=f"names such as {describe_leaves(modules)}",
            found=shorten(lost),
            hint="use the base model's own names of modules, or lora_target_modules: all-linear",
        )
    in_full, targets = select(lora.modules_to_save, modules), _written(lora)["lora_target_modules"]
    if both := in_full & (select(targets, modules) - select(lora.exclude_modules, modules)):
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "a module would be trained in full and have an adapter",
            expected="each module in modules_to_save or in lora_target_modules",
            found=shorten(both),
        )
    return counts


def _written(lora: LoraSection) -> Mapping[str, tuple[str, ...]]:
    """Returns the keys of section `lora` that name modules, and their names; none for `all-linear`."""
    targets = () if isinstance(lora.lora_target_modules, str) else lora.lora_target_modules
    return {
        "lora_target_modules": targets,
        "exclude_modules": lora.exclude_modules,
        "modules_to_save": lora.modules_to_save,
    }


def _unmatched(lora: LoraSection, modules: Collection[str]) -> list[str]:
    """Returns the names in section `lora` that select nothing, each with its key."""
    return [
        f"lora.{key} {name}"
        for key, names in _written(lora).items()
        for name in names
        if not selected_modules(name, modules)
    ]


def count_targets(lora: LoraSection, listing: TensorListing) -> dict[str, int]:
    """Returns each name in `lora.lora_target_modules` → how many modules it selects; nothing for `all-linear`."""
    modules = language_modules(listing)
    return {
        name: len(selected_modules(name, modules)) for name in _written(lora)["lora_target_modules"]
    }


def select(names: Iterable[str], modules: Collection[str]) -> frozenset[str]:
    """Returns the modules that any of the names selects."""
    return frozenset().union(*(selected_modules(name, modules) for name in names))


def describe_leaves(modules: Iterable[str]) -> str:
    """Returns the last parts of modules' names with their counts, the most frequent first, at most twelve."""
    leaves = Counter(module.rpartition(".")[2] for module in modules)
    return ", ".join(f"{leaf} ({count})" for leaf, count in leaves.most_common(12))


def language_modules(listing: TensorListing) -> frozenset[str]:
    """Returns the modules that can have an adapter, by the names of the base model's tensors.

    Parts for images and sound are left out. The experts of a layer count as one module. A head that shares the
    embedding's matrix has no tensor of its own.
    """
    modules = frozenset(
        _EXPERT.sub(".experts.", name) for name in listing.modules if not is_in_tower(name)
    )
    return modules if any(_leaf(name) == "lm_head" for name in modules) else modules | {"lm_head"}


def placement_warnings(listing: TensorListing, lora: LoraSection) -> tuple[str, ...]:
    """Returns what the provider should know about the modules that the adapter lies on; quotes names only."""
    names = listing.shapes.keys()
    warnings = []
    if lost := _unmatched(lora, language_modules(listing)):
        warnings.append(
            f"no weights in the base model's files are called {shorten(lost)}; there are "
            f"{describe_leaves(language_modules(listing))}: the job refuses a name that selects no module"
        )
    if towers := {name for name in names if is_in_tower(name)}:
        warnings.append(
            f"the base model's parts for images or sound are not trained ({len(towers)} tensors)"
        )
    if any(".experts." in name for name in names):
        warnings.append(
            "the base model is a mixture of experts, whose weights are not linear modules: the report says which "
            "of them the adapter reaches"
        )
    return tuple(warnings)


def leaf_counts(modules: Iterable[str]) -> Mapping[str, int]:
    """Returns the last part of each module's name → how many modules have it, sorted by name."""
    return dict(sorted(Counter(_leaf(module) for module in modules).items()))


def _leaf(name: str) -> str:
    parts = name.split(".")
    # A parameter, such as `gate.weight`.
    return ".".join(parts[-2:] if parts[-1] == "weight" else parts[-1:])
