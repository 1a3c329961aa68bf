"""Several processes over gloo take the same steps as one: same losses, same adapter, equal bit by bit."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import multiprocessing
from transformers import AutoModelForCausalLM

from tests.training.test_loop import CPU, example
from trainer.data.examples.example_set import Dataset, RowCounts
from trainer.spec import DataSection, LoraSection, TrainSection
from trainer.training.adapter import attach_adapter
from trainer.training.distributed import ALONE, RankGroup, RankShare, balance_rows, join_rank_group
from trainer.training.events import MetricsMeasured, TrainingEvent
from trainer.training.loop import Trainer
from trainer.training.loss import CausalLoss
from trainer.training.methods.dpo_loss import MEASURED
from trainer.training.methods.method import MethodInputs
from trainer.training.methods.registry import METHODS
from trainer.training.rank import ProcessRank
from trainer.training.sharding import shard_base_model
from trainer.training.step_policy import PlainStepPolicy

ROWS = tuple(example(6 + 3 * (number % 9), number) for number in range(21))

Options = dict[str, Any]


def test_shares_are_about_equal_and_complete() -> None:
    lengths = sorted(random.Random(1).choices(range(1, 400), k=61))
    for size in (1, 2, 3, 8):
        shares = balance_rows(range(61), lengths, size)
        assert sorted(row for share in shares for row in share) == list(range(61))
        assert all(share == sorted(share) for share in shares)
        tokens = [sum(lengths[row] for row in share) for share in shares]
        assert max(tokens) - min(tokens) <= max(lengths) / 8
        assert shares == balance_rows(range(61), lengths, size)


def test_pairs_stay_together() -> None:
    lengths = [9, 3, 2, 2, 8, 8, 1, 7]
    order = [2, 3, 6, 7, 0, 1, 4, 5]
    assert balance_rows(order, lengths, 2, rows_per_unit=2) == [[2, 3, 4, 5], [6, 7, 0, 1]]
    idle = RankGroup(1, 2, sharded=True).share_rows([0, 1], lengths, [1] * 8, list, rows_per_unit=2)
    assert (idle.rows, idle.idle) == ([0, 1], True)


def test_more_processes_than_rows() -> None:
    assert balance_rows([4], [0] * 5, 3) == [[4], [], []]
    assert RankGroup(2, 3).share_rows([1], [5, 6], [1, 2], list) == RankShare(
        [], target_counts=[2], input_tokens=6
    )


def test_where_the_base_is_spread_all_run_the_model_equally_often() -> None:
    lengths, counts = [9, 5, 6, 7], [1, 1, 1, 1]
    shares = [
        RankGroup(rank, 3, sharded=True).share_rows([1, 2, 3, 0], lengths, counts, list)
        for rank in range(3)
    ]
    assert {share.forward_passes for share in shares} == {2}
    for share in shares:
        pieces = [slice(number, number + 1) for number in range(len(share.rows))]
        assert len(list(share.weighted_slices(pieces))) == 2
        assert sum(weight for _, weight in share.weighted_slices(pieces)) == len(share.rows)
    idle = RankGroup(2, 3, sharded=True).share_rows([1], lengths, counts, list)
    assert (idle.rows, idle.idle, idle.forward_passes) == ([1], True, 1), (
        "a row that counts nothing, to keep step"
    )
    assert list(idle.weighted_slices([slice(0, 1)])) == [(slice(0, 1), 0.0)]


def train(tiny: Path, out: Path, ranks: RankGroup, options: Options) -> None:
    """One process's run: its metrics and its adapter go to files of its own."""
    torch.set_num_threads(1)
    options = dict(options)
    packing = options.pop("packing", False)
    # Whatever the others begin with, they take the first one's.
    torch.manual_seed(3 if ranks.rank == 0 else 99)
    model = attach_adapter(AutoModelForCausalLM.from_pretrained(tiny), LoraSection(lora_r=4))
    shard_base_model(model, CPU, ranks)
    section = TrainSection(
        **{"learning_rate": 0.001, "seed": 5, "num_train_epochs": 2.0, **options}
    )
    loss = CausalLoss(
        model,
        CPU,
        pad_id=0,
        longest=64,
        neftune_alpha=section.neftune_noise_alpha,
        fused=not ranks.sharded,
    )
    held = ROWS[17:] if section.method == "dpo" else ROWS[18:]
    data = Dataset(ROWS[:18], held, RowCounts(18, len(held), 0, 0), ())
    seen: list[MetricsMeasured] = []

    def report(message: TrainingEvent) -> None:
        if isinstance(message, MetricsMeasured):
            seen.append(message)

    inputs = MethodInputs(
        data,
        loss,
        section,
        CPU.device,
        data=DataSection(packing=packing, max_length=64),
        reference=loss.adapter_disabled,
        ranks=ranks,
    )
    method = METHODS[section.method](inputs)
    policy = PlainStepPolicy(model, method, data.train, section, ranks=ranks)
    outcome = Trainer(model, method, policy, section, report=report).run()
    found = {
        "steps": outcome.steps,
        "tokens": [outcome.trained_tokens, outcome.input_tokens],
        "after": outcome.eval_loss_after,
        "train": outcome.train_loss,
        "metrics": [
            {name: item.values[name] for name in NAMES if name in item.values} for item in seen
        ],
        "warnings": outcome.warnings,
        "pairs": outcome.pairs,
        "way": loss.forward_mode,
    }
    (out / f"{ranks.rank}.json").write_text(json.dumps(found))
    adapter = {name: one.detach() for name, one in model.named_parameters() if one.requires_grad}
    save_file(adapter, out / f"{ranks.rank}.safetensors")


