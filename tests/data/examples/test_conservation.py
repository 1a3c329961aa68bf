"""Nothing that a conversation says is lost: it is in the text that is trained on, allowed by name, or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from trainer.data.examples.conservation import UnrenderedError
from trainer.data.examples.example import EncodedRow
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import encode, encode_rows
from trainer.data.rows import ChatRow, CompletionRow, Message, PreferenceRow, Row, TextRow, ToolCall
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection, RowPart, SplitTurns, TrainOn

MakeTokens = Callable[..., ModelTokenizer]

TURN = "<|im_start|>{{ m.role }}\n%s<|im_end|>\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def each_turn(body: str) -> str:
    """A template that prints `body` for each message `m`."""
    return "{% for m in messages %}" + TURN % body + "{% endfor %}" + PROMPT


CONTENT_ONLY = each_turn("{{ m.content }}")
NOTHING = each_turn("")
EVERYTHING = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}" + each_turn(
    "{{ m.name or '' }}{{ m.reasoning_content or '' }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
)
CUTS_EARLIER_REASONING = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    + each_turn(
        "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n{{ m.reasoning_content or '' }}\n"
        "</think>\n{% endif %}{{ m.content }}"
    )
)

STOCK = {
    "type": "function",
    "function": {
        "name": "stock_of",
        "description": "Units on the shelf.\nNot those on order.",
        "parameters": {
            "type": "object",
            "properties": {
                "sku": {
                    "type": "string",
                    "description": "Number of the article",
                    "enum": ["a1", "b2"],
                }
            },
            "required": ["sku"],
        },
    },
}
ASKED = Message("user", "How many are left of it?")
CALL = Message(
    "assistant",
    "",
    tool_calls=(ToolCall("stock_of", {"sku": "Zeta-7", "exact": True, "least": 3}, "c1"),),
)
RESULT = Message("tool", '{"units": 5}', tool_call_id="c1", name="stock_of")
ANSWER = Message("assistant", "Five of them remain.")
REASONED = replace(ANSWER, reasoning_content="Two shelves, and three units on one of them.")


def chat(*messages: Message, tools: Sequence[dict[str, Any]] | None = None) -> ChatRow:
    return ChatRow("d.jsonl", 3, messages, None if tools is None else tuple(tools))


def lost_parts(template: str, row: Row, make_tokens: MakeTokens, **data: Any) -> dict[str, int]:
    """Part → number of texts of the row that are missing, by the error; empty if the row is accepted."""
    (outcome,) = encode_rows([row], make_tokens(template), DataSection(max_length=4000, **data))
    if isinstance(outcome, DataError):
        assert isinstance(outcome, UnrenderedError), str(outcome)
        return dict(outcome.parts)
    return {}


@pytest.mark.parametrize(
    ("row", "part", "field"),
    [
        (chat(ASKED, REASONED), RowPart.REASONING_CONTENT, "messages[1].reasoning_content"),
        (chat(ASKED, CALL, RESULT, ANSWER), RowPart.TOOL_CALLS, "messages[1].tool_calls[0].name"),
        (chat(ASKED, ANSWER, tools=[STOCK]), RowPart.TOOLS, "tools[0]"),
        (chat(replace(ASKED, name="Ada"), ANSWER), RowPart.NAME, "messages[0].name"),
    ],
    ids=["reasoning", "calls", "tools", "name"],
)
def test_what_is_not_printed_is_refused_or_allowed_by_name(
    row: ChatRow, part: RowPart, field: str, make_tokens: MakeTokens
) -> None:
    tokens = make_tokens(CONTENT_ONLY)
    with pytest.raises(DataError) as caught:
        encode(row, tokens, DataSection())
    error = caught.value
    assert (error.code, error.file, error.row, error.field) == (
        ErrorCode.DATASET_UNRENDERED,
        "d.jsonl",
        3,
        field,
    )
    assert f"data.allow_unrendered: [{part}]" in str(error.hint)
    assert part in str(error.found)
    (others,) = encode_rows(
        [row], tokens, DataSection(allow_unrendered=tuple(set(RowPart) - {part}))
    )
    assert isinstance(others, UnrenderedError)
    if part is RowPart.TOOL_CALLS:  # the turn that calls says nothing else
        row = replace(row, messages=(ASKED, replace(CALL, train=False), RESULT, ANSWER))
    (allowed,) = encode_rows([row], tokens, DataSection(allow_unrendered=(part,)))
    assert isinstance(allowed, EncodedRow)
    assert allowed.unrendered == {part}
    (complete,) = encode_rows([row], make_tokens(EVERYTHING), DataSection())
    assert isinstance(complete, EncodedRow)
    assert complete.unrendered == frozenset()


@pytest.mark.parametrize("role", ["system", "developer", "user", "tool"])
def test_a_turn_that_is_not_printed(role: str, make_tokens: MakeTokens) -> None:
    skips = each_turn("{{ m.content if m.role != '" + role + "' }}")
    row = chat(
        Message("user", "First of all."), Message(role, "An additional remark."), ASKED, ANSWER
    )
    parts = {"developer": {"system": 1}, "user": {"content": 3}}
    assert lost_parts(skips, row, make_tokens) == parts.get(role, {role: 1})


def test_leaving_out_contents_is_no_advice(make_tokens: MakeTokens) -> None:
    (error,) = encode_rows([chat(ASKED, REASONED)], make_tokens(NOTHING), DataSection())
    assert isinstance(error, UnrenderedError)
    assert error.parts == {"content": 2, "reasoning_content": 1}
    assert error.hint == "a data.chat_template can print them"


def test_variables_that_the_template_reads_are_named(make_tokens: MakeTokens) -> None:
    thinks = each_turn("{{ m.reasoning_content if enable_thinking }}{{ m.content }}")
    (error,) = encode_rows([chat(ASKED, REASONED)], make_tokens(thinks), DataSection())
    assert isinstance(error, UnrenderedError)
    assert "; or set data.chat_template_kwargs (the template reads enable_thinking)" in str(
        error.hint
    )


def test_nothing_is_found_by_accident(make_tokens: MakeTokens) -> None:
    """Each of these texts occurs in what the template prints by itself."""
    row = chat(
        Message("system", "m"),
        Message("user", "a"),
        Message("assistant", "user"),
        tools=[{"name": "st"}],
    )
    assert lost_parts(NOTHING, row, make_tokens) == {"tools": 1, "system": 1, "content": 2}
    assert lost_parts(EVERYTHING, row, make_tokens) == {}


def test_each_text_needs_an_occurrence_of_its_own(make_tokens: MakeTokens) -> None:
    last_only = (
        "{% for m in messages %}{% if loop.index0 not in [0, 1] %}" + TURN % "{{ m.content }}"
    )
    last_only += "{% endif %}{% endfor %}" + PROMPT
    again = "Please repeat all of what you said."
    row = chat(
        Message("user", again),
        Message("assistant", again),
        Message("user", again),
        Message("assistant", again),
    )
    assert lost_parts(last_only, row, make_tokens, train_on=TrainOn.LAST_TURN) == {"content": 2}
    inside = chat(
        Message("user", "All of it, please, and then some."),
        Message("assistant", "please, and then some"),
    )
    assert lost_parts(each_turn("{{ m.content if m.role == 'user' }}"), inside, make_tokens) == {
        "content": 1
    }


def test_turns_are_looked_up_in_their_order(make_tokens: MakeTokens) -> None:
    reversed_ = "{% for m in messages[:-1] | reverse %}" + TURN % "{{ m.content }}" + "{% endfor %}"
    reversed_ += "{% for m in messages[-1:] %}" + TURN % "{{ m.content }}" + "{% endfor %}"
    row = chat(Message("user", "one"), Message("tool", "two"), Message("assistant", "three"))
    data = {"assistant_only_loss": False}
    assert lost_parts(reversed_, row, make_tokens, **data) == {"tool": 1}
    assert lost_parts(CONTENT_ONLY, row, make_tokens, **data) == {}


def test_system_turns_may_be_moved(make_tokens: MakeTokens) -> None:
    """Some templates print the system's text in the last turn of the user."""
    moved = (
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'user' and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + PROMPT
    )
    row = chat(
        Message("system", "Brief."), Message("user", "Which bay?"), Message("assistant", "Nine.")
    )
    assert lost_parts(moved, row, make_tokens) == {}


