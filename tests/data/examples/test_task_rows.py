"""Held-out rows as tasks: what is asked, what is expected, and which rows are not judged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.data.examples.templates import CHATML, FAMILIES, LLAMA, MISTRAL, QWEN
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import encode
from trainer.data.examples.task_draw import TaskDraw
from trainer.data.examples.task_rows import NotJudged, Task, TaskRows, read_tasks
from trainer.data.rows import (
    ChatRow,
    CompletionRow,
    Message,
    PreferenceRow,
    Row,
    TextRow,
    ToolCall,
    UnpairedPreferenceRow,
)
from trainer.errors import DataError, ErrorCode
from trainer.spec import JobSpec, TrainOn

MakeTokens = Callable[..., ModelTokenizer]
ASKED, SAID = Message("user", "Is it?"), Message("assistant", " yes ")


def spec(metrics: tuple[str, ...] = ("exact_match",), **sections: dict[str, Any]) -> JobSpec:
    model = {
        "model_name_or_path": "./m",
        "model_file_sha256": dict.fromkeys(("config.json", "model.safetensors"), "0" * 64),
    }
    sections = {"evaluation": {"metrics": metrics}, **sections}
    return JobSpec.model_validate_json(json.dumps({"version": 1, "model": model, **sections}))


def tasks_of(
    rows: Sequence[Row],
    tokens: ModelTokenizer,
    job: JobSpec | None = None,
    context: int | None = None,
) -> TaskRows:
    job = job or spec()
    draw = TaskDraw(job.evaluation.max_rows, seed=job.train.seed)
    for row in rows:
        draw.add_held_out(row)
    return read_tasks(draw, tokens, job, context_length=context)


def chat(*messages: Message, **changes: Any) -> ChatRow:
    return replace(ChatRow("f", 0, messages), **changes)


def one(row: Row, tokens: ModelTokenizer, job: JobSpec | None = None) -> Task:
    (task,) = tasks_of([row], tokens, job).tasks
    return task


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_is_what_training_conditions_the_last_answer_on(
    name: str, make_tokens: MakeTokens
) -> None:
    family = FAMILIES[name]
    tokens = make_tokens(family.template, **family.tokens)
    row = chat(ASKED, SAID, Message("user", "Sure?"), Message("assistant", "no"))
    job = spec(data={"train_on": "last_turn"})
    assert job.data.train_on is TrainOn.LAST_TURN
    (example,) = encode(row, tokens, job.data)
    task = one(row, tokens)
    assert list(example.ids[: len(task.prompt)]) == task.prompt
    assert example.trained.index(1) == len(task.prompt)
    assert task.prompt_text == tokens.text(task.prompt)
    assert task.expected == "no"
    assert task.stem is not None
    # the stem holds what the template puts before an answer without a thought
    assert tokens.text(example.ids).startswith(task.stem + "no")


def test_system_tools_and_arguments_are_in_the_prompt(make_tokens: MakeTokens) -> None:
    template = QWEN.replace(
        "{%- if add_generation_prompt", "{{ tone }}{%- if add_generation_prompt"
    )
    row = chat(
        Message("system", "Be brief."),
        ASKED,
        SAID,
        tools=({"name": "look_up"},),
        template_arguments={"tone": "calm"},
    )
    text = one(row, make_tokens(template)).prompt_text
    assert all(part in text for part in ("Be brief.", "look_up", "calm"))
    assert text.endswith("<|im_start|>assistant\n")


def test_the_last_answer_that_may_be_trained_on(make_tokens: MakeTokens) -> None:
    unwanted = replace(SAID, content="never", train=False)
    task = one(chat(ASKED, SAID, ASKED, unwanted, Message("user", "Bye.")), make_tokens(CHATML))
    assert task.expected == "yes"
    assert "never" not in task.prompt_text


def test_a_completion_is_asked_for_by_its_prompt(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(None, bos="<s>", add_bos=True, eos="</s>")
    task = one(CompletionRow("f", 0, "Is it? Answer:", " yes"), tokens)
    assert task.prompt == [*tokens.start_ids, *tokens.ids("Is it? Answer:")]
    assert (task.expected, task.choice, task.stem) == ("yes", " yes", "Is it? Answer:")


def test_of_a_pair_the_chosen_answer_is_expected(make_tokens: MakeTokens) -> None:
    row = PreferenceRow(
        "f",
        0,
        chat(ASKED, SAID, prompt_messages=1),
        chat(ASKED, Message("assistant", "no"), prompt_messages=1),
    )
    assert one(row, make_tokens(CHATML), spec(train={"method": "dpo"})).expected == "yes"


def test_a_thought_is_no_part_of_what_is_expected(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(QWEN)
    inline = chat(ASKED, Message("assistant", "<think>\nwell\n</think>\n\nyes"))
    beside = chat(ASKED, Message("assistant", "yes", reasoning_content="well"))
    for row in (inline, beside):
        assert one(row, tokens).expected == "yes"
        with pytest.raises(DataError, match="follow the prompt directly"):
            tasks_of(
                [row, chat(ASKED, Message("assistant", "no"))], tokens, spec(("choice_accuracy",))
            )


def test_every_row_that_is_not_judged_is_counted(make_tokens: MakeTokens) -> None:
    call = ToolCall("look_up", {"key": "value"})
    rows = [
        chat(ASKED, SAID),
        chat(Message("user", "long " * 40), SAID),
        chat(ASKED, replace(SAID, tool_calls=(call,))),
        chat(ASKED, replace(SAID, train=False)),
        chat(ASKED, Message("assistant", "<think>\nwell\n</think>")),
        TextRow("f", 0, "plain"),
        CompletionRow("f", 0, "", "yes"),
        UnpairedPreferenceRow("f", 0, CompletionRow("f", 0, "a", "b"), label=False),
    ]
    found = tasks_of(rows, make_tokens(CHATML), spec(data={"max_length": 60}))
    assert len(found.tasks) == 1
    assert found.not_judged == {
        NotJudged.TOO_LONG: 1,
        NotJudged.CALL: 1,
        NotJudged.NO_ANSWER: 2,
        NotJudged.NO_PROMPT: 2,
        NotJudged.UNDESIRABLE: 1,
    }


def test_generated_tokens_stay_within_the_context_of_the_model(make_tokens: MakeTokens) -> None:
    tokens, row = make_tokens(CHATML), chat(ASKED, SAID)
    length = len(one(row, tokens).prompt)
    job = spec(evaluation={"metrics": ["token_f1"], "max_new_tokens": 8})
    assert len(tasks_of([row], tokens, job, context=length + 8).tasks) == 1
    with pytest.raises(DataError, match="1 too_long") as caught:
        tasks_of([row], tokens, job, context=length + 7)
    assert caught.value.code is ErrorCode.DATASET_NOT_TRAINABLE
    # choices are compared without generating
    two = [row, chat(ASKED, Message("assistant", "no"))]
    assert len(tasks_of(two, tokens, spec(("choice_accuracy",)), context=length + 7).tasks) == 2


def test_raw_text_alone_is_refused(make_tokens: MakeTokens) -> None:
    with pytest.raises(DataError, match="2 no_prompt"):
        tasks_of([TextRow("f", 0, "a"), TextRow("f", 1, "b")], make_tokens(None))
    with pytest.raises(DataError, match="no held-out row"):
        tasks_of([], make_tokens(None))


def test_choices_are_the_distinct_answers(make_tokens: MakeTokens) -> None:
    def rows(count: int) -> list[Row]:
        return [
            chat(ASKED, Message("assistant", f"class {number % count}")) for number in range(130)
        ]

    job = spec(("choice_accuracy",))
    tokens = make_tokens(LLAMA, eos="<|eot_id|>")
    assert tasks_of(rows(3), tokens, job).choices == ("class 0", "class 1", "class 2")
    for count in (1, 65):
        with pytest.raises(DataError, match=f"expected 2 to 64 distinct answers .*got {count}"):
            tasks_of(rows(count), tokens, job)
    assert tasks_of(rows(65), tokens, spec()).choices == ()


def test_a_space_before_the_answer_belongs_to_the_stem(make_tokens: MakeTokens) -> None:
    task = one(chat(ASKED, SAID), make_tokens(MISTRAL, eos="</s>"))
    assert task.prompt_text.endswith("[/INST]")
    assert task.stem == task.prompt_text + " "


def test_rows_are_drawn_evenly_and_again_the_same() -> None:
    rows = [TextRow("f", number, "") for number in range(40)]

    def drawn(seed: int, most: int = 10) -> list[int]:
        draw = TaskDraw(most, seed=seed)
        for row in rows:
            draw.add_held_out(row)
        assert draw.not_drawn == max(0, 40 - most)
        return [row.index for row in draw.rows]

    assert drawn(1) == drawn(1) == sorted(drawn(1))
    assert drawn(1, 40) == drawn(1, 50) == list(range(40))
    counts = Counter(number for seed in range(400) for number in drawn(seed))
    # expected 100 each, standard deviation 8.7
    assert all(60 < counts[number] < 140 for number in range(40))