REWARDS = [name for name in MEASURED if name != "rewards_accuracies"]
"""Whether a fresh adapter's rewards, which are zeros, come out above one another is chance."""

NAMES = (
    "loss",
    "grad_norm",
    "eval_loss",
    "learning_rate",
    "epoch",
    *REWARDS,
    *(f"eval_{name}" for name in REWARDS),
)


def member(rank: int, size: int, tiny: Path, out: Path, runs: dict[str, Options]) -> None:
    """One of several processes: all runs, one after another.

    It ends as a worker's does. A spread model holds the group beyond its end, and gloo's threads with it: where
    one asks for the lock of an interpreter that winds itself up, C++ aborts.
    """
    with join_rank_group(ProcessRank(rank, size), out, sharded=False) as ranks:
        for name, given in runs.items():
            options = dict(given)
            train(tiny, out / name, replace(ranks, sharded=options.pop("sharded", False)), options)
    os._exit(0)


def alone(tiny: Path, out: Path, options: Options) -> dict[str, Any]:
    out.mkdir()
    train(tiny, out, ALONE, options)
    return told(out, 0)


def told(out: Path, rank: int) -> dict[str, Any]:
    found = json.loads((out / f"{rank}.json").read_text())
    assert isinstance(found, dict)
    return found


def adapters(out: Path, rank: int) -> dict[str, torch.Tensor]:
    return load_file(out / f"{rank}.safetensors")


PLAIN: Options = {"optim": "sgd", "learning_rate": 0.1}
"""Adam divides by a gradient's size: where that is nearly nothing, the order of additions shows in the step."""

