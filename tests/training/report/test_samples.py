"""Held-out prompts, continued before and after training."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.data.examples.example import Example
from trainer.spec import JobSpec
from trainer.training.engines.base import Precision
from trainer.training.engines.transformers_engine import TransformersLoader
from trainer.training.report.samples import Sampler, split_example
from trainer.training.tokenizer import load_tokens

CPU = Precision(torch.device("cpu"), torch.float32, autocast=False)


def example(ids: list[int], trained: list[int]) -> Example:
    return Example(array("i", ids), bytes(trained), stops=True)


def test_an_example_is_split_where_training_begins() -> None:
    assert split_example(example([5, 6, 7, 8], [0, 0, 1, 1])) == ([5, 6], [7, 8])
    assert split_example(example([5, 6, 7, 8, 9], [0, 1, 0, 0, 1])) == ([5], [6])


@pytest.fixture
def sampler(tiny_model: Path, make_spec: Callable[..., JobSpec]) -> Callable[..., Sampler]:
    model = TransformersLoader().load(tiny_model, make_spec(), CPU)
    tokens = load_tokens(tiny_model)

    def make(prompts: list[str], count: int = 3) -> Sampler:
        rows = [tokens.ids(prompt) for prompt in prompts]
        examples = [example([*ids, 5, 6], [0] * len(ids) + [1, 1]) for ids in rows]
        return Sampler(model, tokens, CPU, examples, count=count, max_new_tokens=5)

    return make


def test_padding_does_not_change_what_is_answered(sampler: Callable[..., Sampler]) -> None:
    short, long = "Who?", "What is this, and who has ever been there to see it?"
    together = sampler([short, long]).sample_before_training()
    alone = [sampler([text]).sample_before_training()[0] for text in (short, long)]
    assert [sample.before for sample in together] == [sample.before for sample in alone]
    assert [sample.prompt for sample in together] == [short, long]


def test_gradient_checkpointing_is_what_it_was_before(
    sampler: Callable[..., Sampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As unsloth has it: its `generate` switches it off, and does not know what it was."""
    made = sampler(["Who?"])
    decoder: Any = made._model.get_base_model().model
    generate = made._model.generate

    def generate_and_switch_off(**named: Any) -> torch.Tensor:
        decoder.gradient_checkpointing = False
        answers: torch.Tensor = generate(**named)
        return answers

    monkeypatch.setattr(made._model, "generate", generate_and_switch_off)
    for wanted in (True, False):
        decoder.gradient_checkpointing = wanted
        made.sample_before_training()
        assert decoder.gradient_checkpointing is wanted


def test_after_keeps_before(sampler: Callable[..., Sampler]) -> None:
    made = sampler(["Who?"])
    before = made.sample_before_training()
    after = made.sample_after_training(before)
    assert after[0].before == before[0].before == after[0].after
    assert set(after[0].as_dict()) == {"prompt", "reference", "before", "after"}


def test_no_more_than_asked_for_and_none_without_prompts(sampler: Callable[..., Sampler]) -> None:
    assert len(sampler(["a", "b", "c"], count=2).sample_before_training()) == 2
    nothing = sampler(["", ""])
    assert nothing.sample_before_training() == nothing.sample_after_training(()) == ()


def test_sampling_leaves_the_model_as_it_was(sampler: Callable[..., Sampler]) -> None:
    made = sampler(["Who?"])
    made._model.train()
    made.sample_before_training()
    assert made._model.training
    state = torch.random.get_rng_state()
    made.sample_before_training()
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_fresh_adapter_need_not_be_computed(
    tiny_model: Path, make_spec: Callable[..., JobSpec]
) -> None:
    model, tokens = TransformersLoader().load(tiny_model, make_spec(), CPU), load_tokens(tiny_model)
    prompt = tokens.ids("What is 3?")
    prompts = [example([*prompt, 5], [0] * len(prompt) + [1])]
    answers = [
        Sampler(
            model, tokens, CPU, prompts, count=1, max_new_tokens=8, starts_as_base=spared
        ).sample_before_training()
        for spared in (False, True)
    ]
    assert answers[0] == answers[1]
    assert all(
        parameter.requires_grad for name, parameter in model.named_parameters() if "lora" in name
    )
    assert not any(
        module.disable_adapters for module in model.modules() if hasattr(module, "lora_A")
    )
