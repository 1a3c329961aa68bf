"""The modules that an adapter lies on: chosen in the language model alone, counted after PEFT has attached it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from trainer.errors import ErrorCode, JobError
from trainer.model_files.lora_targets import check_lora_names, leaf_counts, select
from trainer.model_files.tensor_listing import shorten
from trainer.spec import LoraSection

_FUSED_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "gate_up_proj": ("gate_proj", "up_proj", "w1", "w3"),
    "down_proj": ("down_proj", "w2"),
}
"""Parameter of fused experts → the names of the linear modules that it replaced, by which PEFT still knows it."""

_OF_PEFT: Final = re.compile(r"\.(lora_|modules_to_save\.|original_module)")


@dataclass(frozen=True)
class ModuleChoice:
    """The modules of an adapter, as arguments of PEFT's `LoraConfig`.

    Attributes:
        targets: modules that get an adapter.
        excluded: modules that do not; None where `targets` leaves them out.
        in_full: modules that are trained in full; None where there are none.
        tied: whether embedding and head are one matrix that is trained in full.
    """

    targets: str | list[str]
    excluded: list[str] | None
    in_full: list[str] | None
    tied: bool


@dataclass(frozen=True)
class Placement:
    """The modules that are trained.

    Attributes:
        adapted: modules and parameters with LoRA weights.
        in_full: modules that are trained in full.
        missed: linear modules and weights of experts that section `lora` asks for, and PEFT did not reach.
    """

    adapted: frozenset[str]
    in_full: frozenset[str]
    missed: frozenset[str]

    def warnings(self) -> tuple[str, ...]:
        """Returns what the provider should know: which modules the adapter does not reach."""
        if not self.missed:
            return ()
        names = ", ".join(f"{name} ({count})" for name, count in leaf_counts(self.missed).items())
        return (f"lora.lora_target_modules does not reach {names}: nothing of that is trained",)

    def describe(self) -> dict[str, str]:
        """Returns what is trained, by the last parts of the modules' names, for report and model card."""
        described = {
            f"LoRA on {name}": f"{count} modules"
            for name, count in leaf_counts(self.adapted).items()
        }
        described |= dict.fromkeys(sorted(self.in_full), "trained in full")
        missed = leaf_counts(self.missed)
        return described | {
            f"no LoRA on {name}": f"{count} modules" for name, count in missed.items()
        }


def choose_modules(model: Any, lora: LoraSection) -> ModuleChoice:
    """Chooses the modules that section `lora` names, of the language model and its head.

    Args:
        model: causal language model of transformers, without an adapter.
        lora: the section.

    Raises:
        JobError: `MODEL_INVALID`: a name selects nothing, or a module is to be trained in two ways.
    """
    modules = {
        name: module for name, module in language_modules(model).items() if not is_router(module)
    }
    # The names that the linear modules of a model's experts had before transformers fused them.
    experts = frozenset(
        f"{parent}.{part}"
        for parent, _, leaf in (name.rpartition(".") for name in _expert_parameters(model))
        for part in _FUSED_PARTS.get(leaf, ())
    )
    check_lora_names(lora, modules.keys() | experts)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    in_full, excluded = select(lora.modules_to_save, modules), select(lora.exclude_modules, modules)
    if lora.lora_target_modules == "all-linear":
        wanted = {
            name for name, module in modules.items() if is_linear(module) and module is not head
        }
    else:
        wanted = set(select(lora.lora_target_modules, modules))
    wanted -= excluded | in_full
    outer = {name for name, module in modules.items() if module in (head, embedding)}
    tied = bool(in_full & outer) and head is not None and head.weight is embedding.weight
    if tied and wanted & outer:
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "embedding and head are one matrix, which would be trained in full and have an adapter",
            expected="both in modules_to_save or both in lora_target_modules",
            found=shorten(wanted & outer),
        )
    if experts:
        # PEFT translates names of experts, which are parameters and not modules: it must see the names as written.
        excluded |= {
            name
            for name, module in model.named_modules()
            if _has_matrix(module) and name not in modules
        }
        return ModuleChoice(
            _as_written(lora), sorted(excluded) or None, sorted(in_full) or None, tied
        )
    everywhere = [name for name, _ in model.named_modules()]
    if (
        lora.lora_target_modules != "all-linear"
        and select(lora.lora_target_modules, everywhere) == wanted
    ):
        return ModuleChoice(_as_written(lora), None, sorted(in_full) or None, tied)
    return ModuleChoice(sorted(wanted), None, sorted(in_full) or None, tied)


