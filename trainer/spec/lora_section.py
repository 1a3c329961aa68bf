"""Section `lora`: the adapter."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.models import NO_NUMBER, Strict

_ModuleName = Annotated[str, Field(pattern=r"^[\w.]{1,128}$")]


class StartFrom(StrEnum):
    """What training starts from instead of a fresh adapter: `adapter/` in the provider's bundle."""

    ADAPTER = "adapter"
    ADAPTER_OF_UNCHECKED_BASE = "adapter_of_unchecked_base"


class LoraSection(Strict):
    """The adapter, in PEFT's terms.

    `init_lora_weights` selects the initial values of A and B. `pissa` (or `pissa_niter_16`, which is faster) and
    `olora` compute them from the base model's weights and change those; the result is converted to a plain adapter
    for the unchanged base model.

    A name of a module is its full name, or the end of it after a dot. `exclude_modules` takes modules out of
    `lora_target_modules`. `modules_to_save` names modules that are trained in full and saved with the adapter,
    such as `embed_tokens` for the embeddings of new tokens.

    `start_from: adapter` starts from the adapter that the provider sends below `adapter/`, and not from a fresh
    one. It must be one of this section and of this base model, which its file's metadata name by
    `ModelSection.base_sha256`. `adapter_of_unchecked_base` also takes one that names no base model.
    """

    lora_r: Annotated[int, Field(ge=1, le=1024)] = 16
    lora_alpha: Annotated[int, Field(ge=1, le=4096)] = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lora_target_modules: (
        Literal["all-linear"] | Annotated[tuple[_ModuleName, ...], Field(min_length=1)]
    ) = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False
    exclude_modules: Annotated[tuple[_ModuleName, ...], Field(max_length=64)] = ()
    modules_to_save: Annotated[tuple[_ModuleName, ...], Field(max_length=64)] = ()
    init_lora_weights: (
        Annotated[Literal[True, "gaussian", "orthogonal", "olora", "pissa"], NO_NUMBER]
        | Annotated[str, Field(pattern=r"^pissa_niter_[1-9][0-9]?$")]
    ) = True
    start_from: StartFrom | None = None

    @model_validator(mode="after")
    def _check_initialisation(self) -> Self:
        if self.changes_base and self.use_dora:
            raise ValueError(
                f"init_lora_weights {self.init_lora_weights} and use_dora exclude each other"
            )
        if self.changes_base and self.use_rslora:
            raise ValueError(
                f"init_lora_weights {self.init_lora_weights} and use_rslora exclude each other"
            )
        # PEFT makes A of every second row of an orthogonal r x r matrix, and B of the rows between.
        if self.init_lora_weights == "orthogonal" and self.lora_r % 2:
            raise ValueError("init_lora_weights orthogonal needs an even lora_r")
        return self

    @model_validator(mode="after")
    def _check_modules(self) -> Self:
        for key in ("exclude_modules", "modules_to_save"):
            names = getattr(self, key)
            if len(set(names)) != len(names):
                raise ValueError(f"{key} names a module twice")
        # PEFT subtracts the initial adapter from the result, and does not do so for modules trained in full.
        if self.changes_base and self.modules_to_save:
            raise ValueError(
                f"init_lora_weights {self.init_lora_weights} and modules_to_save exclude each other"
            )
        return self

    @property
    def selects_modules(self) -> bool:
        """Whether more is asked for than adapters on the linear modules of layers."""
        names = () if isinstance(self.lora_target_modules, str) else self.lora_target_modules
        outer = any(name.rpartition(".")[2] in ("embed_tokens", "lm_head") for name in names)
        return outer or bool(self.exclude_modules or self.modules_to_save)

    @property
    def starts_as_base(self) -> bool:
        """Whether the initial adapter leaves every output bitwise unchanged: B is zero, no rescaling."""
        return (
            self.init_lora_weights in (True, "gaussian")
            and not self.use_dora
            and self.start_from is None
        )

    @property
    def is_fresh_on_base(self) -> bool:
        """Whether the model that training starts from is the one without its adapter."""
        return self.start_from is None and not self.changes_base

    @property
    def changes_base(self) -> bool:
        """Whether the initialisation changes the base weights, so that the result must be converted."""
        return str(self.init_lora_weights).startswith(("pissa", "olora"))
