"""Section `privacy`: limits on what the trained weights reveal about single rows.

Two independent parts: differentially private training (DP-SGD), and a memorisation audit of the trained adapter.
docs/privacy.md explains both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from trainer.models import Strict
from trainer.spec.training_methods import METHOD_RULES

if TYPE_CHECKING:
    from trainer.spec.job_spec import JobSpec

REFERENCES: Final = 1023
"""Number of canaries that are drawn but never trained on.

The exposure of a trained canary is log2(1024 / its rank among these and itself): at most 10 bits.
"""

GATE_OUTSIDERS: Final = 20
"""Fewest held-out rows with which `max_membership_auc` is judged: fewer say too little."""

_PRV_DELTA: Final = 1e-8
"""Smallest δ at which the accountant `prv` is used.

Its numerical integration loses what is below the precision of float64: below this δ it was seen to state an ε of
13.526 where 13.535 is true, and 46.80 for 47.05. Bounds by Rényi divergence (`rdp`) have no such limit.
"""

_CHOICE: Final = "must be left out: held-out rows would choose the weights, without noise"


class PrivacySection(Strict):
    """Limits on what the trained weights reveal about single rows.

    `target_epsilon` or `noise_multiplier` (one of them, with `target_delta`) makes training differentially private
    (DP-SGD): each step draws every row with the same probability, clips the gradient of each drawn row to the L2
    norm `max_grad_norm`, and adds Gaussian noise to the sum. The guarantee covers one row. `noise_multiplier` is
    the standard deviation of the noise divided by `max_grad_norm`; with `target_epsilon` the `accountant` computes
    it. Below a `target_delta` of 1e-8 the accountant must be `rdp`.

    `audit` compares the losses of up to `audit_rows` training rows with those of an equal number of held-out rows,
    before and after training. `canaries` is the number of random texts that are added to the training rows,
    `canary_repetitions` times each; their exposure is measured after training. The release gate withholds weights
    above `max_membership_auc` (0.5 to 1, for the upper end of the 95 % interval) or `max_exposure` (bits).
    """

    target_epsilon: Annotated[float, Field(ge=0.05, le=64)] | None = None
    target_delta: Annotated[float, Field(ge=1e-12, lt=0.1)] | None = None
    noise_multiplier: Annotated[float, Field(ge=0.3, le=1000)] | None = None
    max_grad_norm: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    accountant: Literal["prv", "rdp"] = "prv"
    audit: bool = False
    audit_rows: Annotated[int, Field(ge=8, le=65536)] = 256
    canaries: Annotated[int, Field(ge=0, le=256)] = 0
    canary_repetitions: Annotated[int, Field(ge=1, le=1024)] = 1
    max_exposure: Annotated[float, Field(gt=0, lt=10)] | None = None
    max_membership_auc: Annotated[float, Field(ge=0.5, lt=1)] | None = None

    @property
    def differential(self) -> bool:
        """Whether training is differentially private."""
        return self.target_epsilon is not None or self.noise_multiplier is not None

    @property
    def enabled(self) -> bool:
        """Whether the section enables private training, the audit or canaries."""
        return self.differential or self.audit or self.canaries > 0

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        # ε follows from noise, sampling rate, steps and δ: giving both ε and the noise would overdetermine it.
        if self.target_epsilon is not None and self.noise_multiplier is not None:
            raise ValueError(
                "target_epsilon and noise_multiplier exclude each other: the one follows from the other"
            )
        if self.differential != (self.target_delta is not None):
            raise ValueError(
                "target_delta goes with target_epsilon or noise_multiplier, and they with it"
            )
        if (
            self.target_delta is not None
            and self.target_delta < _PRV_DELTA
            and self.accountant == "prv"
        ):
            raise ValueError(
                f"accountant must be rdp for a target_delta below {_PRV_DELTA:g}: there prv states an ε below the "
                "true one"
            )
        if self.max_membership_auc is not None and self.audit_rows < GATE_OUTSIDERS:
            raise ValueError(f"max_membership_auc needs audit_rows of at least {GATE_OUTSIDERS}")
        return self


def privacy_refusals(spec: JobSpec) -> Iterator[str]:
    """Yields one message for each key that is incompatible with section `privacy`.

    A key is incompatible if its effect cannot be measured per row, or if the reported ε would not hold with it.
    docs/privacy.md gives the reasons at length.
    """
    learns_from = METHOD_RULES[spec.train.method].learns_from
    if spec.privacy.enabled and learns_from == "pairs":
        yield (
            "privacy: rows are told apart by their loss, and pairs of train.method "
            f"{spec.train.method} have none of their own"
        )
    if spec.privacy.enabled and learns_from == "labels":
        yield (
            "privacy: rows are told apart by their gradient, and with train.method "
            f"{spec.train.method} each depends on all rows of its step"
        )
    if spec.privacy.enabled and spec.train.num_processes != 1:
        yield "privacy: rows are drawn and measured in one process: train.num_processes must be 1"
    if spec.privacy.enabled and spec.data.mix:
        yield "privacy: data.mix must be left out: a row that is used twice reveals itself twice"
    if spec.privacy.enabled and spec.lora.start_from is not None:
        yield (
            "privacy: lora.start_from must be left out: what the earlier adapter has learned of rows is neither "
            "measured nor accounted for"
        )
    if spec.privacy.differential:
        set_by = "(privacy.target_epsilon or noise_multiplier is set)"
        yield from (
            f"{where}: {why} {set_by}" for where, why, breaks in _dp_conditions(spec) if breaks
        )


def _dp_conditions(spec: JobSpec) -> Iterator[tuple[str, str, bool]]:
    """Yields key, requirement with its reason, and whether the spec violates it, for a DP-SGD run."""
    # Every condition protects one of three premises of the privacy proof: the gradient of each row is available
    # and bounded, rows are sampled independently, and nothing but the noised sum depends on the rows.
    model, lora, data, train = spec.model, spec.lora, spec.data, spec.train
    yield (
        "train.engine",
        "must be transformers: other engines make no gradient for each row",
        (train.engine.value != "transformers"),
    )
    yield "data.packing", "must be false: a unit of the sampling must be one row", data.packing
    yield (
        "data.split_turns",
        "must be never: one row must give one example",
        data.split_turns.value != "never",
    )
    yield (
        "train.gradient_checkpointing",
        "must be false: rows would be counted twice",
        train.gradient_checkpointing,
    )
    yield (
        "train.torch_compile",
        "must be false: the gradient of each row is taken by hooks on layers, which compiled code does not call",
        train.torch_compile,
    )
    yield (
        "train.neftune_noise_alpha",
        "must be left out: its noise depends on a row's neighbours",
        (train.neftune_noise_alpha is not None),
    )
    yield (
        "lora.lora_dropout",
        "must be 0: its masks are drawn from the public seed",
        lora.lora_dropout > 0,
    )
    yield (
        "lora.use_dora",
        "must be false: its magnitudes get no gradient for each row",
        lora.use_dora,
    )
    yield (
        "lora.modules_to_save",
        "must be left out: not proved for modules in full",
        bool(lora.modules_to_save),
    )
    yield "model.load_in_4bit", "must be false: not proved for quantized models", model.load_in_4bit
    yield "model.load_in_8bit", "must be false: not proved for quantized models", model.load_in_8bit
    yield (
        "train.max_grad_norm",
        "must be left out: privacy.max_grad_norm bounds each row",
        ("max_grad_norm" in train.model_fields_set),
    )
    yield (
        "train.save_steps",
        "must be left out: randomness is never written down",
        train.save_steps is not None,
    )
    yield "train.early_stopping_patience", _CHOICE, train.early_stopping_patience is not None
    yield "train.load_best_model_at_end", _CHOICE, train.load_best_model_at_end
