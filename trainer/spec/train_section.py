"""Section `train`: the engine and the optimizer's schedule."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from trainer.models import MAX_TOTAL_STEPS, Strict
from trainer.sandbox.plan import MAX_PROCESSES
from trainer.spec.training_methods import METHOD_RULES, MethodName


class Engine(StrEnum):
    """What loads the base model and attaches the adapter."""

    TRANSFORMERS = "transformers"
    UNSLOTH = "unsloth"


_SCHEDULE_KEYS: Final[Mapping[str, frozenset[str]]] = {
    "cosine_with_restarts": frozenset({"num_cycles"}),
    "cosine_with_min_lr": frozenset({"num_cycles", "min_lr", "min_lr_rate"}),
    "polynomial": frozenset({"lr_end", "power"}),
    "inverse_sqrt": frozenset({"timescale"}),
    "warmup_stable_decay": frozenset(
        {"num_decay_steps", "num_stable_steps", "min_lr_ratio", "num_cycles"}
    ),
}
"""Keys that `lr_scheduler_kwargs` may have, by schedule; the other schedules take none (transformers' names)."""

_STEP_COUNTS: Final = frozenset({"timescale", "num_decay_steps", "num_stable_steps"})
"""Keys of `lr_scheduler_kwargs` that count optimizer steps."""

ADAM_OPTIMIZERS: Final = ("adamw_torch", "adamw_torch_fused", "adamw_8bit")
"""Values of `train.optim` with the moments of Adam."""


LossType = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "robust",
    "sigmoid_norm",
    "nca_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "sft",
]
"""Terms of the loss of a pair, in TRL's names; `trainer.training.methods.dpo_loss` has the formulas."""

LossWeight = Annotated[float, Field(gt=0, le=1000)]


