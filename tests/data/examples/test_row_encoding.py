"""Which tokens the loss is taken on: checked against the text that each template must have the model generate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from trainer.data.examples.example import Example
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import encode
from trainer.data.rows import ChatRow, CompletionRow, Message, Row, TextRow
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection, OnOverlong, SplitTurns

MakeTokens = Callable[..., ModelTokenizer]
DATA = DataSection(max_length=400)

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
REWRITES_EARLIER_TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROMPT_ENDS_IN_SPACE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
NO_STOP = (
    "{% for message in messages %}{{ '#' + message['role'] + '#' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '#assistant#' }}{% endif %}"
)
RAISES = "{{ raise_exception('cannot do ' + messages[0]['content']) }}"

WAYS: dict[str, tuple[str, dict[str, Any], Callable[[str], str]]] = {
    "chatml": (CHATML, {}, lambda said: f"{said}<|im_end|>"),
    "llama3": (
        LLAMA3,
        {"eos": "<|eot_id|>", "bos": "<s>", "add_bos": True},
        lambda said: f"{said.strip()}<|eot_id|>",
    ),
    "mistral": (
        MISTRAL,
        {"eos": "</s>", "bos": "<s>", "add_bos": True},
        lambda said: f" {said.strip()} </s>",
    ),
}


def chat(*said: str) -> ChatRow:
    """Turns of user and assistant, by turns."""
    roles = ("user", "assistant")
    return ChatRow(
        "f.jsonl", 4, tuple(Message(roles[number % 2], text) for number, text in enumerate(said))
    )


def encoded(row: Row, tokens: ModelTokenizer, data: DataSection = DATA) -> Example:
    (example,) = encode(row, tokens, data)
    return example


def trained_texts(example: Example, tokens: ModelTokenizer) -> list[str]:
    """The trained runs of tokens, as text."""
    runs: list[list[int]] = []
    for position, (token, trained) in enumerate(zip(example.ids, example.trained, strict=True)):
        if trained and (position == 0 or not example.trained[position - 1]):
            runs.append([])
        if trained:
            runs[-1].append(token)
    return [tokens.text(run) for run in runs]


@pytest.mark.parametrize("way", WAYS)
def test_the_assistants_words_and_the_end_of_the_turn_are_trained_on(
    way: str, make_tokens: MakeTokens
) -> None:
    template, options, expected = WAYS[way]
    tokens = make_tokens(template, **options)
    example = encoded(chat(" One? ", " First answer.\n", "Two?", "Second."), tokens)
    assert trained_texts(example, tokens) == [expected(" First answer.\n"), expected("Second.")]
    assert example.stops
    assert example.ids[-1] in tokens.stop_ids


@pytest.mark.parametrize("way", WAYS)
def test_what_comes_before_is_what_generation_will_be_given(
    way: str, make_tokens: MakeTokens
) -> None:
    template, options, _ = WAYS[way]
    tokens = make_tokens(template, **options)
    row = chat("Ask", "Say")
    example = encoded(row, tokens)
    prompt = tokens.ids(tokens.template.render(row.messages[:1], prompt=True))
    assert list(example.ids[: len(prompt)]) == prompt
    assert list(example.trained) == [0] * len(prompt) + [1] * (example.length - len(prompt))


@pytest.mark.parametrize("way", WAYS)
@given(said=st.lists(st.text(max_size=12), min_size=2, max_size=6))
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_is_marked_exactly_or_refused(
    way: str, said: list[str], make_tokens: MakeTokens
) -> None:
    template, options, expected = WAYS[way]
    tokens = make_tokens(template, **options)
    try:
        example = encoded(chat(*said), tokens)
    except DataError as error:
        assert error.code is ErrorCode.DATASET_NOT_TRAINABLE  # noqa: PT017 -- either outcome is right
    else:
        answers = said[1::2]
        assert trained_texts(example, tokens) == [expected(answer) for answer in answers]


@pytest.mark.parametrize("way", WAYS)
def test_the_start_token_stands_once(way: str, make_tokens: MakeTokens) -> None:
    template, options, _ = WAYS[way]
    tokens = make_tokens(template, **options)
    rows: list[Row] = [
        chat("a", "b"),
        TextRow("f", 0, "some text"),
        CompletionRow("f", 0, "some", " text"),
    ]
    if options.get("bos"):
        rows.append(TextRow("f", 0, options["bos"] + "some text"))
        bos = tokens.ids(options["bos"])
        for row in rows:
            ids = list(encoded(row, tokens).ids)
            assert ids[:1] == bos
            assert ids.count(bos[0]) == 1
    else:
        assert tokens.start_ids == ()


def test_the_turns_of_a_system_and_a_tool_are_not_trained_on(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(CHATML)
    messages = (
        Message("system", "S"),
        Message("user", "U"),
        Message("assistant", "A"),
        Message("tool", "T"),
        Message("assistant", "B"),
        Message("user", "U"),
    )
    example = encoded(ChatRow("f", 0, messages), tokens)
    assert trained_texts(example, tokens) == ["A<|im_end|>", "B<|im_end|>"]
    # What follows the last trained token is left out.
    assert tokens.text(example.ids).endswith("B<|im_end|>")


def test_turns_that_are_rewritten_later_become_examples_of_their_own(
    make_tokens: MakeTokens,
) -> None:
    tokens = make_tokens(REWRITES_EARLIER_TURNS)
    assert trained_texts(encoded(chat("a", "b"), tokens), tokens) == [
        "<think>\n\n</think>\n\nb<|im_end|>"
    ]
    first, second = encode(chat("a", "b", "c", "d"), tokens, DATA)
    assert first == encoded(chat("a", "b"), tokens)
    assert trained_texts(second, tokens) == ["<think>\n\n</think>\n\nd<|im_end|>"]
    given = tokens.template.render(chat("a", "b", "c").messages, prompt=True)
    assert tokens.text(second.ids).startswith(given)
    assert "<think>" not in given


def test_turns_are_not_split_where_the_job_says_so(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(REWRITES_EARLIER_TURNS)
    never = DataSection(split_turns=SplitTurns.NEVER)
    assert len(encode(chat("a", "b"), tokens, never)) == 1
    with pytest.raises(DataError, match="cannot be determined exactly") as caught:
        encode(chat("a", "b", "c", "d"), tokens, never)
    assert (caught.value.code, caught.value.row, caught.value.field) == (
        ErrorCode.DATASET_NOT_TRAINABLE,
        4,
        "messages[1]",
    )


def test_a_token_across_the_boundary_is_cut_as_generation_meets_it(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(PROMPT_ENDS_IN_SPACE)
    assert len(tokens.ids(" the")) == 1
    row = chat("a", "the", "b", "the")
    first, second = encode(row, tokens, DATA)
    for example, count in ((first, 1), (second, 3)):
        given = tokens.ids(tokens.template.render(row.messages[:count], prompt=True))
        assert list(example.ids) == given + tokens.ids("the\n")
        assert trained_texts(example, tokens) == ["the\n"]
    assert encode(chat("a", "the"), tokens, DataSection(split_turns=SplitTurns.NEVER)) == (first,)
    with pytest.raises(DataError, match="a token crosses the boundary"):
        encode(row, tokens, DataSection(split_turns=SplitTurns.NEVER))


def test_a_tokenizer_that_writes_beginnings_differently_is_not_trusted_with_it() -> None:
    plain = Tokenizer(models.BPE({"▁": 0, "a": 1, ":": 2, "▁a": 3, "u": 4}, [("▁", "a")]))
    plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    plain.decoder = decoders.Metaspace(prepend_scheme="always")
    template = "{{ messages[0].content + ':' }}"
    template += "{% if messages | length > 1 or add_generation_prompt %}{{ 'a: ' }}{% endif %}"
    template += "{% if messages | length > 1 %}{{ messages[1].content }}{% endif %}"
    tokens = ModelTokenizer(plain, {}, {"default": template})
    with pytest.raises(DataError, match="a token crosses the boundary"):
        encode(chat("u", "a"), tokens, DATA)


def test_an_assistant_that_speaks_first_is_refused_unless_that_turn_is_context(
    make_tokens: MakeTokens,
) -> None:
    tokens, turns = make_tokens(CHATML), chat("Which bay?", "Nine.").messages
    for row in (
        ChatRow("f", 0, (Message("assistant", "Welcome."), *turns)),
        ChatRow("f", 0, turns[1:]),
    ):
        with pytest.raises(DataError, match="speaks first") as caught:
            encode(row, tokens, DATA)
        assert "train: false" in str(caught.value.hint)
        assert caught.value.field == "messages[0]"
    welcomed = ChatRow("f", 0, (Message("assistant", "Welcome.", train=False), *turns))
    assert trained_texts(encoded(welcomed, tokens), tokens) == ["Nine.<|im_end|>"]


def test_a_template_without_a_stop_token_is_noticed(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(NO_STOP)
    example = encoded(chat("a", "b"), tokens)
    assert trained_texts(example, tokens) == ["b\n"]
    assert not example.stops


def test_stop_tokens_of_the_model_count_beside_the_tokenizers(make_tokens: MakeTokens) -> None:
    assert not encoded(chat("a", "b"), make_tokens(CHATML, eos="</s>")).stops
    assert encoded(chat("a", "b"), make_tokens(CHATML, eos="</s>", stop=("<|im_end|>",))).stops


def test_an_exception_of_the_template_quotes_no_row(make_tokens: MakeTokens) -> None:
    with pytest.raises(DataError) as caught:
        encode(chat("canary-1", "canary-2"), make_tokens(RAISES), DATA)
    assert caught.value.code is ErrorCode.DATASET_ROW_INVALID
    assert (
        "canary"
        not in f"{caught.value!r} {caught.value} {caught.value.__cause__} {caught.value.found}"
    )


def test_without_an_assistant_nothing_would_be_trained_on(make_tokens: MakeTokens) -> None:
    row = ChatRow("f", 7, (Message("user", "x"),))
    with pytest.raises(DataError, match="no token") as caught:
        encode(row, make_tokens(CHATML), DATA)
    assert (caught.value.code, caught.value.row) == (ErrorCode.DATASET_NOT_TRAINABLE, 7)
    whole = encoded(row, make_tokens(CHATML), DataSection(assistant_only_loss=False))
    assert list(whole.trained) == [0] + [1] * (whole.length - 1)


def test_a_completion_is_trained_on_with_the_end_of_the_sequence(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(None, eos="</s>", bos="<s>", add_bos=True)
    example = encoded(CompletionRow("f", 0, "Q: the\nA:", " the answer"), tokens)
    assert trained_texts(example, tokens) == [" the answer</s>"]
    assert tokens.text(example.ids) == "<s>Q: the\nA: the answer</s>"
    whole = encoded(
        CompletionRow("f", 0, "Q", "A"), tokens, DataSection(completion_only_loss=False)
    )
    assert list(whole.trained) == [0] + [1] * (whole.length - 1)


def test_a_completion_that_would_merge_with_its_prompt_starts_at_the_prompts_own_tokens(
    make_tokens: MakeTokens,
) -> None:
    tokens = make_tokens(None)
    assert len(tokens.ids(" the")) == 1
    example = encoded(CompletionRow("f", 0, "to ", "the"), tokens)
    prompt = tokens.ids("to ")
    assert list(example.ids[: len(prompt)]) == prompt
    assert trained_texts(example, tokens) == ["the<|im_end|>"]


def test_text_is_trained_on_whole_and_ended_once(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(None)
    for text in ("some text", "some text<|im_end|>"):
        example = encoded(TextRow("f", 0, text), tokens)
        assert tokens.text(example.ids) == "some text<|im_end|>"
        assert list(example.trained) == [0] + [1] * (example.length - 1)


def test_padding_is_never_a_stop_token(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(None, eos="<|im_end|>", pad="<|im_end|>")
    assert tokens.pad_id not in tokens.stop_ids
    assert (
        make_tokens(None, eos="</s>", pad="<|endoftext|>").pad_id == tokens.ids("<|endoftext|>")[0]
    )


def with_limit(
    row: Row, tokens: ModelTokenizer, limit: int, choice: OnOverlong
) -> tuple[Example, ...]:
    return encode(row, tokens, DataSection(max_length=limit, on_overlong=choice))


def test_overlong_rows_are_refused_dropped_or_cut_as_asked(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(CHATML)
    row = chat("Ask", "Say something long enough to be cut in the middle")
    whole = encoded(row, tokens)
    assert with_limit(row, tokens, whole.length, OnOverlong.ERROR) == (whole,)
    limit = whole.length - 3
    with pytest.raises(DataError) as caught:
        with_limit(row, tokens, limit, OnOverlong.ERROR)
    assert (caught.value.code, caught.value.found) == (ErrorCode.DATASET_OVERLONG, whole.length)
    assert with_limit(row, tokens, limit, OnOverlong.DROP) == ()
    (cut,) = with_limit(row, tokens, limit, OnOverlong.TRUNCATE)
    assert cut.truncated
    assert not cut.stops
    assert cut.ids == whole.ids[:limit]
    assert with_limit(row, tokens, 8, OnOverlong.TRUNCATE) == ()  # nothing of the assistant is left
