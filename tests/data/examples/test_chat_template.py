"""What a template reads, in which form it is given what, and where its turns end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from trainer.data.examples.example_set import build_dataset, check_trainable
from trainer.data.examples.held_out import seed_split_key
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import encode
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
from trainer.errors import DataError, ErrorCode, UsageError
from trainer.spec import DataSection, SplitTurns

MakeTokens = Callable[..., ModelTokenizer]
DATA = DataSection(max_length=2000)
CANARY = "canary-90ad"

SWITCHED = (
    "{% if effort is not defined %}{% set effort = 'low' %}{% endif %}"
    "{% macro opened() %}<|im_start|>assistant\n{% if not quick %}<think>{% endif %}{% endmacro %}"
    "{{ bos_token }}{{ 'effort ' + effort + ' on ' + date_string | default(strftime_now('%Y')) }}\n"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|im_start|>assistant\n{% else %}<|im_start|>{{ m.role }}\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}{{ opened() }}{% endif %}"
)


def chat(*said: str, **more: object) -> ChatRow:
    roles = ("user", "assistant")
    turns = tuple(Message(roles[number % 2], text) for number, text in enumerate(said))
    return replace(ChatRow("f", 2, turns), **more)  # type: ignore[arg-type]


def texts(row: Row, tokens: ModelTokenizer, data: DataSection = DATA) -> list[tuple[str, str]]:
    """What is trained on of each example of a row, and all of the example up to it."""
    found = []
    for example in encode(row, tokens, data):
        start = example.trained.index(1)
        assert all(example.trained[start:]) or row.kind_name == "messages"
        trained = [id_ for id_, flag in zip(example.ids, example.trained, strict=True) if flag]
        found.append((tokens.text(example.ids[:start]), tokens.text(trained)))
    return found


# variables


def test_the_variables_that_a_template_reads(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(SWITCHED, bos="<s>")
    assert tokens.template.variables == {"effort", "quick", "date_string"}
    assert tokens.template.unread({"effort": "high", "efort": "high"}) == ["efort"]
    assert make_tokens("{{ messages[0].content }}").template.variables == frozenset()


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("{% if a is not defined %}{% set a = 1 %}{% endif %}{{ a }}", {"a"}),
        ("{% set a = a | default(1) %}{% set b = b or 2 %}{{ a + b }}", {"a", "b"}),
        (
            "{% for m in messages %}{% if m.name %}{% set said = m.name %}{% endif %}{{ said }}{% endfor %}",
            set(),
        ),
        (
            "{% for m in messages %}{% set text = m.content %}{% set text = text | trim %}{{ text }}{% endfor %}",
            set(),
        ),
        ("{% macro f(x) %}{{ x + y }}{% endmacro %}{{ f(1) }}{{ range(3) }}{{ eos_token }}", {"y"}),
    ],
)
def test_names_that_a_template_sets_itself_are_no_variables(
    text: str, variables: set[str], make_tokens: MakeTokens
) -> None:
    assert make_tokens(text).template.variables == variables


def test_arguments_of_the_job_reach_the_template_and_those_of_a_row_override_them(
    make_tokens: MakeTokens,
) -> None:
    with pytest.raises(DataError, match="opens the turn for generation in another way") as caught:
        encode(chat("a", "b"), make_tokens(SWITCHED), DATA)
    assert "data.chat_template_kwargs (the template reads date_string, effort, quick)" in str(
        caught.value.hint
    )
    tokens = make_tokens(
        SWITCHED, arguments={"quick": True, "effort": "some", "date_string": "May"}
    )
    assert texts(chat("a", "b"), tokens) == [
        (
            "effort some on May\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
            "b<|im_end|>",
        )
    ]
    own = chat("a", "b", template_arguments={"effort": "all"})
    assert texts(own, tokens)[0][0].startswith("effort all on May\n")
    pair = PreferenceRow(
        "f", 0, replace(own, prompt_messages=1), replace(own, messages=chat("a", "c").messages)
    )
    assert [before[:10] for before, _ in texts(pair, tokens)] == ["effort all"] * 2


@pytest.mark.parametrize("template", [SWITCHED, None], ids=["a template", "no template"])
def test_an_argument_of_the_job_that_is_never_read_is_refused(
    template: str | None, make_tokens: MakeTokens
) -> None:
    with pytest.raises(
        UsageError, match=r"data\.chat_template_kwargs: expected variables .* got quik"
    ) as caught:
        make_tokens(template, arguments={"quik": True})
    assert caught.value.code is ErrorCode.SPEC_INVALID
    assert "quick" in str(caught.value) or template is None


@pytest.mark.parametrize("paired", [False, True])
def test_an_argument_of_a_row_that_is_never_read_is_refused(
    paired: bool, make_tokens: MakeTokens
) -> None:
    tokens = make_tokens(SWITCHED)
    row: Row = chat("a", "b", template_arguments={"effort": "low", CANARY: True})
    if paired:
        assert isinstance(row, ChatRow)
        row = PreferenceRow("f", 2, row, row)
    with pytest.raises(DataError, match="does not read all arguments of the row") as caught:
        check_trainable(row, tokens, "dpo" if paired else "sft")
    error = caught.value
    assert (error.row, error.field, error.found) == (2, "chat_template_kwargs", "1 others")
    assert CANARY not in f"{error} {error.hint}"


# forms


REASONS = (
    "{% for m in messages %}{{ m.role + ':' }}{% if TEST %}{{ '[' + m.KEY + ']' }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("key", "test"),
    [
        ("thinking", "'thinking' in m"),
        ("thinking", "m['thinking']"),
        ("thinking", "m.get('thinking')"),
        ("reasoning_content", "m.reasoning_content is defined"),
        ("reasoning_content", "m.reasoning_content and 'thinking' not in m"),
    ],
)
def test_reasoning_is_given_under_the_name_that_the_template_reads(
    key: str, test: str, make_tokens: MakeTokens
) -> None:
    template = REASONS.replace("TEST", test).replace("KEY", key)
    turns = (Message("user", "a"), Message("assistant", "b", reasoning_content="hm"))
    assert make_tokens(template).template.render(turns, prompt=False) == "user:aassistant:[hm]b"


CALLS = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}{% set f = c.function %}"
    "{% if not c.id or c.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}"
    "({{ f.name }} BODY){% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("body", "printed"),
    [
        ("{{ f.arguments | tojson }}", '{"x": "å", "y": [1, true]}'),
        ("{{ f.arguments }}", '{"x": "å", "y": [1, true]}'),
        ("{{ '```' + f.arguments + '```' }}", '```{"x": "å", "y": [1, true]}```'),
        (
            "{{ f.arguments if f.arguments is string else f.arguments | tojson }}",
            '{"x": "å", "y": [1, true]}',
        ),
        (
            "{% for k, v in f.arguments.items() %}<{{ k }}>{{ v | tojson }}{% endfor %}",
            '<x>"å"<y>[1, true]',
        ),
        (
            "{% for k in f.arguments %}{{ k }}={{ f.arguments[k] | tojson }};{% endfor %}",
            'x="å";y=[1, true];',
        ),
    ],
)
def test_arguments_of_calls_are_printed_as_json(
    body: str, printed: str, make_tokens: MakeTokens
) -> None:
    call = ToolCall("f", {"x": "å", "y": [1, True]}, "123456789")
    turns = (Message("user", "a"), Message("assistant", "", tool_calls=(call,)))
    template = make_tokens(CALLS.replace("BODY", body)).template
    assert template.render(turns, prompt=False) == f"user:aassistant:(f {printed})"


def test_the_form_of_calls_is_found_out_once(
    make_tokens: MakeTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = make_tokens(CALLS.replace("BODY", "{{ f.arguments }}")).template
    turns = (
        Message("user", "a"),
        Message("assistant", "", tool_calls=(ToolCall("f", {}, "123456789"),)),
    )
    first = template.render(turns, prompt=False)
    monkeypatch.setattr("trainer.data.examples.chat_template.prints_probe_call", None)
    assert template.render(turns, prompt=False) == first


# ends of turns


NEXT_ROLE = (
    "{% for m in messages %}{{ '<s>' if m.role == 'tool' else '<User>' if m.role == 'user' else '<Assistant>' }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments | tojson }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<Assistant>\n{% endif %}"
)
NEXT_ROLE_STOPS = {"eos": "<|endoftext|>", "stop": ("<User>", "<s>")}


def test_the_stop_token_that_follows_a_turn_is_trained_with_it(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(NEXT_ROLE, **NEXT_ROLE_STOPS)
    call = Message("assistant", "", tool_calls=(ToolCall("f", {"x": 1}),))
    row = ChatRow(
        "f",
        0,
        (
            *chat("a", "b").messages,
            Message("user", "c"),
            call,
            Message("tool", "1"),
            *chat("", "d").messages[1:],
        ),
    )
    (example,) = encode(row, tokens, DATA)
    assert example.stops
    assert texts(row, tokens)[0][1] == 'b<User>f{"x": 1}<s>d<User>'
    for last, stop in ((row.messages[3], "<s>"), (Message("assistant", "e"), "<User>")):
        alone = ChatRow("f", 0, (Message("user", "c"), last))
        assert texts(alone, tokens)[0][1].endswith(stop)
    (everything,) = encode(chat("a", "b"), tokens, DataSection(assistant_only_loss=False))
    assert tokens.text(everything.ids).endswith("b<User>")


def test_turns_with_an_end_of_their_own_are_left_as_they_are(make_tokens: MakeTokens) -> None:
    ended = NEXT_ROLE.replace(
        "{{ m.content }}", "{{ m.content }}{{ '<|endoftext|>\\n' if m.role == 'assistant' }}"
    )
    assert (
        texts(chat("a", "b", "c", "d"), make_tokens(ended, **NEXT_ROLE_STOPS))[0][1]
        == "b<|endoftext|>d<|endoftext|>"
    )
    unlisted = make_tokens(NEXT_ROLE, eos="<|endoftext|>")
    assert texts(chat("a", "b"), unlisted) == [("<User>\na<Assistant>\n", "b")]


# system turns


SYSTEM_IN_LAST_USER_TURN = (
    "{% set system = messages[0].content if messages[0].role == 'system' %}"
    "{% for m in (messages[1:] if system else messages) %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ system + JOINT if system and loop.last }}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
BLANK_LINE = SYSTEM_IN_LAST_USER_TURN.replace("JOINT", r"'\n\n'")


def with_system(*said: str) -> ChatRow:
    return replace(chat(*said), messages=(Message("system", "S."), *chat(*said).messages))


@pytest.mark.parametrize("split", SplitTurns)
def test_a_system_text_is_trained_on_where_generation_is_given_it(
    split: SplitTurns, make_tokens: MakeTokens
) -> None:
    tokens = make_tokens(BLANK_LINE, eos="</s>")
    once = DataSection(split_turns=split)
    assert texts(with_system("a", "b"), tokens, once) == [("[INST] S.\n\na[/INST]", " b</s>")]
    pair = PreferenceRow(
        "f",
        0,
        replace(with_system("a", "b"), prompt_messages=2),
        replace(with_system("a", "c"), prompt_messages=2),
    )
    assert texts(pair, tokens) == [
        ("[INST] S.\n\na[/INST]", " b</s>"),
        ("[INST] S.\n\na[/INST]", " c</s>"),
    ]


def test_each_turn_is_given_the_system_text_as_generation_will_be(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(BLANK_LINE, eos="</s>")
    row = with_system("a", "b", "c", "d")
    found = texts(row, tokens)
    assert found == [
        ("[INST] S.\n\na[/INST]", " b</s>"),
        ("[INST] a[/INST] b</s>[INST] S.\n\nc[/INST]", " d</s>"),
    ]
    assert [before for before, _ in found] == [
        tokens.template.render(row.messages[:count], prompt=True) for count in (2, 4)
    ]


def test_a_system_text_that_cannot_be_placed_exactly_is_refused(make_tokens: MakeTokens) -> None:
    other = make_tokens(SYSTEM_IN_LAST_USER_TURN.replace("JOINT", "' | '"), eos="</s>")
    with pytest.raises(DataError, match="opens the turn for generation in another way"):
        encode(with_system("a", "b"), other, DATA)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_template_without_system_turns_is_named_as_such(
    role: str, make_tokens: MakeTokens
) -> None:
    template = (
        "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception(m.content) }}"
        "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    row = ChatRow("f", 2, (Message(role, CANARY), *chat("a", "b").messages))
    with pytest.raises(DataError, match="has no system turn") as caught:
        encode(row, make_tokens(template), DATA)
    assert "before the text of the first user turn" in str(caught.value.hint)
    assert CANARY not in f"{caught.value} {caught.value.hint}"
    with pytest.raises(DataError, match="refuses these messages"):
        encode(
            chat("a", "b", messages=(Message("tool", "a"), Message("assistant", "b"))),
            make_tokens(template),
            DATA,
        )


# remarks


def test_rows_without_the_template_and_keys_that_are_left_out_are_counted(
    make_tokens: MakeTokens,
) -> None:
    plain = CompletionRow("f", 0, "q", " a")
    rows: list[Row] = [
        plain,
        TextRow("f", 1, "some text"),
        replace(chat("a", "b"), ignored_keys=3),
        plain,
    ]
    data = DataSection(test_split_size=0)
    found = build_dataset(
        rows, make_tokens(SWITCHED, arguments={"quick": True}), data, split_key=seed_split_key(0)
    )
    assert any(
        "2 of 4 rows are trained on without the model's chat template" in text
        for text in found.warnings
    )
    assert "3 keys of messages were left out (data.ignore_message_keys)" in found.warnings
    quiet = build_dataset(rows[:2], make_tokens(None), data, split_key=seed_split_key(0))
    assert not any("template" in text for text in quiet.warnings)
    pairs: list[Row] = [PreferenceRow("f", 0, plain, replace(plain, completion=" b"))]
    paired = build_dataset(
        pairs, make_tokens(SWITCHED), data, split_key=seed_split_key(0), method="dpo"
    )
    assert any("1 of 1 rows" in text for text in paired.warnings)
    labelled: list[Row] = [
        UnpairedPreferenceRow("f", number, plain, bool(number)) for number in (0, 1)
    ]
    judged = build_dataset(
        labelled, make_tokens(SWITCHED), data, split_key=seed_split_key(0), method="kto"
    )
    assert any("2 of 2 rows" in text for text in judged.warnings)


# opened thoughts


OPENS_THOUGHT = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<User>' + m.content }}"
    "{% else %}{{ '<Assistant>' + m.content.split('</think>')[-1] + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<Assistant><think>\n' }}{% endif %}"
)


def thinking(row: ChatRow) -> ChatRow:
    """The same row with a thought in each of the assistant's turns."""
    turns = (
        replace(m, reasoning_content="hm") if m.role == "assistant" else m for m in row.messages
    )
    return replace(row, messages=tuple(turns))


