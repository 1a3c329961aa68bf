"""Chat templates of others with conversations of many shapes: nothing is lost in silence, and no mask is wrong.

Each pair of a template and a conversation is encoded as the job does. A conversation that is accepted is compared
with what `transformers` renders: every text that the conversation says is in an example, and what is trained on is
what generation has to add to the prompt, or what the template's generation blocks mark. The others are counted by
the code of their refusal.

    python scripts/template_campaign.py [--wheels DIR]

The templates come from the wheels of packages that publish them; see `PACKAGES`. They are read, never executed
outside of Jinja's sandbox, and kept in a cache.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.utils.chat_template_utils import render_jinja_template

from trainer.data.examples.example import Example
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import encode_rows
from trainer.data.rows import ChatRow, Message, ToolCall
from trainer.errors import DataError, JobError
from trainer.spec import DataSection

PACKAGES: Final = ("trl==1.14.2", "oumi==0.9")
CACHE: Final = Path(__file__).parents[1] / ".cache" / "template-wheels"
DATA: Final = DataSection(max_length=1 << 20)
NAMED_TOKENS: Final = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}
_BLOCK: Final = re.compile(r"\{%[-+]?\s*generation\b")
STOPS: Final = (
    "<eos>", "</s>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|return|>",
    "<|call|>", "<|endoftext|>", "<|END_OF_TURN_TOKEN|>", "<|user|>", "<|observation|>", "<|end_of_text|>",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A template with a conversation, and what came of it.

    Attributes:
        template: name of the template.
        conversation: name of the conversation.
        refused: code of the refusal; None if the conversation is accepted.
        faults: what is wrong with an accepted conversation; empty if nothing is.
    """

    template: str
    conversation: str
    refused: str | None
    faults: tuple[str, ...] = ()


def _user(text: str) -> Message:
    return Message("user", text)


def _said(text: str, **more: Any) -> Message:
    return Message("assistant", text, **more)


def _call(number: int, arguments: Mapping[str, object]) -> ToolCall:
    return ToolCall(f"look_up_{number}", arguments, f"call0000{number}")


def _result(number: int, text: str) -> Message:
    return Message("tool", text, tool_call_id=f"call0000{number}", name=f"look_up_{number}")


def _tool(number: int) -> dict[str, object]:
    properties = {
        f"key_{number}": {"type": "string", "description": f"The key of kind {number} to look up"}
    }
    parameters = {"type": "object", "properties": properties, "required": [f"key_{number}"]}
    function = {
        "name": f"look_up_{number}",
        "description": f"Looks up in shelf {number}",
        "parameters": parameters,
    }
    return {"type": "function", "function": function}


_ASKED: Final = (_user("Which bay holds article 41?"), _said("Bay nine holds article 41."))
_NEXT: Final = (_user("And which one holds article 77?"), _said("Bay two holds article 77."))
_CODE: Final = 'def f(x):\n    return {"a": [x, {{ x }}], "b": "{% if x %}"}  # <b> & \'c\''

CONVERSATIONS: Final[Mapping[str, ChatRow]] = {
    name: ChatRow("c.jsonl", 0, tuple(messages), None if tools is None else tuple(tools))
    for name, messages, tools in (
        ("plain", _ASKED, None),
        ("system", (Message("system", "Answer as a clerk does."), *_ASKED), None),
        ("turns", (*_ASKED, *_NEXT), None),
        (
            "call",
            (_ASKED[0], _said("", tool_calls=(_call(1, {"key_1": 'Zeta "41" é'}),))),
            [_tool(1)],
        ),
        (
            "result",
            (
                _ASKED[0],
                _said(
                    "",
                    tool_calls=(
                        _call(1, {"key_1": "Zeta 41", "deep": {"n": [1, 2.5, True, None]}}),
                    ),
                ),
                _result(1, '{"bay": "nine"}'),
                _ASKED[1],
            ),
            [_tool(1)],
        ),
        (
            "parallel calls",
            (
                _ASKED[0],
                _said(
                    "", tool_calls=(_call(1, {"key_1": "Zeta 41"}), _call(2, {"key_2": "Zeta 77"}))
                ),
                _result(1, "in bay nine"),
                _result(2, "in bay two"),
                _said("Bays nine and two."),
            ),
            [_tool(1), _tool(2)],
        ),
        (
            "reasoning",
            (
                _ASKED[0],
                replace(_ASKED[1], reasoning_content="Shelf 41 stands in bay nine, I recall."),
            ),
            None,
        ),
        (
            "earlier reasoning",
            (
                _ASKED[0],
                replace(_ASKED[1], reasoning_content="Shelf 41 stands in bay nine, I recall."),
                _NEXT[0],
                replace(_NEXT[1], reasoning_content="Number 77 was moved to bay two."),
            ),
            None,
        ),
        (
            "unicode",
            (
                _user("¿Dónde está el artículo 41? 日本語 🙂"),
                _said("En el muelle nueve: ٤١ ✓ naïve"),
            ),
            None,
        ),
        (
            "code",
            (
                _user(f"What does this do?\n{_CODE}"),
                _said(f"```python\n{_CODE}\n```\nIt returns both."),
            ),
            None,
        ),
        ("short", (_user("a"), _said("b"), _user("a"), _said("s")), None),
        (
            "long",
            tuple(
                turn
                for number in range(12)
                for turn in (_user(f"Item {number}?"), _said(f"Bay {number}."))
            ),
            None,
        ),
        (
            "a turn that is not trained on",
            (
                _ASKED[0],
                replace(_ASKED[1], train=False, reasoning_content="Not to be learned at all."),
                *_NEXT,
            ),
            None,
        ),
    )
}