def _as_written(lora: LoraSection) -> str | list[str]:
    targets = lora.lora_target_modules
    return targets if isinstance(targets, str) else list(targets)


def language_modules(model: Any) -> dict[str, nn.Module]:
    """Returns the modules with a weight matrix in the language model and its head, by name.

    The parts of a model for images or sound get no gradient from text: an adapter on them would have no effect.
    """
    decoder = (
        model if model.config.get_text_config(decoder=True) is model.config else model.get_decoder()
    )
    inside = {*decoder.modules(), model.get_output_embeddings(), model.get_input_embeddings()}
    return {
        name: module
        for name, module in model.named_modules()
        if module in inside and _has_matrix(module)
    }


def _has_matrix(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")  # noqa: SLF001 -- its own, not that of a module that it wraps
    return weight is not None and weight.ndim > 1


def is_linear(module: nn.Module) -> bool:
    """Returns whether a module is linear: `nn.Linear`, a subclass of it, or the transposed form of GPT-2."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def is_router(module: nn.Module) -> bool:
    """Returns whether a linear module returns the choice of experts beside its product, which PEFT cannot wrap."""
    return isinstance(module, nn.Linear) and "Router" in type(module).__name__


def _expert_parameters(model: Any) -> list[str]:
    """Returns the names of fused weights of experts: [experts, outputs, inputs], or the last two exchanged."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and ".experts." in name
    ]


def read_placement(model: Any, lora: LoraSection) -> Placement:
    """Returns what is trained of a PEFT model."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415 -- after the choice of the engine
    from peft.utils.other import ModulesToSaveWrapper  # noqa: PLC0415

    base = model.get_base_model()
    adapted, in_full = set(), set()
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            # The wrapper of a parameter has the parameter's name; several on one module are nested.
            parameter = getattr(module, "parameter_name", None)
            own = name.replace(".base_layer", "")
            adapted.add(f"{own}.{parameter}" if parameter else own)
        elif isinstance(module, ModulesToSaveWrapper):
            in_full.add(name)
    missed = _wanted_names(base, lora) - adapted - in_full
    return Placement(frozenset(adapted), frozenset(in_full), frozenset(missed))


def _wanted_names(base: Any, lora: LoraSection) -> frozenset[str]:
    """Returns the linear modules that section `lora` asks for, and for `all-linear` the weights of experts."""
    head = base.get_output_embeddings()
    linear = {
        name
        for name, module in language_modules(base).items()
        if is_linear(module) and module is not head
    }
    # Inside a module that PEFT has wrapped, its base layer is the module itself, and the others are PEFT's.
    linear = {name.removesuffix(".base_layer") for name in linear if not _OF_PEFT.search(name)}
    if lora.lora_target_modules == "all-linear":
        linear |= {name.replace(".base_layer", "") for name in _expert_parameters(base)}
        return frozenset(linear) - select(lora.exclude_modules, linear)
    return select(lora.lora_target_modules, linear) - select(lora.exclude_modules, linear)


def check_placement(model: Any, lora: LoraSection) -> None:
    """Requires that each name in `lora_target_modules` has LoRA weights, and that there are any.

    Raises:
        JobError: `MODEL_INVALID`.
    """
    found = read_placement(model, lora)
    parts = {name.rpartition(".") for name in found.adapted}
    names = found.adapted | {
        f"{parent}.{part}" for parent, _, leaf in parts for part in _FUSED_PARTS.get(leaf, ())
    }
    targets = () if isinstance(lora.lora_target_modules, str) else lora.lora_target_modules
    if lost := [name for name in lora.exclude_modules if select([name], names)]:
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "PEFT cannot exclude the weights of experts",
            expected="lora.exclude_modules without them",
            found=shorten(lost),
            hint="name lora.lora_target_modules instead of all-linear",
        )
    if lost := [name for name in targets if not select([name], names)]:
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "PEFT puts no adapter on modules of a name in lora.lora_target_modules",
            expected="an adapter on each",
            found=f"none on {shorten(lost)}",
            hint="weights of experts that transformers has fused are parameters, not modules",
        )
    if not found.adapted:
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the adapter does not fit the base model",
            expected="linear modules in its language model",
            found="none",
        )