TRANSLATED_TOOL = (
    "{{ t.function.name }}: {{ t.function.description }}"
    "{% for n, p in t.function.parameters.properties.items() %}{{ n }} {{ p.description }}"
    "{{ p.enum | join('|') }}{% endfor %}"
)
CALL_FORMS = {
    "JSON": "{{ c.function | tojson }}",
    "JSON, indented": "{{ c.function | tojson(indent=4) }}",
    "JSON, ASCII, sorted": "{{ c.function | tojson(ensure_ascii=True, sort_keys=True) }}",
    "text of an object": "{{ c.function }}",
    "Python": "{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}, {% endfor %})",
    "XML": "<{{ c.function.name }}>{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v | e }}{% endfor %}",
    "trimmed": "{{ c.function.name | trim }}{% for k, v in c.function.arguments.items() %}{{ k }}"
    "{{ v | trim if v is string else v | tojson }}{% endfor %}",
}


@pytest.mark.parametrize("form", CALL_FORMS)
def test_arguments_are_found_however_they_are_written(form: str, make_tokens: MakeTokens) -> None:
    template = each_turn(
        "{{ m.content }}{% for c in m.tool_calls or [] %}" + CALL_FORMS[form] + "{% endfor %}"
    )
    values = {
        "path": 'C:\\new "file" for Ülé & <co> isn\'t it',
        "text": " a line\n\tand another one ",
        "x": 3,
        "part": 0.5,
        "sure": True,
        "none": None,
        "deep": {"list": ["é", [-1, "b"]]},
    }
    call = replace(CALL, tool_calls=(ToolCall("f", values), ToolCall("f", values)))
    assert lost_parts(template, chat(ASKED, call), make_tokens) == {}
    once = template.replace("in m.tool_calls or []", "in (m.tool_calls or [])[:1]")
    assert lost_parts(once, chat(ASKED, call), make_tokens) == {"tool_calls": 18}