def run_pair(name: str, template: str, conversation: str) -> Pair:
    """Encodes a conversation with a template and compares the outcome with transformers' renderings."""
    row = CONVERSATIONS[conversation]
    try:
        tokenizer = make_tokenizer(template)
        (outcome,) = encode_rows([row], tokenizer, DATA)
    except JobError as error:
        return Pair(name, conversation, error.code.value)
    if isinstance(outcome, DataError):
        return Pair(name, conversation, outcome.code.value)
    return Pair(
        name, conversation, None, tuple(_find_faults(template, row, outcome.examples, tokenizer))
    )


def make_tokenizer(template: str) -> ModelTokenizer:
    """Returns a tokenizer of bytes with a template, and with the stop tokens of many families."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(
        models.BPE({character: number for number, character in enumerate(alphabet)}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*NAMED_TOKENS.values(), *STOPS])
    stop_ids = frozenset(
        number for stop in STOPS if (number := backend.token_to_id(stop)) is not None
    )
    return ModelTokenizer(backend, NAMED_TOKENS, {"default": template}, stop_ids)


def _find_faults(
    template: str, row: ChatRow, examples: Sequence[Example], tokenizer: ModelTokenizer
) -> Iterator[str]:
    texts = [tokenizer.text(example.ids) for example in examples]
    for text in _texts(row):
        if not any(form in rendered for form in _forms(text) for rendered in texts):
            yield f"lost: {text!r}"
    trained = "".join(
        tokenizer.text(
            [id_ for id_, flag in zip(example.ids, example.trained, strict=True) if flag]
        )
        for example in examples
    )
    expected = [_expected(template, turns, row) for turns in _forms_of_turns(row)]
    if trained not in expected:
        yield f"trained on {trained!r}, expected one of {sorted(set(expected))!r}"


def _texts(row: ChatRow) -> Iterator[str]:
    """Yields what a conversation says, and the names and descriptions of its tools."""
    for message in row.messages:
        yield from filter(None, (message.content, message.reasoning_content))
        for call in message.tool_calls:
            yield call.name
            yield from (
                item for pair in call.arguments.items() for item in pair if isinstance(item, str)
            )
    for tool in row.tools or ():
        function: Any = tool["function"]
        yield from (
            function["name"],
            function["description"],
            *function["parameters"]["properties"],
        )


def _forms(text: str) -> tuple[str, ...]:
    return (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])


def _forms_of_turns(row: ChatRow) -> Iterator[list[dict[str, Any]]]:
    """Yields the messages in each form that templates demand: arguments as text, reasoning as `thinking`."""
    for as_text in (False, True):
        for key in ("reasoning_content", "thinking"):
            yield [_as_turn(message, key, as_text=as_text) for message in row.messages]


def _as_turn(message: Message, key: str, *, as_text: bool) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    named = {
        key: message.reasoning_content,
        "tool_call_id": message.tool_call_id,
        "name": message.name,
    }
    turn |= {name: value for name, value in named.items() if value is not None}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False)
                    if as_text
                    else dict(call.arguments),
                },
            }
            for call in message.tool_calls
        ]
    return turn


def _expected(template: str, turns: list[dict[str, Any]], row: ChatRow) -> str:
    """Returns what must be trained on of all turns; the name of the error if transformers cannot render them."""
    parts: list[str] = []
    for number, message in enumerate(row.messages):
        if message.role == "assistant" and message.train:
            try:
                parts.append(_expected_turn(template, turns, number, row))
            except Exception as error:  # noqa: BLE001 -- a template may raise anything
                return type(error).__name__
    return "".join(parts)


def _expected_turn(template: str, turns: list[dict[str, Any]], number: int, row: ChatRow) -> str:
    after, blocks = _render(template, turns[: number + 1], row, prompt=False)
    if _BLOCK.search(template):
        # The blocks after the text that both renderings begin with.
        before, _ = _render(template, turns[:number], row, prompt=False)
        ends = (
            number
            for number, (one, other) in enumerate(zip(before, after, strict=False))
            if one != other
        )
        start = next(ends, min(len(before), len(after)))
        return _cut_after_stop("".join(after[first:last] for first, last in blocks if last > start))
    before, _ = _render(template, turns[:number], row, prompt=True)
    opened, reasoning = before.removesuffix("<think>\n"), row.messages[number].reasoning_content
    if not after.startswith(before) and opened != before and reasoning and after.startswith(opened):
        # The prompt opens the reasoning, which the template does not print in a turn.
        after = f"{before}{reasoning}\n</think>\n\n{after[len(opened) :]}"
    if not after.startswith(before):
        raise ValueError("the prompt is no prefix")
    said = _cut_after_stop(after[len(before) :])
    return (
        said
        if any(stop in said for stop in STOPS)
        else said + _next_stop(template, turns, number, row)
    )


def _next_stop(template: str, turns: list[dict[str, Any]], number: int, row: ChatRow) -> str:
    """Returns the stop token with which the next turn begins, where a template does not end turns."""
    # Printed in the last turn only, by many templates.
    reasoning = (
        "reasoning_content",
        "thinking",
    )
    plain = [
        {key: turn[key] for key in turn if key not in reasoning} for turn in turns[: number + 1]
    ]
    role = "tool" if turns[number].get("tool_calls") else "user"
    following = turns[number + 1] if number + 1 < len(turns) else {"role": role, "content": "x"}
    with suppress(Exception):  # a template may refuse such a turn in any way
        after, _ = _render(template, plain, row, prompt=False)
        longer, _ = _render(template, [*plain, following], row, prompt=False)
        return next((stop for stop in STOPS if longer[len(after) :].startswith(stop)), "")
    return ""


def _cut_after_stop(text: str) -> str:
    """Returns the text up to its last stop token, if only white space follows."""
    ends = [text.rfind(stop) + len(stop) for stop in STOPS if stop in text]
    return text[: max(ends)] if ends and not text[max(ends) :].strip() else text


def _render(
    template: str, turns: list[dict[str, Any]], row: ChatRow, *, prompt: bool
) -> tuple[str, list[tuple[int, int]]]:
    render: Any = render_jinja_template
    (text,), (blocks,) = render(
        conversations=[turns],
        tools=None if row.tools is None else [dict(tool) for tool in row.tools],
        chat_template=template,
        return_assistant_tokens_mask=True,
        add_generation_prompt=prompt,
        **NAMED_TOKENS,
    )
    return text, [(start, end) for start, end in blocks]


def read_templates(wheels: Path) -> dict[str, str]:
    """Returns the templates of all wheels in a folder, by package and name."""
    templates: dict[str, str] = {}
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for member in sorted(name for name in archive.namelist() if name.endswith(".jinja")):
                templates[f"{wheel.name.split('-')[0]}/{Path(member).stem}"] = archive.read(
                    member
                ).decode()
    return templates


def main() -> int:
    """Runs all pairs; returns 1 if any accepted conversation has a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wheels", type=Path, help="a folder of wheels with templates, instead of the cache"
    )
    wheels = parser.parse_args().wheels or CACHE
    if wheels == CACHE and not list(CACHE.glob("*.whl")):
        download = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
        ]
        subprocess.run([*download, "--dest", str(CACHE), *PACKAGES], check=True)
    templates = read_templates(wheels)
    pairs = [
        run_pair(name, text, conversation)
        for name, text in templates.items()
        for conversation in CONVERSATIONS
    ]
    for pair in pairs:
        for fault in pair.faults:
            print(f"{pair.template}, {pair.conversation}: {fault}")
    outcomes = Counter("accepted" if pair.refused is None else pair.refused for pair in pairs)
    faults = sum(bool(pair.faults) for pair in pairs)
    print(
        f"{len(templates)} templates, {len(CONVERSATIONS)} conversations: {dict(outcomes)}, {faults} with a fault"
    )
    return int(faults > 0 or not templates)


if __name__ == "__main__":
    sys.exit(main())
