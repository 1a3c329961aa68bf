"""Answers that are generated in a batch are those of each prompt by itself, step by step the likeliest token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.spec import JobSpec
from trainer.training.engines.base import Precision
from trainer.training.engines.transformers_engine import TransformersLoader
from trainer.training.generation import generate_answers, pad_left
from trainer.training.tokenizer import load_tokens

CPU = Precision(torch.device("cpu"), torch.float32, autocast=False)
QUESTIONS = (
    "Who?",
    "What is this, and who has ever been there to see it?",
    "a",
    "It is the number 3, as everybody",
)

MakeSpec = Callable[..., JobSpec]


@pytest.fixture(scope="module")
def tokens(tiny_model: Path) -> ModelTokenizer:
    return load_tokens(tiny_model)


@pytest.fixture
def model(tiny_model: Path, make_spec: MakeSpec) -> Any:
    torch.manual_seed(5)
    model = TransformersLoader().load(tiny_model, make_spec(lora={"lora_dropout": 0.5}), CPU)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # an adapter that changes what is said
            parameter.data.normal_(std=0.2)
    return model


@torch.no_grad()
def step_by_step(model: Any, tokens: ModelTokenizer, prompt: list[int], most: int) -> list[int]:
    """Without padding, without cached keys, every position written down."""
    said: list[int] = []
    model.eval()
    while len(said) < most and not (said and said[-1] in tokens.stop_ids):
        ids = torch.tensor([prompt + said])
        logits = model(
            input_ids=ids, position_ids=torch.arange(ids.shape[1])[None], use_cache=False
        ).logits
        said.append(int(logits[0, -1].argmax()))
    return said


def test_prompts_end_at_the_same_place() -> None:
    ids, mask = pad_left([[1, 2, 3], [4]], 0, torch.device("cpu"))
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_batch_says_what_each_prompt_says_by_itself(model: Any, tokens: ModelTokenizer) -> None:
    prompts = [tokens.ids(question) for question in QUESTIONS]
    together = generate_answers(model, tokens, CPU, prompts, max_new_tokens=12)
    assert together == [step_by_step(model, tokens, prompt, 12) for prompt in prompts]
    assert len({tuple(answer) for answer in together}) > 1


def test_an_answer_ends_with_its_stop_token(model: Any, tokens: ModelTokenizer) -> None:
    prompts = [tokens.ids(question) for question in QUESTIONS]
    free = generate_answers(model, tokens, CPU, prompts, max_new_tokens=12)
    tokens.stop_ids |= {free[0][2]}
    for answer, unbound in zip(
        generate_answers(model, tokens, CPU, prompts, max_new_tokens=12), free, strict=True
    ):
        assert unbound[: len(answer)] == answer
        assert len(answer) == 12 or answer[-1] in tokens.stop_ids
        assert not tokens.stop_ids.intersection(answer[:-1])
    tokens.stop_ids -= {free[0][2]}


def test_the_model_is_left_as_it_was(model: Any, tokens: ModelTokenizer) -> None:
    own = model.get_base_model().generation_config
    prompt = tokens.ids("the the the the")
    expected = step_by_step(model, tokens, prompt, 8)
    # what configurations of published models have, and what changes every answer
    own.repetition_penalty, own.suppress_tokens = 3.0, expected[:1]
    model.train()
    state = torch.random.get_rng_state()
    (answer,) = generate_answers(model, tokens, CPU, [prompt], max_new_tokens=8)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    assert model.get_base_model().generation_config is own
    assert (own.repetition_penalty, own.suppress_tokens) == (3.0, expected[:1])
    assert answer == expected


def test_also_after_an_interruption(
    model: Any, tokens: ModelTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = model.get_base_model().model.layers[0]
    layer.gradient_checkpointing = True

    def interrupted(**_options: Any) -> None:
        layer.gradient_checkpointing = False  # as an engine's own generation does
        raise KeyboardInterrupt

    model.train()
    monkeypatch.setattr(model, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_answers(model, tokens, CPU, [[1]], max_new_tokens=1)
    assert model.training
    assert layer.gradient_checkpointing