@pytest.mark.parametrize(
    ("printed", "count"),
    [("v is string", 4), ("v is number", 2), ("v is boolean", 4)],
    ids=["texts", "numbers", "booleans"],
)
def test_a_single_argument_that_is_left_out(
    printed: str, count: int, make_tokens: MakeTokens
) -> None:
    template = each_turn(
        "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
        "{% for k, v in c.function.arguments.items() if "
        + printed
        + " %} {{ k }}: {{ v }}{% endfor %}{% endfor %}"
    )
    assert lost_parts(template, chat(ASKED, CALL), make_tokens) == {"tool_calls": count}


@pytest.mark.parametrize(
    ("printed", "count"),
    [
        ("{{ t.function.name }}", 6),
        ("{{ t.function.name }}: {{ t.function.description }}", 4),
        (
            "{{ t.function.name }}: {{ t.function.description | indent(8) }}{{ t.function.parameters | tojson }}",
            0,
        ),
        (TRANSLATED_TOOL, 0),
    ],
    ids=["names", "without parameters", "all", "translated"],
)
def test_tools(printed: str, count: int, make_tokens: MakeTokens) -> None:
    template = "{% for t in tools %}" + printed + "{% endfor %}" + CONTENT_ONLY
    flat = "{% for t in tools %}{{ t | tojson }}{% endfor %}" + CONTENT_ONLY
    row = chat(ASKED, ANSWER, tools=[STOCK])
    assert lost_parts(template, row, make_tokens) == ({"tools": count} if count else {})
    assert lost_parts(flat, chat(ASKED, ANSWER, tools=[STOCK["function"]]), make_tokens) == {}  # type: ignore[list-item]