@pytest.mark.parametrize(
    "said", [chat("a", "<think>\nhm\n</think>\n\nb"), thinking(chat("a", "b"))]
)
def test_a_thought_that_the_prompt_opens_is_trained_on_as_it_is_generated(
    said: ChatRow, make_tokens: MakeTokens
) -> None:
    tokens = make_tokens(OPENS_THOUGHT, eos="</s>")
    assert texts(said, tokens) == [("<User>a<Assistant><think>\n", "hm\n</think>\n\nb</s>")]


def test_each_turn_of_an_opened_thought_follows_what_generation_is_given(
    make_tokens: MakeTokens,
) -> None:
    tokens = make_tokens(OPENS_THOUGHT, eos="</s>")
    row = thinking(chat("a", "b", "c", "d"))
    assert texts(row, tokens) == [
        ("<User>a<Assistant><think>\n", "hm\n</think>\n\nb</s>"),
        ("<User>a<Assistant>b</s><User>c<Assistant><think>\n", "hm\n</think>\n\nd</s>"),
    ]


@pytest.mark.parametrize("said", ["b", "<think>b", "hm</think>b", "<think>hm</think>b"])
def test_a_turn_without_the_thought_that_the_prompt_opens_is_refused(
    said: str, make_tokens: MakeTokens
) -> None:
    with pytest.raises(DataError, match="opens the turn for generation in another way") as caught:
        encode(chat("a", said), make_tokens(OPENS_THOUGHT, eos="</s>"), DATA)
    assert "give the assistant's turns reasoning_content" in str(caught.value.hint)
