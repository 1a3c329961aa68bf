"""The answer in what the assistant says, by the marks that its template shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.data.examples.templates import CHATML, DEEPSEEK, MISTRAL, QWEN
from trainer.data.examples.answer_markers import AnswerMarkers, find_answer_markers
from trainer.data.examples.model_tokenizer import ModelTokenizer

HARMONY = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- if message.thinking %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' }}
    {%- else %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

BRACKETS = CHATML.replace(
    "message.content", "('[THINK]' + message.reasoning_content + '[/THINK]' if message.reasoning_content else '') "
    "+ message.content",
)  # fmt: skip


@pytest.mark.parametrize(
    ("template", "said", "answer"),
    [
        (CHATML, " yes\n", "yes"),
        (CHATML, "<think>\nIt may be no.\n</think>\n\nyes", "yes"),
        (CHATML, "<think>\nIt may be no, and", ""),
        (QWEN, "<think>\nwell\n</think>\n\nyes", "yes"),
        (QWEN, "<think>\n\n</think>\n\nyes", "yes"),
        (QWEN, "<think>\nwell", ""),
        (QWEN, "yes", "yes"),
        (DEEPSEEK, "<think>\nwell\n</think>yes", "yes"),
        (MISTRAL, " yes", "yes"),
        (BRACKETS, "[THINK]well[/THINK]yes", "yes"),
        (BRACKETS, "[THINK]well", ""),
        (HARMONY, "<|channel|>final<|message|>yes", "yes"),
        (
            HARMONY,
            "<|channel|>analysis<|message|>well<|end|><|start|>assistant<|channel|>final<|message|>yes",
            "yes",
        ),
        (HARMONY, "<|channel|>analysis<|message|>well", ""),
    ],
)
def test_the_answer_without_its_thought(
    make_tokens: Callable[..., ModelTokenizer], template: str, said: str, answer: str
) -> None:
    assert find_answer_markers(make_tokens(template).template).cut(said) == answer


def test_a_thought_that_the_prompt_opens(make_tokens: Callable[..., ModelTokenizer]) -> None:
    opened = DEEPSEEK.replace(
        "{{ '<Assistant>' }}{% endif", "{{ '<Assistant><think>\\n' }}{% endif"
    )
    markers = find_answer_markers(make_tokens(opened).template)
    prompt = "<User>really?<Assistant><think>\n"
    assert markers.cut("well\n</think>\n\nyes", prompt) == "yes"
    assert markers.cut("well", prompt) == ""
    # a template that closes the thought again has the model answer at once
    assert markers.cut("yes", prompt + "\n</think>\n\n") == "yes"


def test_a_template_that_refuses_the_probe(make_tokens: Callable[..., ModelTokenizer]) -> None:
    assert (
        find_answer_markers(make_tokens("{{ raise_exception('no') }}").template) == AnswerMarkers()
    )
