"""A row that changes what the model computes for other rows is hidden by no noise: such models are refused."""

from __future__ import annotations

import functools
import json
import math
import shutil
from array import array
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opacus", reason="the extra `privacy` is not installed")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.data.examples.example import Example
from trainer.data.rows import TextRow
from trainer.errors import ErrorCode, JobError
from trainer.spec import JobSpec, LoraSection, PrivacySection, TrainSection
from trainer.training.adapter import attach_adapter
from trainer.training.engines.base import Precision
from trainer.training.loss import CausalLoss
from trainer.training.privacy import private_step_policy, row_coupling
from trainer.training.privacy.accounting import new_accountant, spent
from trainer.training.privacy.private_step_policy import PrivateStepPolicy
from trainer.training.privacy.row_coupling import require_fixed_positions, require_float_weights
from trainer.training.run_inputs import RunInputs
from trainer.training.stages.prepare import prepare
from trainer.training.stages.run_context import RunContext
from trainer.training.stopwatch import Stopwatch
from trainer.training.token_store import TokenStore

ORIGINAL = 32
"""Tokens up to which the tiny models were trained; longer rows rescale some rotary embeddings."""

ROPE: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "longrope": {
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 4.0, 16.0, 64.0],
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}
NOISE = 1.0
PRIVACY = PrivacySection(noise_multiplier=NOISE, target_delta=1e-5)


def make_model(kind: str = "default", **config: Any) -> Any:
    torch.manual_seed(1)
    settings = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=ORIGINAL if kind == "dynamic" else 4 * ORIGINAL, initializer_range=0.3,
        rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **ROPE[kind]}, **config,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(settings)  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return attach_adapter(model, LoraSection(lora_r=2, init_lora_weights="gaussian"))


