"""Each kind of row becomes its one shape; what does not fit is refused by field, type and length."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainer.data.rows import (
    ROW_KINDS,
    ChatRow,
    CompletionRow,
    Message,
    PreferenceRow,
    Row,
    RowLocation,
    RowSchema,
    TextRow,
    ToolCall,
    UnpairedPreferenceRow,
    parse_row,
)
from trainer.errors import DataError, ErrorCode
from trainer.spec.data_section import FORMAT_COLUMNS, RowFormat

CANARY = "canary-7f3a9c"


def row(document: object, shape: RowSchema | None = None) -> Row:
    return parse_row(json.dumps(document).encode(), file="f", index=7, schema=shape or RowSchema())


def messages(document: object) -> tuple[Message, ...]:
    found = row(document)
    assert isinstance(found, ChatRow)
    return found.messages


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


CALL = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"x": 1}}}


def test_no_object_is_of_two_kinds() -> None:
    for name, kind in ROW_KINDS.items():
        for keys in (frozenset(kind.required), kind.columns):
            assert [other for other, one in ROW_KINDS.items() if one.admits(keys)] == [name]


def test_the_job_spec_names_every_kind_and_every_column() -> None:
    assert {"auto", *ROW_KINDS} == set(RowFormat)
    assert {name: frozenset(columns) for name, columns in FORMAT_COLUMNS.items()} == {
        name: kind.columns for name, kind in ROW_KINDS.items()
    }
    assert all(set(kind.json_columns) <= kind.columns for kind in ROW_KINDS.values())


def test_content_may_be_a_list_of_text_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]
    assert messages({"messages": [{"role": "developer", "content": parts}]}) == (
        Message("developer", "a b"),
    )


@pytest.mark.parametrize("arguments", [{"x": 1}, '{"x": 1}'])
def test_calls_of_tools(arguments: object) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    found = row(
        {
            "messages": [
                user("a"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [call],
                    "reasoning_content": "hm",
                },
                {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "2"},
                said("b"),
            ],
            "tools": [{"type": "function", "function": {"name": "f"}}],
        }
    )
    assert isinstance(found, ChatRow)
    assert found.messages[1] == Message(
        "assistant", "", reasoning_content="hm", tool_calls=(ToolCall("f", {"x": 1}, "c1"),)
    )
    assert found.messages[2] == Message("tool", "2", tool_call_id="c1", name="f")
    assert found.tools == ({"type": "function", "function": {"name": "f"}},)
    assert found.texts == ("a", "", "2", "b", "hm")


def test_tools_may_be_json_text_and_none_are_none() -> None:
    chat = {"messages": [user("a")]}
    empty: tuple[object, ...] = ([], "", "[]", None)
    for tools in empty:
        assert row({**chat, "tools": tools}) == row(chat)
    named = row({**chat, "tools": '[{"name": "f"}]'})
    assert isinstance(named, ChatRow)
    assert named.tools == ({"name": "f"},)


@pytest.mark.parametrize(
    ("key", "value", "train"), [("weight", 0, False), ("weight", 1, True), ("train", False, False)]
)
def test_a_turn_may_be_left_untrained(key: str, value: object, train: bool) -> None:
    assert messages({"messages": [user("a"), {**said("b"), key: value}]})[1].train is train
    shared = {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "gpt", "value": "b", key: value},
        ]
    }
    assert messages(shared)[1].train is train


def test_sharegpt_becomes_messages() -> None:
    turns = [
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "b"},
    ]
    assert messages({"conversations": turns, "system": "s", "tools": '[{"name": "f"}]'}) == (
        Message("system", "s"),
        Message("user", "a"),
        Message("assistant", "", tool_calls=(ToolCall("f", {"x": 1}),)),
        Message("tool", "2"),
        Message("assistant", "b"),
    )
    several = {"from": "function_call", "value": '[{"name": "f"}, {"name": "g"}]'}
    assert [
        call.name for call in messages({"conversations": [turns[0], several]})[1].tool_calls
    ] == ["f", "g"]
    assert messages({"conversations": [user("a"), said("b")]}) == messages(
        {"messages": [user("a"), said("b")]}
    )


def test_alpaca_becomes_messages() -> None:
    plain = {"instruction": "do", "output": "done"}
    assert messages(plain) == (Message("user", "do"), Message("assistant", "done"))
    assert messages({**plain, "input": ""}) == messages(plain)
    assert messages({**plain, "input": "x", "system": "s", "history": [["q", "a"]]}) == (
        Message("system", "s"),
        Message("user", "q"),
        Message("assistant", "a", train=False),
        Message("user", "do\nx"),
        Message("assistant", "done"),
    )


def test_a_conversational_completion_knows_its_prompt() -> None:
    found = row({"prompt": [user("a")], "completion": [said("b")]})
    assert found == ChatRow(
        "f", 7, (Message("user", "a"), Message("assistant", "b")), prompt_messages=1
    )


def test_preferences() -> None:
    text = row({"prompt": "p", "chosen": " a", "rejected": " b"})
    assert text == PreferenceRow(
        "f", 7, CompletionRow("f", 7, "p", " a"), CompletionRow("f", 7, "p", " b")
    )
    chats = {"prompt": [user("p")], "chosen": [said("a")], "rejected": [said("b")]}
    found = row(chats)
    assert isinstance(found, PreferenceRow)
    assert found.chosen == ChatRow(
        "f", 7, (Message("user", "p"), Message("assistant", "a")), prompt_messages=1
    )
    whole = {"chosen": [user("p"), said("a")], "rejected": [user("p"), said("b")]}
    assert row(whole) == found
    assert found.kind_name == "preference"
    assert found.texts == ("p", "a", "p", "b")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "answers"),
    [
        ("Q: x\nA: yes", "Q: x\nA: no", "Q: x\nA:", (" yes", " no")),
        ("Q  yet", "Q  you", "Q", ("  yet", "  you")),
    ],
)
def test_a_prompt_that_is_left_out_is_what_both_begin_with(
    chosen: str, rejected: str, prompt: str, answers: tuple[str, str]
) -> None:
    found = row({"chosen": chosen, "rejected": rejected})
    assert isinstance(found, PreferenceRow)
    sides = (found.chosen, found.rejected)
    assert all(isinstance(side, CompletionRow) and side.prompt == prompt for side in sides)
    assert tuple(side.completion for side in sides if isinstance(side, CompletionRow)) == answers


def bad(**fields: Any) -> dict[str, Any]:
    return fields


BAD = [
    (bad(messages=[{**said("a"), "weight": 0.5}]), "messages[0].weight", "a number"),
    (bad(messages=[{**said("a"), "weight": 0, "train": False}]), "messages[0].weight", "a number"),
    (bad(messages=[{**user("a"), "train": True}]), "messages[0].train", "true or false"),
    (bad(messages=[{**user("a"), "tool_calls": [CALL]}]), "messages[0].tool_calls", "a list of 1"),
    (bad(messages=[{**user("a"), "reasoning_content": CANARY}]), "messages[0].reasoning_content", "13 characters"),
    (bad(messages=[{"role": "assistant", "content": None}]), "messages[0].content", "null"),
    (bad(messages=[{"role": "user", "content": []}]), "messages[0].content", "a list of 0"),
    (bad(messages=[{"role": "user", "content": [{"type": "image"}]}]), "messages[0].content[0]", "1 keys"),
    (
        bad(messages=[{"role": "assistant", "tool_calls": [{"name": CANARY, "x": 1}]}]),
        "messages[0].tool_calls[0]",
        "2 keys",
    ),
    (
        bad(messages=[{"role": "assistant", "tool_calls": [{"name": "f", "arguments": CANARY}]}]),
        "messages[0].tool_calls[0].arguments",
        "13 characters",
    ),
    (
        bad(messages=[{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": "\ud800"}}]}]),
        "messages[0].tool_calls[0].arguments",
        "1 characters",
    ),
    (bad(messages=[user("a")], tools=CANARY), "tools", "13 characters"),
    (bad(messages=[user("a")], tools=[CANARY]), "tools[0]", "13 characters"),
    (bad(conversations=[{"from": CANARY, "value": "x"}]), "conversations[0].from", "13 characters"),
    (bad(conversations=[{"from": "gpt", "value": 1}]), "conversations[0].value", "a number"),
    (bad(conversations=[{"from": "gpt"}]), "conversations[0]", "1 keys"),
    (bad(conversations=[{"from": "function_call", "value": CANARY}]), "conversations[0].value", "13 characters"),
    (bad(conversations=[{"from": "function_call", "value": "[]"}]), "conversations[0].value", "a list of 0"),
    (bad(instruction="a", output=""), "output", "0 characters"),
    (bad(instruction="a", output="b", history=[[CANARY]]), "history[0]", "a list of 1"),
    (bad(instruction="a", output="b", history=CANARY), "history", "13 characters"),
    (bad(prompt=[user("a")], completion=CANARY), "prompt", "a list of 1"),
    (bad(prompt="a", completion=[said(CANARY)]), "completion", "a list of 1"),
    (bad(prompt=[user("a")], completion=[user(CANARY)]), "completion", "none"),
    (bad(prompt="a", completion="b", tools=[{}]), "tools", "a list"),
    (bad(prompt="a", chosen=CANARY, rejected=CANARY), "rejected", "the same"),
    (bad(chosen=CANARY, rejected="x"), "chosen", "none"),
    (bad(chosen=[said(CANARY)], rejected=[said("x")]), "chosen", "none"),
    (bad(chosen=CANARY, rejected=[said("x")]), "rejected", "a list of 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "field", "found"), BAD, ids=[str(number) for number in range(len(BAD))]
)
def test_what_does_not_fit_is_named_but_never_quoted(
    document: object, field: str, found: str
) -> None:
    with pytest.raises(DataError) as caught:
        row(document)
    error = caught.value
    assert (error.code, error.row, error.field) == (ErrorCode.DATASET_ROW_INVALID, 7, field)
    shown = f"{error} {error.args} {error.expected} {error.found} {error.hint}"
    shown += f" {error.__cause__} {error.__context__}"
    assert CANARY not in shown
    assert found in shown


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_column_beside_a_system_turn_is_refused(role: str) -> None:
    turns = [
        {"from": role, "value": CANARY},
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "b"},
    ]
    with pytest.raises(DataError, match="two system messages") as caught:
        row({"conversations": turns, "system": "Be brief."})
    assert caught.value.field == "system"
    assert CANARY not in str(caught.value)
    assert row({"conversations": turns, "system": ""}) == row({"conversations": turns})


def test_rows_do_not_show_their_text() -> None:
    documents: list[object] = [
        {
            "messages": [
                {"role": "assistant", "reasoning_content": CANARY, "tool_calls": [{"name": CANARY}]}
            ]
        },
        {"messages": [{**user(CANARY), "name": CANARY}], "tools": [{"name": CANARY}]},
        {"prompt": CANARY, "chosen": CANARY, "rejected": "x"},
    ]
    assert all(CANARY not in repr(row(document)) for document in documents)


def test_text_is_text() -> None:
    assert row({"text": "a"}) == TextRow("f", 7, "a")


def sides(found: Row) -> tuple[tuple[Message, ...], tuple[Message, ...], int]:
    """The turns of both sides of a pair of conversations, and how many of them are the prompt."""
    assert isinstance(found, PreferenceRow)
    assert isinstance(found.chosen, ChatRow)
    assert isinstance(found.rejected, ChatRow)
    assert found.chosen.prompt_messages == found.rejected.prompt_messages
    return found.chosen.messages, found.rejected.messages, found.chosen.prompt_messages


ASKED, YES, NO = Message("user", "p"), Message("assistant", "a"), Message("assistant", "b")
WHOLE = {"chosen": [user("p"), said("a")], "rejected": [user("p"), said("b")]}


@pytest.mark.parametrize(
    "document",
    [
        WHOLE,
        {**WHOLE, "prompt": "p"},
        {**WHOLE, "prompt": " p\n"},
        {**WHOLE, "prompt": [user("p")]},
        {**WHOLE, "prompt": None},
        {"prompt": [user("p")], "chosen": [said("a")], "rejected": [said("b")]},
        {
            "conversations": [{"from": "human", "value": "p"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        {"conversations": [user("p")], "chosen": said("a"), "rejected": said("b")},
        {"messages": [user("p"), said("a")], "rejected_response": "b"},
        {"instruction": "p", "chosen": "a", "rejected": "b"},
        {"instruction": "p", "input": "", "chosen": "a", "rejected": "b", "history": None},
    ],
)
def test_every_shape_of_a_pair_of_conversations_is_read(document: dict[str, object]) -> None:
    assert sides(row(document)) == ((ASKED, YES), (ASKED, NO), 1)
    with_system = sides(row({**document, "system": "s"}))
    assert with_system == (
        (Message("system", "s"), ASKED, YES),
        (Message("system", "s"), ASKED, NO),
        2,
    )


def test_an_instruction_with_two_answers_has_the_prompt_of_one_with_one_answer() -> None:
    prompt = {"instruction": "p", "input": "more", "history": [["q", "r"]], "system": "s"}
    single = row({**prompt, "output": "a"})
    assert isinstance(single, ChatRow)
    chosen, rejected, count = sides(row({**prompt, "chosen": "a", "rejected": "b"}))
    assert chosen == single.messages
    assert (rejected[:count], rejected[count:]) == (single.messages[:-1], (NO,))


def test_a_prompt_may_hold_several_turns_in_every_shape() -> None:
    before = [user("p"), said("x"), user("q")]
    for document in (
        {"chosen": [*before, said("a")], "rejected": [*before, said("b")], "prompt": "p"},
        {"messages": [*before, said("a")], "rejected_response": "b"},
        {"conversations": before, "chosen": said("a"), "rejected": said("b")},
    ):
        assert sides(row(document))[2] == 3


def test_text_beside_a_system_text_is_a_conversation() -> None:
    pair = sides(row({"system": "s", "prompt": "p", "chosen": "a", "rejected": "b"}))
    assert pair == ((Message("system", "s"), ASKED, YES), (Message("system", "s"), ASKED, NO), 2)
    found = row({"system": "", "prompt": "p", "completion": "a", "tools": [{"name": "f"}]})
    assert found == ChatRow("f", 7, (ASKED, YES), ({"name": "f"},), prompt_messages=1)


@pytest.mark.parametrize(
    ("document", "field", "hint"),
    [
        ({**WHOLE, "prompt": CANARY}, "prompt", "data.ignore_columns"),
        ({**WHOLE, "prompt": "p", "conversations": [user("p")]}, None, None),
        ({**WHOLE, "messages": [user("p")]}, None, "data.ignore_columns"),
        (
            {
                "messages": [user("p"), said("a")],
                "rejected_response": "b",
                "chosen": [said(CANARY)],
            },
            None,
            None,
        ),
        (
            {"messages": [user("p"), said(CANARY)], "rejected_response": ""},
            "rejected_response",
            None,
        ),
        ({"messages": [user("p"), said(CANARY)], "rejected_response": CANARY}, "rejected", None),
        ({"messages": [said("a"), user(CANARY)], "rejected_response": "b"}, "messages", None),
        ({"messages": [said(CANARY)], "rejected_response": "b"}, "messages", None),
        (
            {"prompt": "p", "input": CANARY, "chosen": "a", "rejected": "b"},
            "input",
            "data.ignore_columns",
        ),
        ({**WHOLE, "history": [[CANARY, "b"]]}, "history", "data.ignore_columns"),
        (
            {"instruction": "p", "prompt": CANARY, "chosen": "a", "rejected": "b"},
            None,
            "data.ignore_columns",
        ),
        ({"instruction": "p", "chosen": [said(CANARY)], "rejected": [said("b")]}, "chosen", None),
        ({"instruction": "p", "chosen": "", "rejected": CANARY}, "chosen", None),
        ({"conversations": [user("p")], "chosen": said(CANARY), "rejected": "b"}, "rejected", None),
        (
            {"conversations": [user("p")], "chosen": user(CANARY), "rejected": said("b")},
            "chosen",
            None,
        ),
    ],
)
def test_other_mixtures_of_these_shapes_are_refused(
    document: dict[str, object], field: str | None, hint: str | None
) -> None:
    with pytest.raises(DataError) as caught:
        row(document)
    error = caught.value
    assert (error.code, error.field) == (ErrorCode.DATASET_ROW_INVALID, field)
    assert CANARY not in f"{error} {error.hint} {error.__context__}"
    assert hint is None or hint in str(error.hint)


@pytest.mark.parametrize("empty", [None, "", [], {}], ids=repr)
def test_keys_of_messages_without_a_value_are_nothing(empty: object) -> None:
    plain = {"messages": [user("a"), {**said("b"), "reasoning_content": "hm"}]}
    for message in plain["messages"]:
        assert isinstance(message, dict)
    logged = {
        "messages": [{**message, "refusal": empty, "audio": empty} for message in plain["messages"]]
    }
    assert row(logged) == row(plain)
    shared = {
        "conversations": [
            {"from": "human", "value": "a", "seen": empty},
            {"from": "gpt", "value": "b"},
        ]
    }
    assert messages(shared) == (Message("user", "a"), Message("assistant", "b"))


@pytest.mark.parametrize("value", [0, False, 0.5, CANARY])
def test_other_keys_of_messages_are_refused_unless_they_are_left_out_by_name(value: object) -> None:
    for document in (
        {"messages": [user("a"), {**said("b"), "loss": value}]},
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b", "loss": value},
            ]
        },
        {"prompt": [user("a")], "completion": [{**said("b"), "loss": value}]},
        {
            "conversations": [user("a")],
            "chosen": {**said("b"), "loss": value},
            "rejected": said("c"),
        },
    ):
        with pytest.raises(DataError, match="1 other keys") as caught:
            row(document)
        assert "data.ignore_message_keys" in str(caught.value.hint)
        assert CANARY not in f"{caught.value} {caught.value.hint}"
        found = row(document, RowSchema(ignored_message_keys=frozenset({"loss", "id"})))
        assert found.ignored_keys == 1


def test_keys_of_a_call_that_are_not_read_are_refused() -> None:
    call = {"id": "c", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"}}
    assert messages(
        {"messages": [user("a"), {"role": "assistant", "tool_calls": [{**call, "note": None}]}]}
    )[1]
    with pytest.raises(DataError, match="wrong keys") as caught:
        row({"messages": [user("a"), {"role": "assistant", "tool_calls": [{**call, "note": "x"}]}]})
    assert caught.value.field == "messages[1].tool_calls[0]"


@pytest.mark.parametrize(
    ("keys", "reasoning"),
    [
        ({"thinking": "hm"}, "hm"),
        ({"thinking": "hm", "reasoning_content": "hm"}, "hm"),
        ({"thinking": "", "reasoning_content": "hm"}, "hm"),
        ({"thinking": "hm", "reasoning_content": None}, "hm"),
        ({"thinking": None}, None),
    ],
)
def test_thinking_is_another_name_of_reasoning_content(
    keys: dict[str, str], reasoning: str | None
) -> None:
    assert (
        messages({"messages": [user("a"), {**said("b"), **keys}]})[1].reasoning_content == reasoning
    )


def test_two_thoughts_for_one_turn_are_refused() -> None:
    with pytest.raises(DataError, match="the text of reasoning_content") as caught:
        row(
            {
                "messages": [
                    user("a"),
                    {**said("b"), "thinking": CANARY, "reasoning_content": "other"},
                ]
            }
        )
    assert caught.value.field == "messages[1].thinking"
    assert CANARY not in str(caught.value)
    with pytest.raises(DataError, match=r"messages\[0\]\.thinking"):
        row({"messages": [{**user("a"), "thinking": "hm"}, said("b")]})


@pytest.mark.parametrize(
    "document",
    [
        {"messages": [user("a"), said("b")]},
        {"conversations": [user("a"), said("b")]},
        {"instruction": "a", "output": "b"},
        {"prompt": [user("a")], "completion": [said("b")]},
        {"system": "s", "prompt": "a", "completion": "b"},
    ],
)
def test_a_conversation_has_arguments_for_its_template(document: dict[str, object]) -> None:
    arguments = {
        "enable_thinking": False,
        "reasoning_effort": "low",
        "budget": 3,
        "skills": ["x"],
        "unset": None,
    }
    found = row({**document, "chat_template_kwargs": arguments})
    assert isinstance(found, ChatRow)
    assert found.template_arguments == {
        "enable_thinking": False, "reasoning_effort": "low", "budget": 3, "skills": ("x",)
    }  # fmt: skip
    assert row({**document, "chat_template_kwargs": {}}) == row(document)


@pytest.mark.parametrize(
    "arguments",
    [
        [CANARY],
        {"messages": CANARY},
        {"bos_token": CANARY},
        {"add_generation_prompt": True},
        {"a": 1.5},
        {"a": {CANARY: 1}},
        {"a": [CANARY, 1]},
        {"a": "\ud800"},
    ],
)
def test_arguments_that_no_template_may_be_given_are_refused(arguments: object) -> None:
    with pytest.raises(DataError) as caught:
        row({"messages": [user("a"), said("b")], "chat_template_kwargs": arguments})
    assert (caught.value.code, caught.value.field) == (
        ErrorCode.DATASET_ROW_INVALID,
        "chat_template_kwargs",
    )
    assert CANARY not in str(caught.value)


def test_plain_text_has_no_arguments() -> None:
    with pytest.raises(DataError, match="none beside plain text"):
        row({"prompt": "a", "completion": "b", "chat_template_kwargs": {"a": 1}})


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": "a", "completion": "b"},
        {"prompt": [user("a")], "completion": [said("b")]},
        {"messages": [user("a"), said("c"), user("d"), said("b")]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"instruction": "a", "output": "b"},
    ],
    ids=lambda document: next(iter(document)),
)
@pytest.mark.parametrize("label", [True, False])
def test_an_answer_with_a_label_is_judged_by_its_last_turn(
    document: dict[str, object], label: bool
) -> None:
    found = row({**document, "label": label})
    assert isinstance(found, UnpairedPreferenceRow)
    assert found.label is label
    if isinstance(found.answer, ChatRow):
        assert found.answer.prompt_messages == len(found.answer.messages) - 1
    assert "label" not in repr(found)


@pytest.mark.parametrize(
    ("document", "field", "expected"),
    [
        ({"prompt": "a", "completion": "b", "label": 1}, "label", "true for a desirable answer"),
        (
            {"prompt": "a", "completion": "b", "label": CANARY},
            "label",
            "true for a desirable answer",
        ),
        ({"prompt": "a", "completion": "b", "label": None}, "label", "true for a desirable answer"),
        ({"prompt": "a", "label": True}, "label", "prompt and completion"),
        (
            {"messages": [user("a"), said("b"), user(CANARY)], "label": True},
            "label",
            "the assistant's answer",
        ),
        ({"messages": [said("b")], "label": True}, "label", "the assistant's answer"),
    ],
)
def test_a_label_that_judges_nothing_is_refused(
    document: dict[str, object], field: str, expected: str
) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        row(document)
    assert caught.value.field == field
    assert CANARY not in str(caught.value)


def test_a_cell_of_text_holds_a_label_as_a_word() -> None:
    cells = {"prompt": "a", "completion": "b", "label": "True"}
    found = RowSchema().parse_row(RowLocation("f.csv", 0), cells)
    assert isinstance(found, UnpairedPreferenceRow)
    assert found.label is True
