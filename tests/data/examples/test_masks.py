"""Masks proven: what is trained on is exactly what the assistant says and the end of its turn, nothing else is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import example as also_with
from hypothesis import strategies as st

from trainer.data.examples.chat_template import TemplateRefusedError
from trainer.data.examples.example import EncodedRow, Example
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import encode, encode_rows
from trainer.data.examples.tokenizer_files import read_tokenizer
from trainer.data.rows import ChatRow, CompletionRow, Message, PreferenceRow, Row, TextRow, ToolCall
from trainer.errors import DataError, ErrorCode, JobError, UsageError
from trainer.spec import DataSection, OnOverlong, RowPart, TrainOn

MakeTokens = Callable[..., ModelTokenizer]
DATA = DataSection(max_length=2000)
LAST = DataSection(max_length=2000, train_on=TrainOn.LAST_TURN)
CHAT_ERRORS = {ErrorCode.DATASET_NOT_TRAINABLE, ErrorCode.DATASET_ROW_INVALID}


def _module(name: str) -> ModuleType:
    """A module beside this one: tests are imported without a package."""
    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


FAMILIES = _module("templates").FAMILIES


def chat(*said: str, train: Sequence[int] | None = None) -> ChatRow:
    """Turns of user and assistant, by turns; `train` lists the turns that are trained on."""
    roles = ("user", "assistant")
    turns = (
        Message(roles[number % 2], text, train=train is None or number in train)
        for number, text in enumerate(said)
    )
    return ChatRow("f", 0, tuple(turns))


def trained_texts(example: Example, tokens: ModelTokenizer) -> list[str]:
    """The trained runs of tokens, as text."""
    runs: list[list[int]] = [[]]
    for token, trained in zip(example.ids, example.trained, strict=True):
        if trained:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokens.text(run) for run in runs if run]


def all_trained(row: Row, tokens: ModelTokenizer, data: DataSection = DATA) -> list[str]:
    return [
        text for example in encode(row, tokens, data) for text in trained_texts(example, tokens)
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_each_answer_and_its_end_are_trained_on_and_nothing_else(
    name: str, make_tokens: MakeTokens
) -> None:
    one = FAMILIES[name]
    tokens = make_tokens(one.template, **one.tokens)
    row = chat("One?", "First.", "Two?", "Second.", "Three?", "Third.")
    examples = encode(row, tokens, DATA)
    assert len(examples) == (3 if one.alone else 1)
    assert all_trained(row, tokens) == [
        one.says(answer) for answer in ("First.", "Second.", "Third.")
    ]
    for example in examples:
        assert example.stops
        assert example.ids[-1] in tokens.stop_ids
        assert example.trained[0] == 0
        assert tokens.pad_id not in tokens.stop_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_each_turn_follows_exactly_what_generation_will_be_given(
    name: str, make_tokens: MakeTokens
) -> None:
    one = FAMILIES[name]
    tokens = make_tokens(one.template, **one.tokens)
    said = ("One?", "First.", "Two?", "Second.")
    for count in (2, 4):
        (example,) = encode(chat(*said[:count]), tokens, LAST)
        start = example.trained.index(1)
        given = tokens.ids(tokens.template.render(chat(*said[: count - 1]).messages, prompt=True))
        assert list(example.ids[:start]) == given


@pytest.mark.parametrize("name", FAMILIES)
@given(said=st.lists(st.text(max_size=12), min_size=2, max_size=6))
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_is_marked_exactly_or_refused(
    name: str, said: list[str], make_tokens: MakeTokens
) -> None:
    one = FAMILIES[name]
    tokens = make_tokens(one.template, **one.tokens)
    try:
        found = all_trained(chat(*said), tokens)
    except DataError as error:
        assert error.code in CHAT_ERRORS  # noqa: PT017 -- either outcome is right
    else:
        assert found == [one.says(answer) for answer in said[1::2]]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_start_token_stands_once(name: str, make_tokens: MakeTokens) -> None:
    one = FAMILIES[name]
    tokens = make_tokens(one.template, **one.tokens)
    rows: list[Row] = [
        chat("a", "b"),
        TextRow("f", 0, "<s>text"),
        CompletionRow("f", 0, "some", " text"),
    ]
    for row in rows if "bos" in one.tokens else []:
        (example,) = encode(row, tokens, DATA)
        assert list(example.ids).count(tokens.ids("<s>")[0]) == 1
        assert example.ids[0] == tokens.ids("<s>")[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_turn_alone_if_asked(name: str, make_tokens: MakeTokens) -> None:
    one = FAMILIES[name]
    tokens = make_tokens(one.template, **one.tokens)
    row = chat("One?", "First.", "Two?", "Second.")
    assert all_trained(row, tokens, LAST) == [one.says("Second.")]


@pytest.mark.parametrize("name", FAMILIES)
def test_turns_of_weight_zero_are_never_trained_on(name: str, make_tokens: MakeTokens) -> None:
    one = FAMILIES[name]
    tokens = make_tokens(one.template, **one.tokens)
    said = ("One?", "First.", "Two?", "Second.")
    assert all_trained(chat(*said, train=[1]), tokens) == [one.says("First.")]
    assert all_trained(chat(*said, train=[3]), tokens) == [one.says("Second.")]
    with pytest.raises(DataError, match="no token") as caught:
        encode(chat(*said, train=[]), tokens, DATA)
    assert caught.value.code is ErrorCode.DATASET_NOT_TRAINABLE


def test_weights_that_nothing_heeds_are_refused(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(FAMILIES["chatml"].template)
    with pytest.raises(DataError, match="not to be trained on") as caught:
        encode(chat("a", "b", train=[]), tokens, DataSection(assistant_only_loss=False))
    assert caught.value.field == "messages[0]"


def test_a_conversational_completion_trains_on_its_completion(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(FAMILIES["chatml"].template)
    row = ChatRow("f", 0, chat("a", "b", "c", "d").messages, prompt_messages=3)
    assert all_trained(row, tokens) == ["d<|im_end|>"]
    assert all_trained(row, tokens, DataSection(assistant_only_loss=False)) == ["d<|im_end|>"]
    (whole,) = encode(row, tokens, DataSection(completion_only_loss=False))
    assert whole.targets == whole.length - 1


def test_markers_of_a_template_are_obeyed_even_where_renderings_would_not_do(
    make_tokens: MakeTokens,
) -> None:
    tokens = make_tokens(
        "{% for message in messages %}{{ message.role }}:"
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
        "{% else %}{{ message.content }}{% endif %}|{% endfor %}"
    )
    row = ChatRow("f", 0, (Message("assistant", "hello"), *chat("a", "b").messages))
    # An assistant that speaks first, and no generation prompt.
    assert all_trained(row, tokens) == [
        "hello",
        "b",
    ]


def test_a_row_that_holds_the_marks_is_refused(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(FAMILIES["marked"].template)
    marks = "\ufdd0 b \ufdd1"
    called = replace(chat("a", "b").messages[1], tool_calls=(ToolCall("f", {"x": [{marks: 1}]}),))
    for row in (
        chat("a", marks),
        ChatRow("f", 0, (chat("a").messages[0], called)),
        replace(chat("a", "b"), tools=({"name": marks},)),
    ):
        with pytest.raises(DataError) as caught:
            encode(row, tokens, DATA)
        assert caught.value.code is ErrorCode.DATASET_ROW_INVALID


REASONS = """\
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role != 'assistant' %}{{ m.content + '<|im_end|>\\n' }}
    {%- elif loop.index0 > ns.last %}
        {%- if m.reasoning_content %}
            {%- generation %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endgeneration %}
        {%- endif %}
        {%- generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
    {%- else %}{{ m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""Marks the last turn only, and its reasoning in a block of its own."""


@pytest.mark.parametrize("trained", [(1,), (3,), (1, 3)])
@pytest.mark.parametrize("reasoned", [(), (1,), (3,), (1, 3)])
def test_a_block_belongs_to_the_turn_that_adds_it(
    trained: tuple[int, ...], reasoned: tuple[int, ...], make_tokens: MakeTokens
) -> None:
    tokens = make_tokens(REASONS)
    turns = chat("Seven sixes?", "It is 42.", "Plus one?", "That is 43.", train=trained).messages
    thoughts = {1: "six times seven", 3: "increment it"}
    turns = tuple(
        replace(turn, reasoning_content=thoughts[number]) if number in reasoned else turn
        for number, turn in enumerate(turns)
    )
    wanted = [
        (f"<think>{thoughts[number]}</think>" if number in reasoned else "")
        + turns[number].content
        + "<|im_end|>"
        for number in trained
    ]
    allowing = DataSection(allow_unrendered=(RowPart.REASONING_CONTENT,))
    assert all_trained(ChatRow("f", 0, turns), tokens, allowing) == wanted


def test_blocks_that_touch_are_one_span(make_tokens: MakeTokens) -> None:
    """The white space between two ends of a turn is in the blocks, so it is trained on."""
    twice = FAMILIES["marked"].template.replace(
        "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}",
        "{% generation %}{{ message.content + '<|im_end|>\\n' }}{% endgeneration %}"
        "{% generation %}{{ '</s>' }}{% endgeneration %}",
    )
    tokens = make_tokens(twice, stop=("</s>",))
    assert all_trained(chat("a", "b", "c", "d"), tokens) == [
        "b<|im_end|>\n</s>",
        "d<|im_end|>\n</s>",
    ]


def test_a_turn_without_a_block_is_refused_not_skipped(make_tokens: MakeTokens) -> None:
    unmarked_calls = FAMILIES["marked"].template.replace(
        "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}",
        "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
        "{% if message.content %}"
        "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{% endif %}",
    )
    called = Message("assistant", "", tool_calls=(ToolCall("f", {}),))
    row = ChatRow(
        "f", 0, (Message("user", "a"), called, Message("tool", "2"), Message("assistant", "b"))
    )
    with pytest.raises(DataError, match="says nothing") as caught:
        encode(row, make_tokens(unmarked_calls), DATA)
    assert caught.value.field == "messages[1]"


def test_blocks_of_earlier_turns_that_change_are_refused(make_tokens: MakeTokens) -> None:
    last_only = FAMILIES["marked"].template.replace(
        "== 'assistant'", "== 'assistant' and loop.last"
    )
    turns = (*chat("a", "b").messages, Message("assistant", "c"))
    with pytest.raises(DataError, match="marks earlier turns differently") as caught:
        encode(ChatRow("f", 0, turns), make_tokens(last_only), DATA)
    assert caught.value.field == "messages[2]"


def test_calls_and_thoughts_are_trained_on_as_the_template_writes_them(
    make_tokens: MakeTokens,
) -> None:
    tokens = make_tokens(FAMILIES["qwen"].template)
    row = ChatRow(
        "f",
        0,
        (
            Message("user", "a"),
            Message(
                "assistant",
                "",
                reasoning_content="hm",
                tool_calls=(ToolCall("f", {"x": 'å"'}, "c"),),
            ),
            Message("tool", "2", tool_call_id="c"),
            Message("assistant", "b"),
        ),
        tools=({"name": "f"},),
    )
    (example,) = encode(row, tokens, DATA)
    call = json.dumps({"name": "f", "arguments": {"x": 'å"'}}, ensure_ascii=False)
    assert trained_texts(example, tokens) == [
        f"<think>\nhm\n</think>\n\n<tool_call>{call}</tool_call><|im_end|>",
        "<think>\n\n</think>\n\nb<|im_end|>",
    ]
    assert '# Tools\n{"name": "f"}\n' in tokens.text(example.ids)


def test_a_generation_prompt_that_the_rendering_lacks_is_refused(make_tokens: MakeTokens) -> None:
    opened = FAMILIES["deepseek"].template.replace(
        "'<Assistant>' }}{% endif", "'<Assistant><think>' }}{% endif"
    )
    with pytest.raises(DataError, match="opens the turn for generation in another way"):
        encode(chat("a", "b"), make_tokens(opened, **FAMILIES["deepseek"].tokens), DATA)


def test_preferences_become_pairs_with_the_prompt_masked(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(FAMILIES["chatml"].template)
    chats = PreferenceRow(
        "f",
        0,
        ChatRow("f", 0, chat("a", "good").messages, prompt_messages=1),
        ChatRow("f", 0, chat("a", "bad answer").messages, prompt_messages=1),
    )
    texts = PreferenceRow(
        "f", 1, CompletionRow("f", 1, "p", " good"), CompletionRow("f", 1, "p", " bad")
    )
    everything = DataSection(assistant_only_loss=False, completion_only_loss=False)
    first, second = (one for one in encode_rows([chats, texts], tokens, everything))
    assert isinstance(first, EncodedRow)
    assert isinstance(second, EncodedRow)
    pair = first.preference()
    assert trained_texts(pair.chosen, tokens) == ["good<|im_end|>"]
    assert trained_texts(pair.rejected, tokens) == ["bad answer<|im_end|>"]
    start = pair.chosen.trained.index(1)
    assert pair.chosen.ids[:start] == pair.rejected.ids[:start]
    assert trained_texts(second.preference().rejected, tokens) == [" bad<|im_end|>"]
    short = DataSection(max_length=first.examples[0].length, on_overlong=OnOverlong.DROP)
    (dropped,) = encode_rows([chats], tokens, short)
    assert isinstance(dropped, EncodedRow)
    assert dropped.examples == ()
    assert dropped.lost == sum(example.targets for example in first.examples)


def completions(chosen: str, rejected: str) -> PreferenceRow:
    return PreferenceRow(
        "f", 4, CompletionRow("f", 4, "p", chosen), CompletionRow("f", 4, "p", rejected)
    )


def test_answers_that_the_cut_makes_equal_are_dropped(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(FAMILIES["chatml"].template)
    row = completions(" word" * 30 + " good", " word" * 30 + " bad")
    (cut,) = encode_rows([row], tokens, DataSection(max_length=10, on_overlong=OnOverlong.TRUNCATE))
    assert isinstance(cut, EncodedRow)
    assert cut.examples == ()
    (whole,) = encode_rows([row], tokens, DataSection())
    assert isinstance(whole, EncodedRow)
    assert cut.lost == sum(example.targets for example in whole.examples)


def test_a_prompt_that_fills_everything_leaves_no_pair(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(FAMILIES["chatml"].template)
    long = "prompt " * 20
    row = PreferenceRow(
        "f", 0, CompletionRow("f", 0, long, "good"), CompletionRow("f", 0, long, "bad")
    )
    (cut,) = encode_rows([row], tokens, DataSection(max_length=12, on_overlong=OnOverlong.TRUNCATE))
    assert isinstance(cut, EncodedRow)
    assert cut.examples == ()
    (refused,) = encode_rows([row], tokens, DataSection(max_length=12))
    assert isinstance(refused, DataError)
    assert refused.code is ErrorCode.DATASET_OVERLONG


def test_answers_that_are_the_same_tokens_are_refused(make_tokens: MakeTokens) -> None:
    """Two texts may differ and yet become the same ids: here the end of turn is written out in one of them."""
    tokens = make_tokens(FAMILIES["chatml"].template)
    (refused,) = encode_rows([completions(" yes", " yes<|im_end|>")], tokens, DataSection())
    assert isinstance(refused, DataError)
    assert (refused.code, refused.row, refused.field) == (
        ErrorCode.DATASET_NOT_TRAINABLE,
        4,
        "rejected",
    )


@given(
    said=st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=4),
    limit=st.integers(8, 60),
    choice=st.sampled_from([OnOverlong.DROP, OnOverlong.TRUNCATE]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@also_with(said=["0", " ", "0", "0"], limit=31, choice=OnOverlong.DROP)
def test_tokens_that_are_lost_are_counted(
    said: list[str], limit: int, choice: OnOverlong, make_tokens: MakeTokens
) -> None:
    tokens = make_tokens(FAMILIES["chatml"].template)
    (whole,) = encode_rows([chat(*said)], tokens, DATA)
    (cut,) = encode_rows([chat(*said)], tokens, DataSection(max_length=limit, on_overlong=choice))
    if isinstance(whole, DataError) or isinstance(cut, DataError):
        return
    assert sum(one.targets for one in cut.examples) + cut.lost == sum(
        one.targets for one in whole.examples
    )
    assert cut.tokens == whole.tokens == sum(one.length for one in whole.examples)
    assert all(one.length <= limit and one.targets for one in cut.examples)
    # More than one where a conversation is split at its turns.
    uncut = [one.ids for one in whole.examples]
    assert cut.truncated == any(one.ids not in uncut for one in cut.examples)


def test_many_rows_are_encoded_as_each_alone(
    make_tokens: MakeTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.data.examples.row_encoding.CHUNK_ROWS", 3)
    tokens = make_tokens(FAMILIES["chatml"].template)
    rows: list[Row] = [
        chat("a", "b"),
        chat("only a question"),
        TextRow("f", 2, "text"),
        CompletionRow("f", 3, "p", "c"),
        chat("a", "b", "c", "d"),
    ]
    found = list(encode_rows(rows, tokens, DATA))
    assert [isinstance(one, DataError) for one in found] == [False, True, False, False, False]
    for row, one in zip(rows, found, strict=True):
        if isinstance(one, EncodedRow):
            assert one.row is row
            assert one.examples == encode(row, tokens, DATA)


ESCAPES = (
    "{{ messages.__class__.__mro__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ strftime_now.__self__.year }}",
    "{{ raise_exception.__globals__.keys() }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{% include '/etc/passwd' %}",
    "{{ cycler.__init__.__globals__.os.environ }}",
    "{{ range(1000000000) | list }}",
)


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_cannot_leave_its_sandbox(source: str, make_tokens: MakeTokens) -> None:
    with pytest.raises(TemplateRefusedError) as caught:
        make_tokens(source).template.render(chat("a", "b").messages, prompt=False)
    assert (caught.value.args, caught.value.__cause__, caught.value.__context__) == ((), None, None)


SYNTAX_ERRORS = {
    "{% for m in messages %}{{ m.content }": 1,
    "{% for m in messages %}\n{{ m.content }}\n": 2,
    "{{ messages | no_such_filter }}": 1,
    "\n\n{{ 'a' * }}": 3,
}


@pytest.mark.parametrize("source", SYNTAX_ERRORS)
def test_a_syntax_error_of_a_template_is_no_error_of_a_row(
    source: str, make_tokens: MakeTokens, tiny_model: Path
) -> None:
    line = f"in line {SYNTAX_ERRORS[source]}"
    tokens = make_tokens(source)
    assert encode(TextRow("f", 0, "needs no template"), tokens, DATA)
    with pytest.raises(JobError, match=line) as caught:
        list(encode_rows([chat("a", "b"), chat("c", "d")], tokens, DATA))
    assert caught.value.code is ErrorCode.MODEL_INVALID
    with pytest.raises(UsageError, match=f"data.chat_template.*{line}") as of_the_job:
        read_tokenizer(tiny_model, DataSection(chat_template=source))
    assert of_the_job.value.code is ErrorCode.SPEC_INVALID


def test_the_date_is_one_for_all_rows(make_tokens: MakeTokens) -> None:
    from trainer.data.examples.chat_template import ChatTemplate

    moment = datetime(2026, 5, 17, 23, 59, 59, tzinfo=UTC)
    template = ChatTemplate(
        {"default": FAMILIES["llama"].template}, {"bos_token": "<s>"}, now=moment
    )
    assert "Today: 17 May 2026" in template.render(chat("a").messages, prompt=True)