def test_reasoning_of_earlier_turns_is_in_the_text_of_its_own_turn(make_tokens: MakeTokens) -> None:
    row = chat(
        ASKED,
        REASONED,
        Message("user", "And of the other one?"),
        replace(REASONED, content="None."),
    )
    tokens = make_tokens(CUTS_EARLIER_REASONING)
    first, second = encode(row, tokens, DataSection())
    assert "Two shelves" in tokens.text(first.ids)
    assert tokens.text(second.ids).count("Two shelves") == 1
    assert "<think>\n\n</think>" not in tokens.text(first.ids) + tokens.text(second.ids)
    reasoning = {"reasoning_content": 1}
    for kept in (True, False):
        untrained = chat(row.messages[0], replace(row.messages[1], train=kept), *row.messages[2:])
        data = {"train_on": TrainOn.LAST_TURN} if kept else {}
        assert lost_parts(CUTS_EARLIER_REASONING, untrained, make_tokens, **data) == reasoning
    with pytest.raises(DataError, match="renders a turn differently"):
        encode(row, tokens, DataSection(split_turns=SplitTurns.NEVER))
    assert (
        lost_parts(CUTS_EARLIER_REASONING, row, make_tokens, assistant_only_loss=False) == reasoning
    )


def test_reasoning_in_tags_may_be_spaced_anew_but_not_cut(make_tokens: MakeTokens) -> None:
    spaced = each_turn(
        "{% if '</think>' in m.content %}<think>\n{{ m.content.split('</think>')[0].split('<think>')[-1] | trim }}"
        "\n</think>\n\n{{ m.content.split('</think>')[-1] | trim }}{% else %}{{ m.content }}{% endif %}"
    )
    cut = each_turn("{{ m.content.split('</think>')[-1] }}")
    for thought in ("Two shelves, and three units.", "a"):
        row = chat(ASKED, Message("assistant", f"<think>{thought}</think>Five of them remain."))
        assert lost_parts(spaced, row, make_tokens) == {}
        assert lost_parts(cut, row, make_tokens) == {"reasoning_content": 1}
    quoted = chat(Message("user", "What does </think> mean?"), ANSWER)
    assert lost_parts(CONTENT_ONLY, quoted, make_tokens) == {}


def test_a_text_of_which_a_template_demands_a_form_is_refused_and_the_others_are_looked_up(
    make_tokens: MakeTokens,
) -> None:
    """Whether "f" is printed, or is the first letter of something else, cannot be told."""
    strict = EVERYTHING.replace(
        "{{ c.function.name }}",
        "{% if c.function.name != 'f' %}{{ raise_exception('name') }}{% endif %}{{ c.function.name }}",
    )
    row = chat(ASKED, Message("assistant", "", tool_calls=(ToolCall("f", {"x": 12345}),)))
    assert lost_parts(EVERYTHING, row, make_tokens) == {}
    assert lost_parts(strict, row, make_tokens) == {"tool_calls": 1}
    counted = strict.replace("arguments | tojson", "arguments | length")
    assert lost_parts(counted, row, make_tokens) == {"tool_calls": 3}


def test_texts_that_a_template_demands_as_they_are_are_refused_if_short(
    make_tokens: MakeTokens,
) -> None:
    """It takes each marker alone, and not two of them."""
    demanding = "{% if 'user' not in messages | map(attribute='content') | list and "
    demanding += "'m' not in messages | map(attribute='content') | list %}{{ raise_exception('x') }}{% endif %}"
    row = chat(Message("user", "user"), Message("assistant", "m"), ASKED, ANSWER)
    assert lost_parts(demanding + CONTENT_ONLY, row, make_tokens) == {"content": 2}
    assert lost_parts(CONTENT_ONLY, row, make_tokens) == {}