def row(length: int, seed: int) -> Example:
    ids = torch.randint(1, 64, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Example(array("i", ids), bytes([0, *[1] * (length - 1)]), stops=True)


ROWS = tuple(row(length, length) for length in (5, 6, 8, 11, 16, 22, 29, ORIGINAL))
LONG = row(4 * ORIGINAL, 99)


def make_policy(
    model: Any, rows: tuple[Example, ...], *, max_length: int, autocast: bool = False, size: int = 8
) -> PrivateStepPolicy:
    precision = Precision(torch.device("cpu"), torch.float32, autocast=autocast)
    loss = CausalLoss(model, precision, pad_id=0, longest=max_length, fused=False)
    section = TrainSection(per_device_train_batch_size=size, max_steps=1)
    return PrivateStepPolicy(model, loss, rows, section, PRIVACY, max_length=max_length)


def clipped_sum(
    policy: PrivateStepPolicy, store: TokenStore, rows: list[int], size: int
) -> torch.Tensor:
    """Returns the sum of a step with these rows, taken `size` at a time, at norms of 1 each."""
    total = torch.zeros(sum(parameter.numel() for parameter in policy.parameters))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        found = policy._row_gradients.of_each_row(store.reorder(part).batch(slice(0, len(part))))
        total += torch.nn.functional.normalize(found, dim=1).sum(0)
    return total


def largest_movement(
    policy: PrivateStepPolicy, rows: tuple[Example, ...], sizes: tuple[int, ...]
) -> float:
    """Returns how far leaving out one row moves the sum, at most, over cuts and rows; the bound is 1."""
    store = TokenStore(rows, policy.device)
    everything = list(range(len(rows)))
    moved = []
    for size in sizes:
        total = clipped_sum(policy, store, everything, size)
        for left_out in (0, len(rows) - 1):
            rest = [number for number in everything if number != left_out]
            moved.append(float((total - clipped_sum(policy, store, rest, size)).norm()))
    return max(moved)


@functools.cache
def claimed_epsilon() -> float:
    """Returns the ε of one step of `PRIVACY` that draws every row."""
    accountant = new_accountant("prv")
    accountant.history = [(NOISE, 1.0, 1)]
    return spent(accountant, 1e-5)


def attacked_epsilon(distance: float, delta: float) -> float:
    """Returns the ε that an attacker shows who sees the noised sum of one step moved by `distance` deviations.

    The Gaussian mechanism is exactly (ε, δ)-private where δ = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ) (Balle and Wang,
    arXiv:1805.06530, theorem 8).
    """

    def normal(value: float) -> float:
        return math.erfc(-value / math.sqrt(2)) / 2

    low, high = 0.0, 64.0
    for _ in range(60):
        epsilon = (low + high) / 2
        reached = normal(distance / 2 - epsilon / distance)
        if reached - math.exp(epsilon) * normal(-distance / 2 - epsilon / distance) > delta:
            low = epsilon
        else:
            high = epsilon
    return low


def refusal(model: Any, rows: tuple[Example, ...], **options: Any) -> JobError:
    with pytest.raises(JobError) as error:
        make_policy(model, rows, **options)
    assert error.value.code is ErrorCode.PRIVACY_UNPROVEN
    return error.value


@pytest.mark.parametrize("kind", ROPE)
def test_one_row_moves_the_sum_by_no_more_than_the_bound_in_every_accepted_model(kind: str) -> None:
    """Also of a model that rescales, where `data.max_length` keeps rows within the original length."""
    fixed = kind not in {"dynamic", "longrope"}
    rows = (*ROWS, LONG) if fixed else ROWS
    policy = make_policy(make_model(kind), rows, max_length=4 * ORIGINAL if fixed else ORIGINAL)
    moved = largest_movement(policy, rows, (1, 2, policy.micro_batch))
    assert moved <= 1.001
    assert attacked_epsilon(moved / NOISE, 1e-5) <= claimed_epsilon()


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_model_that_one_long_row_rescales_is_refused(kind: str) -> None:
    assert "rescaled" in str(refusal(make_model(kind), (*ROWS, LONG), max_length=4 * ORIGINAL))
    # By what the spec allows, not by what the rows happen to be: another dataset must not be treated otherwise.
    refusal(make_model(kind), ROWS, max_length=ORIGINAL + 1)


def test_the_documented_row_of_a_rescaled_model_breaks_the_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the refusals below prevent, with the figures of docs/privacy.md."""
    monkeypatch.setattr(row_coupling, "_STATIC_ROPE", frozenset(ROPE))
    monkeypatch.setattr(private_step_policy, "require_independent_rows", lambda *_: None)
    rows = (*(row(8 + number % 4, number) for number in range(40)), LONG)
    policy = make_policy(make_model("longrope"), rows, max_length=4 * ORIGINAL)
    moved = largest_movement(policy, rows, (len(rows),))
    page = (Path(__file__).parents[3] / "docs" / "privacy.md").read_text()
    assert f"one row moved it by {moved:.1f} times the bound" in page
    attacked = attacked_epsilon(moved / NOISE, 1e-5)
    assert f"ε {claimed_epsilon():.1f} was in truth at least {attacked:.1f}" in page


@pytest.mark.parametrize(("kind", "size"), [("longrope", 8), ("dynamic", 8), ("dynamic", 1)])
def test_the_comparison_of_gradients_alone_finds_what_a_long_row_does(
    kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a model that rescales without saying so. `dynamic` does even where each row is computed by itself."""
    monkeypatch.setattr(row_coupling, "_STATIC_ROPE", frozenset(ROPE))
    rows = (*(row(8 + number % 4, number) for number in range(40)), row(ORIGINAL, 98), LONG)
    refusal(make_model(kind), rows, max_length=4 * ORIGINAL, size=size)


def test_in_16_bits_one_row_moves_the_sum_by_no_more_than_the_bound() -> None:
    """Beside others a row's last bits depend on theirs: eight rows in one pass moved by 1.0014 together."""
    rows = (*ROWS, LONG)
    policy = make_policy(make_model(), rows, max_length=4 * ORIGINAL, autocast=True)
    assert largest_movement(policy, rows, (policy.micro_batch,)) <= 1 + 1e-6


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 64}}, "longrope"),
        ({"rope_scaling": {"type": "dynamic"}, "max_position_embeddings": 64}, "dynamic"),
        ({"rope_scaling": {"type": "dynamic"}}, "dynamic"),
        ({"text_config": {"rope_parameters": {"rope_type": "dynamic"}, "max_position_embeddings": 64}}, "dynamic"),
        ({"rope_parameters": {"sliding": {"rope_type": "default"}, "full": {"rope_type": "longrope"}},
          "max_position_embeddings": 64}, "longrope"),
        ({"rope_parameters": {"rope_type": "longrope"}, "max_position_embeddings": 4096,
          "original_max_position_embeddings": 64}, "longrope"),
        ({"rope_parameters": {"rope_type": "of-tomorrow"}, "max_position_embeddings": 4096}, "of-tomorrow"),
        ({"layers": [{"rope_scaling": {"type": "dynamic"}, "max_position_embeddings": 64}]}, "dynamic"),
        ({"rope_parameters": [{"rope_type": "default"}, [{"rope_type": "longrope"}]]}, "longrope"),
        ({"rope_scaling": {"rope_parameters": {"rope_type": "dynamic"}}}, "dynamic"),
        ({"rope_parameters": {"rope_type": ["default"]}}, r"\['default'\]"),
        ({"rope_parameters": {"rope_type": None, "type": "default"}}, "None"),
    ],
)  # fmt: skip
def test_rotary_embeddings_that_rescale_are_found_wherever_a_configuration_has_them(
    config: dict[str, Any], kind: str
) -> None:
    with pytest.raises(JobError, match=kind) as error:
        require_fixed_positions(config, 65)
    assert error.value.code is ErrorCode.PRIVACY_UNPROVEN
    require_fixed_positions(
        {"rope_parameters": {"rope_type": "yarn"}, "text_config": {"rope_scaling": None}}, 65
    )


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {
            "text_config": {
                "quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}
            }
        },
        {"compression_config": {"format": "int-quantized"}},
        {"layers": [{}, {"quantization_config": {"quant_method": "awq"}}]},
        {"experts": [[{"compression_config": {"format": "int-quantized"}}]]},
    ],
)
def test_quantized_checkpoints_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="quantized") as error:
        require_float_weights(config)
    assert error.value.code is ErrorCode.PRIVACY_UNPROVEN
    require_float_weights({"text_config": {"quantization_config": None}})