class TrainSection(Strict):
    """The optimizer's schedule, in HF `TrainingArguments` terms. `max_steps` above 0 overrides the epochs.

    `method` `sft` minimises the cross-entropy of the trained tokens. `dpo` trains on preference rows with the base
    model as reference, and takes TRL's `beta`, `loss_type` (one term, or a list whose sum is weighted by
    `loss_weights`) and `label_smoothing` (for `robust`: the probability that a label is wrong). `orpo` trains on
    preference rows without a reference; its `beta` weights the preference term against the loss of the chosen
    answer. For `dpo` and `orpo` a "row" below is a pair. `kto` trains on single answers with a label, with the
    base model as reference; `desirable_weight` and `undesirable_weight` multiply the losses of answers whose label
    is true and false, and `beta` is the strength of the pull to the reference.

    An optimizer step has `per_device_train_batch_size` * `gradient_accumulation_steps` * `num_processes` rows.
    Micro-batches may divide them differently: every trained token of a step has the same weight in any division.
    With `loraplus_lr_ratio` the learning rate of the adapter's matrices B is `learning_rate` times this ratio
    (LoRA+); everything else, the matrices A among it, has `learning_rate`.
    `warmup_steps` above 0 overrides `warmup_ratio`. Without `save_steps` the job writes a checkpoint on SIGTERM
    only; `save_total_limit` is the number of checkpoints that are retained. `max_eval_rows` limits every
    evaluation, those before and after training too, to that many held-out rows, drawn once by `seed`.

    `num_processes` is the number of processes that train one model in the VM, each on its own GPU and with a
    complete copy of the base model; `auto` is one for each GPU, so the batch size depends on the machine.
    `fsdp: full_shard` distributes the base model's layers over the processes instead; each process gathers a layer
    before it uses it.

    `torch_compile` compiles the model's own forward pass at run time in the mode `torch_compile_mode`:
    `reduce-overhead` and `max-autotune` replay CUDA graphs on a GPU. `max-autotune` chooses kernels by their
    measured time, so two runs may differ bitwise.
    """

    method: MethodName = "sft"
    engine: Engine = Engine.TRANSFORMERS
    num_processes: Literal["auto"] | Annotated[int, Field(ge=1, le=MAX_PROCESSES)] = 1
    fsdp: Literal["full_shard"] | None = None
    per_device_train_batch_size: Annotated[int, Field(ge=1, le=4096)] = 4
    per_device_eval_batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=4096)] = 1
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    loraplus_lr_ratio: Annotated[float, Field(gt=1, le=1000)] | None = None
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "constant",
        "constant_with_warmup",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = "linear"
    lr_scheduler_kwargs: Annotated[
        dict[str, Annotated[float, Field(ge=0)]], Field(max_length=8)
    ] = {}  # noqa: RUF012
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_TOTAL_STEPS)] = 0
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    num_train_epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0
    max_steps: Annotated[int, Field(ge=-1, le=MAX_TOTAL_STEPS)] = -1
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    beta: Annotated[float, Field(gt=0, le=100)] = 0.1
    desirable_weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    undesirable_weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    loss_type: LossType | Annotated[tuple[LossType, ...], Field(min_length=1, max_length=8)] = (
        "sigmoid"
    )
    loss_weights: Annotated[tuple[LossWeight, ...], Field(min_length=1, max_length=8)] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    neftune_noise_alpha: Annotated[float, Field(gt=0, le=1000)] | None = None
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "adafactor", "sgd"] = (
        "adamw_torch"
    )
    bf16: bool = True
    logging_steps: Annotated[int, Field(ge=1)] = 1
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    max_eval_rows: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    early_stopping_threshold: Annotated[float, Field(ge=0)] = 0.0
    load_best_model_at_end: bool = False
    save_steps: Annotated[int, Field(ge=1)] | None = None
    save_total_limit: Annotated[int, Field(ge=1, le=100)] = 2

    @property
    def may_compile(self) -> bool:
        """Whether kernels may be compiled at run time, so that the worker must be able to run a compiler."""
        return self.engine is Engine.UNSLOTH or self.torch_compile

    @property
    def loss_terms(self) -> tuple[tuple[LossType, float], ...]:
        """The terms of the loss of a pair, each with its weight; without `loss_weights` every weight is 1."""
        names: tuple[LossType, ...] = (
            self.loss_type if isinstance(self.loss_type, tuple) else (self.loss_type,)
        )
        return tuple(zip(names, self.loss_weights or (1.0,) * len(names), strict=True))

    @model_validator(mode="after")
    def _check_pair_loss(self) -> Self:
        if "loss_type" not in METHOD_RULES[self.method].keys:
            return self  # these keys mean nothing then
        names = self.loss_type if isinstance(self.loss_type, tuple) else (self.loss_type,)
        if len(set(names)) != len(names):
            raise ValueError("loss_type names a term twice")
        if set(names) == {"sft"}:
            raise ValueError(
                "loss_type sft alone learns no preference: use method sft, or add another term"
            )
        if self.loss_weights is not None and len(self.loss_weights) != len(names):
            raise ValueError(f"loss_weights needs {len(names)} numbers, one for each loss_type")
        if (self.label_smoothing > 0) != ("robust" in names):
            raise ValueError("label_smoothing above 0 and loss_type robust belong together")
        return self

    @model_validator(mode="after")
    def _check_execution(self) -> Self:
        if self.max_steps == 0:
            raise ValueError("max_steps must be -1 (use num_train_epochs) or at least 1")
        if self.num_processes != 1 and self.engine is Engine.UNSLOTH:
            raise ValueError("num_processes: engine unsloth runs in one process")
        if self.fsdp is not None and self.num_processes == 1:
            raise ValueError("fsdp needs num_processes: auto, or more than 1")
        if self.torch_compile and self.engine is Engine.UNSLOTH:
            raise ValueError("torch_compile: engine unsloth compiles its own kernels")
        if self.torch_compile and self.fsdp is not None:
            raise ValueError(
                "torch_compile: fsdp gathers layers within the pass that would be compiled"
            )
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        name, given = self.lr_scheduler_type, self.lr_scheduler_kwargs
        # Checked before the upload: in the job, transformers would end with a TypeError, or, for the two constant
        # schedules, ignore the key.
        unknown = sorted(set(given) - _SCHEDULE_KEYS.get(name, frozenset()))
        if unknown:
            raise ValueError(
                f"lr_scheduler_kwargs: {unknown[0]!r} means nothing to lr_scheduler_type {name}"
            )
        broken = sorted(key for key in _STEP_COUNTS & set(given) if given[key] != int(given[key]))
        if broken:
            raise ValueError(f"lr_scheduler_kwargs: {broken[0]} must be a whole number")
        if name == "cosine_with_min_lr" and ("min_lr" in given) == ("min_lr_rate" in given):
            raise ValueError("cosine_with_min_lr needs lr_scheduler_kwargs: min_lr or min_lr_rate")
        if name == "warmup_stable_decay" and "num_decay_steps" not in given:
            raise ValueError("warmup_stable_decay needs lr_scheduler_kwargs: num_decay_steps")
        lowest = {"min_lr": self.learning_rate, "min_lr_rate": 1.0, "min_lr_ratio": 1.0}
        above = sorted(key for key in lowest.keys() & given if given[key] >= lowest[key])
        if above:
            raise ValueError(f"lr_scheduler_kwargs: {above[0]} must be below {lowest[above[0]]:g}")
        if given.get("timescale") == 0:
            raise ValueError("lr_scheduler_kwargs: timescale must be at least 1")
        # 1e-7 is the default of lr_end in transformers, which requires that it is below the learning rate.
        if name == "polynomial" and given.get("lr_end", 1e-7) >= self.learning_rate:
            raise ValueError("lr_scheduler_kwargs: lr_end must be below learning_rate")
        return self