def test_both_sides_of_a_pair_are_looked_up(make_tokens: MakeTokens) -> None:
    sides = [
        replace(chat(ASKED, answer), prompt_messages=1)
        for answer in (ANSWER, replace(REASONED, content="No."))
    ]
    pair = PreferenceRow("d.jsonl", 3, *sides)
    assert lost_parts(CONTENT_ONLY, pair, make_tokens) == {"reasoning_content": 1}
    allowing = DataSection(allow_unrendered=(RowPart.REASONING_CONTENT,))
    (allowed,) = encode_rows([pair], make_tokens(CONTENT_ONLY), allowing)
    assert isinstance(allowed, EncodedRow)
    assert allowed.unrendered == {RowPart.REASONING_CONTENT}


def test_the_error_quotes_nothing(make_tokens: MakeTokens) -> None:
    row = chat(ASKED, CALL, RESULT, REASONED, tools=[STOCK])
    (error,) = encode_rows([row], make_tokens(NOTHING), DataSection(max_length=4000))
    assert isinstance(error, UnrenderedError)
    shown = f"{error} {error.hint} {error.field}"
    for text in ("stock_of", "sku", "Zeta", "shel", "left", "units"):
        assert text not in shown


# nothing but an end


@pytest.mark.parametrize("blank", ["", " ", "\n\n", "<|im_end|>", " <|im_end|>"])
@pytest.mark.parametrize("template", [CONTENT_ONLY, EVERYTHING], ids=["content only", "everything"])
def test_a_turn_that_says_nothing_is_not_trained_on(
    blank: str, template: str, make_tokens: MakeTokens
) -> None:
    tokens = make_tokens(template)
    empty = Message("assistant", blank)
    for row, turn in (
        (chat(ASKED, empty), 1),
        (chat(ASKED, ANSWER, ASKED, empty), 3),
        (replace(chat(ASKED, empty), prompt_messages=1), 1),
    ):
        with pytest.raises(DataError, match="says nothing") as caught:
            encode(row, tokens, DataSection())
        assert (caught.value.code, caught.value.field) == (
            ErrorCode.DATASET_NOT_TRAINABLE,
            f"messages[{turn}]",
        )
        assert "train: false" in str(caught.value.hint)
    context = chat(ASKED, replace(empty, train=False), ASKED, ANSWER)
    assert len(encode(context, tokens, DataSection())) == 1


@pytest.mark.parametrize("blank", [" ", "\n", "<|im_end|>", " \n<|im_end|>"])
def test_a_text_or_completion_of_nothing_but_an_end_is_refused(
    blank: str, make_tokens: MakeTokens
) -> None:
    tokens = make_tokens(CONTENT_ONLY)
    good, bad = (
        CompletionRow("d", 0, "a prompt", " an answer"),
        CompletionRow("d", 0, "a prompt", blank),
    )
    for row, field in (
        (bad, "completion"),
        (TextRow("d", 0, blank), "text"),
        (PreferenceRow("d", 0, bad, good), "chosen"),
        (PreferenceRow("d", 0, good, bad), "rejected"),
    ):
        (error,) = encode_rows([row], tokens, DataSection())
        assert isinstance(error, DataError)
        assert (error.code, error.field) == (ErrorCode.DATASET_NOT_TRAINABLE, field)
        assert error.found in ("an end of turn alone", "none")


def test_a_turn_whose_parts_are_all_left_out_is_refused_although_they_are_allowed(
    make_tokens: MakeTokens,
) -> None:
    scaffold = CUTS_EARLIER_REASONING.replace("{{ m.reasoning_content or '' }}", "")
    allowed = DataSection(allow_unrendered=tuple(RowPart))
    for template in (CONTENT_ONLY, scaffold, NOTHING):
        with pytest.raises(DataError, match="says nothing"):
            encode(chat(ASKED, CALL), make_tokens(template), allowed)
