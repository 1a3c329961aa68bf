"""Task metrics on a tiny model: their figures against plain PyTorch, and what a measurement leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from trainer.data.examples.choices import choice_examples, longest_choice
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.task_rows import Task, TaskRows
from trainer.spec import EvaluationSection, LoraSection
from trainer.training.adapter import attach_adapter
from trainer.training.distributed import RankGroup
from trainer.training.engines.base import Precision
from trainer.training.generation import generate_answers
from trainer.training.loss import CausalLoss
from trainer.training.task_evaluation import TaskEvaluation
from trainer.training.tokenizer import load_tokens

CPU = Precision(torch.device("cpu"), torch.float32, autocast=False)
QUESTIONS = (
    "Who?",
    "What is this, and who has ever been there to see it?",
    "a",
    "It is the number 3, as",
)
CHOICES = ("no", "perhaps not", "yes")

Measure = Callable[..., TaskEvaluation]


@pytest.fixture(scope="module")
def tokens(tiny_model: Path) -> ModelTokenizer:
    return load_tokens(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    torch.manual_seed(3)
    model = attach_adapter(
        AutoModelForCausalLM.from_pretrained(tiny_model), LoraSection(lora_r=4, lora_dropout=0.3)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    return model


def task(tokens: ModelTokenizer, question: str, expected: str = "yes") -> Task:
    return Task(tokens.ids(question), question, expected, question, start=False, choice=expected)


@pytest.fixture(scope="module")
def make(model: Any, tokens: ModelTokenizer) -> Measure:
    losses = {
        fused: CausalLoss(model, CPU, pad_id=tokens.pad_id, longest=200, fused=fused)
        for fused in (True, False)
    }
    assert losses[True].forward_mode == "fused"

    def make(
        tasks: list[Task], *metrics: str, rows: int = 3, fused: bool = True, ranks: RankGroup | None = None,
        choices: tuple[str, ...] = CHOICES, max_new_tokens: int = 12,
    ) -> TaskEvaluation:  # fmt: skip
        return TaskEvaluation(
            TaskRows(tuple(tasks), choices=choices),
            EvaluationSection.model_validate({"metrics": metrics, "max_new_tokens": max_new_tokens}),
            model=model, tokens=tokens, loss=losses[fused], precision=CPU, batch_rows=rows,
            ranks=ranks or RankGroup(),
        )  # fmt: skip

    return make


@torch.no_grad()
def log_probability(model: Any, ids: list[int], first: int) -> float:
    """One row, no padding, all logits: the sum over the tokens from `first` on."""
    model.eval()
    logits: Tensor = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logits[position - 1, ids[position]]) for position in range(first, len(ids)))


def test_generated_answers_are_scored(make: Measure, model: Any, tokens: ModelTokenizer) -> None:
    said = [
        tokens.text(
            generate_answers(model, tokens, CPU, [tokens.ids(question)], max_new_tokens=12)[0]
        )
        for question in QUESTIONS
    ]
    expected = [said[0].upper() + "!", f"{said[1]} {said[1]}", "something else", said[3]]
    tasks = [task(tokens, *pair) for pair in zip(QUESTIONS, expected, strict=True)]
    measured = make(tasks, "exact_match", "token_f1").measure()
    assert measured.figures.exact_match == 0.5
    # twice as many words are expected: P = 1, R = 1/2, F1 = 2/3
    assert measured.figures.token_f1 == pytest.approx((1 + 2 / 3 + 0 + 1) / 4, abs=0.05)
    assert measured.figures.choice_accuracy is None
    assert [answer.strip() for answer in said] == list(measured.answers)
    assert measured.figures.cut == 4


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 8])
def test_the_likeliest_choice_is_that_of_the_sums(
    make: Measure, model: Any, tokens: ModelTokenizer, rows: int, fused: bool
) -> None:
    tasks = [
        task(tokens, question, CHOICES[number % 3]) for number, question in enumerate(QUESTIONS)
    ]
    best = []
    for question in QUESTIONS:
        first = len(tokens.ids(question))
        sums = [log_probability(model, tokens.ids(question + choice), first) for choice in CHOICES]
        best.append(CHOICES[max(range(3), key=sums.__getitem__)])
    evaluation = make(tasks, "choice_accuracy", rows=rows, fused=fused)
    measured = evaluation.measure()
    assert measured.choices == tuple(best)
    assert measured.figures.choice_accuracy == sum(
        one.choice == choice for one, choice in zip(tasks, best, strict=True)
    ) / len(tasks)
    assert measured.figures.cut is None
    sums = [
        log_probability(model, tokens.ids(QUESTIONS[1] + choice), len(tokens.ids(QUESTIONS[1])))
        for choice in CHOICES
    ]
    assert evaluation._log_likelihoods(1).tolist() == pytest.approx(sums, abs=1e-4)


def test_a_choice_that_begins_another_is_ended(tokens: ModelTokenizer) -> None:
    end = min(tokens.stop_ids)
    one = replace(task(tokens, "How many?", "1"), end=end)
    ended = TaskRows((one,), choices=("1", "10"))
    examples = choice_examples(one, ended, tokens)
    assert [list(example.ids) for example in examples] == [
        [*tokens.ids(f"How many?{each}"), end] for each in ("1", "10")
    ]
    assert all(example.trained.index(1) == len(one.prompt) for example in examples)
    unlike = TaskRows((one,), choices=("1", "20"))
    assert all(example.ids[-1] != end for example in choice_examples(one, unlike, tokens))
    assert longest_choice(ended, tokens) == max(example.length for example in examples)


def test_ranks_divide_the_rows(
    make: Measure, tokens: ModelTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [task(tokens, question) for question in QUESTIONS]
    metrics = ("exact_match", "choice_accuracy")
    alone = make(tasks, *metrics, rows=1)
    parts: list[list[Tensor]] = []
    for rank in range(2):
        sent: list[Tensor] = []
        monkeypatch.setattr(
            RankGroup,
            "all_reduce",
            lambda _self, table, sent=sent: sent.append(table.clone()) or table,
        )
        make(tasks, *metrics, rows=1, ranks=RankGroup(rank, 2)).measure()
        parts.append(sent)
    answers, likelihoods = (first + second for first, second in zip(*parts, strict=True))
    monkeypatch.undo()
    assert [[int(id_) - 1 for id_ in row if id_] for row in answers] == alone._generate()
    assert likelihoods.argmax(1).tolist() == alone._choose()
    # with a sharded base model every rank runs the model equally often, so that none waits in vain
    sharded = make(tasks, *metrics, rows=1, ranks=RankGroup(1, 2, sharded=True))
    assert sharded.measure() == alone.measure()


def test_a_measurement_leaves_no_trace(make: Measure, model: Any, tokens: ModelTokenizer) -> None:
    evaluation = make(
        [task(tokens, question) for question in QUESTIONS], "token_f1", "choice_accuracy"
    )
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    state = torch.random.get_rng_state()
    model.train()
    assert evaluation.measure() == evaluation.measure()
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_fresh_adapter_need_not_be_computed(tiny_model: Path, tokens: ModelTokenizer) -> None:
    fresh = attach_adapter(AutoModelForCausalLM.from_pretrained(tiny_model), LoraSection(lora_r=4))
    loss = CausalLoss(fresh, CPU, pad_id=tokens.pad_id, longest=200)
    evaluation = TaskEvaluation(
        TaskRows((task(tokens, "Who?"),)), EvaluationSection(metrics=("token_f1",), max_new_tokens=6),
        model=fresh, tokens=tokens, loss=loss, precision=CPU, batch_rows=2,
    )  # fmt: skip
    assert evaluation.measure(as_base=True) == evaluation.measure()