def test_a_quantized_checkpoint_is_refused_before_it_is_loaded(
    tiny_model: Path, tmp_path: Path
) -> None:
    """The library that would load it may be missing, and its message would say so instead."""
    model_dir = tmp_path / "model"
    shutil.copytree(tiny_model, model_dir)
    config = json.loads((model_dir / "config.json").read_bytes())
    (model_dir / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq"}})
    )
    spec = JobSpec.model_validate_json(
        json.dumps(
            {
                "version": 1,
                "model": {
                    "model_name_or_path": "./m",
                    "model_file_sha256": {"config.json": "0" * 64, "model.safetensors": "0" * 64},
                },
                "data": {"split_turns": "never"},
                "train": {"engine": "transformers"},
                "privacy": {"noise_multiplier": 1.0, "target_delta": 1e-5},
            }
        )
    )
    context = RunContext(lambda _event: None, Stopwatch())
    with pytest.raises(JobError, match="quantized") as error:
        prepare(RunInputs(spec, model_dir, tmp_path), [TextRow("a", 0, "x")], context)
    assert error.value.code is ErrorCode.PRIVACY_UNPROVEN


class Wrapped(torch.nn.Module):
    """Changes the output of a layer."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.change(self.layer(hidden))

    def change(self, hidden: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class RunningMean(Wrapped):
    """Keeps a mean over all rows so far, and does not even use it."""

    mean: torch.Tensor

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__(layer)
        self.register_buffer("mean", torch.zeros(()))

    def change(self, hidden: torch.Tensor) -> torch.Tensor:
        self.mean.mul_(0.9).add_(hidden.detach().mean())
        return hidden


class LongestSoFar(Wrapped):
    """Remembers the longest row in an attribute, which is no buffer."""

    longest = 0

    def change(self, hidden: torch.Tensor) -> torch.Tensor:
        self.longest = max(self.longest, hidden.shape[1])
        return hidden * (1 + self.longest / 100)


class BatchScale(Wrapped):
    """Quantizes by the largest value of the batch, as dynamic activation scales do."""

    def change(self, hidden: torch.Tensor) -> torch.Tensor:
        scale = hidden.detach().abs().max() / 7
        return hidden + ((hidden / scale).round() * scale - hidden).detach()


class Capacity(Wrapped):
    """Gives each row what the rows before it have left, as experts with a capacity do."""

    def change(self, hidden: torch.Tensor) -> torch.Tensor:
        place = torch.arange(hidden.numel() // hidden.shape[-1]).view(*hidden.shape[:2], 1)
        return torch.where(place < 40, hidden, 0.5 * hidden)


class BatchNorm(Wrapped):
    """Normalises over the rows of the batch."""

    def change(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.batch_norm(
            hidden.transpose(1, 2), None, None, training=True
        ).transpose(1, 2)


class Dropout(Wrapped):
    """Drops one value in 100,000: no comparison of gradients would see it."""

    def change(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(hidden, 1e-5)


@pytest.mark.parametrize(
    "kind", [RunningMean, LongestSoFar, BatchScale, Capacity, BatchNorm, Dropout]
)
def test_models_that_carry_one_row_into_another_are_refused(kind: type[Wrapped]) -> None:
    model = make_model()
    block = model.get_base_model().model.layers[0]
    block.mlp = kind(block.mlp)
    refusal(model, ROWS, max_length=ORIGINAL)


def test_a_model_that_changes_a_buffer_later_is_refused_after_the_last_step() -> None:
    model = make_model()
    policy = make_policy(model, ROWS, max_length=ORIGINAL)
    model.get_base_model().model.rotary_emb.inv_freq.mul_(2)
    with pytest.raises(JobError, match="keeps something"):
        list(policy.steps(0))