SETTINGS: dict[str, tuple[Options, Options]] = {
    "accumulation": (
        {"per_device_train_batch_size": 2, "eval_steps": 3, **PLAIN},
        {"gradient_accumulation_steps": 2},
    ),
    "packing": (
        {"per_device_train_batch_size": 1, "packing": True, "logging_steps": 2},
        {"gradient_accumulation_steps": 2},
    ),
    "last-step-of-one-row": (
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_grad_norm": 0.1},
        {"gradient_accumulation_steps": 8},
    ),
    "early-end": (
        {
            "per_device_train_batch_size": 2, "eval_steps": 1, "early_stopping_patience": 2,
            "early_stopping_threshold": 1.0, "load_best_model_at_end": True,
        },
        {"gradient_accumulation_steps": 2},
    ),
    "pairs": (
        {
            "method": "dpo", "per_device_train_batch_size": 1, "num_train_epochs": 2.0, "eval_steps": 3,
            "logging_steps": 2, "loss_type": ("sigmoid", "sft"), **PLAIN,
        },
        {"gradient_accumulation_steps": 2},
    ),
    "pairs-spread-base": (
        {
            "method": "dpo", "per_device_train_batch_size": 1, "num_train_epochs": 1.0, "eval_steps": 2,
            "sharded": True, **PLAIN,
        },
        {"gradient_accumulation_steps": 2},
    ),
    "spread-base": (
        {"per_device_train_batch_size": 2, "max_steps": 5, "eval_steps": 2, "sharded": True, **PLAIN},
        {"gradient_accumulation_steps": 2},
    ),
}  # fmt: skip
"""What two processes are told, and what one is told beside it to take the same steps."""

NOISY: Options = {"per_device_train_batch_size": 2, "max_steps": 3, "neftune_noise_alpha": 5.0}


@pytest.fixture(scope="module")
def two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes came to, a directory for each setting."""
    out = tmp_path_factory.mktemp("two")
    runs = {name: options for name, (options, _) in SETTINGS.items()} | {"noise": NOISY}
    for name in runs:
        (out / name).mkdir()
    multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
        member, args=(2, tiny_model, out, runs), nprocs=2
    )
    return out


def close_to(values: dict[str, float]) -> Any:
    """A gradient's norm is of float32 numbers, and a reward the difference of two that are far larger."""
    return pytest.approx(values, rel=2e-5, abs=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_take_the_steps_of_one(
    name: str, two: Path, tiny_model: Path, tmp_path: Path
) -> None:
    options = {key: value for key, value in SETTINGS[name][0].items() if key != "sharded"}
    one = alone(tiny_model, tmp_path / "one", {**options, **SETTINGS[name][1]})
    both = told(two / name, 0)
    assert both == told(two / name, 1), "every process knows the same"
    for exact in ("steps", "tokens", "warnings"):
        assert both[exact] == one[exact]
    assert both["way"] == ("selected" if name.endswith("spread-base") else "fused")
    assert both["after"] == pytest.approx(one["after"], rel=1e-6)
    assert both["train"] == pytest.approx(one["train"], rel=1e-6)
    assert both["pairs"] == close_to(one["pairs"])
    assert len(both["metrics"]) == len(one["metrics"])
    for ours, theirs in zip(both["metrics"], one["metrics"], strict=True):
        assert ours == close_to(theirs)
    for key, expected in adapters(tmp_path / "one", 0).items():
        torch.testing.assert_close(adapters(two / name, 0)[key], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*SETTINGS, "noise"])
def test_the_adapters_of_all_processes_are_equal(name: str, two: Path) -> None:
    first, second = adapters(two / name, 0), adapters(two / name, 1)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_settings_are_what_their_names_say(two: Path) -> None:
    assert told(two / "early-end", 0)["steps"] == 2, (
        "two evaluations are not better than the first by so much"
    )
    assert "stopped after step 2" in told(two / "early-end", 0)["warnings"][0]
    assert told(two / "last-step-of-one-row", 0)["steps"] == 6, (
        "18 rows in steps of 8, twice: the last has two"
    )


def test_what_each_process_draws() -> None:
    draws = []
    for rank, step in ((0, 1), (1, 1), (1, 2), (2, 1), (1, 1)):
        torch.manual_seed(5)
        RankGroup(rank, 3).seed_rank(5, step)
        draws.append(torch.rand(1).item())
    assert draws[4] == draws[1], "what the others draw follows from the step alone"
    assert len(set(draws)) == 4
