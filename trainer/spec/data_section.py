"""Section `data`: how files become rows, and rows become token sequences."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from trainer.models import Strict
from trainer.spec.template_arguments import ArgumentName, TemplateArgument, is_set_by_renderer
from trainer.spec.training_methods import METHOD_RULES, LearnedRows, MethodName


class OnOverlong(StrEnum):
    """How the job treats a row with more than `data.max_length` tokens."""

    ERROR = "error"
    DROP = "drop"
    TRUNCATE = "truncate"


class RowFormat(StrEnum):
    """Kinds of rows. `auto` chooses the kind by the keys of each row."""

    AUTO = "auto"
    MESSAGES = "messages"
    SHAREGPT = "sharegpt"
    ALPACA = "alpaca"
    PROMPT_COMPLETION = "prompt_completion"
    PREFERENCE = "preference"
    UNPAIRED_PREFERENCE = "unpaired_preference"
    TEXT = "text"


class TrainOn(StrEnum):
    """Which of the trainable turns of a conversation enter the loss."""

    ALL_TURNS = "all_turns"
    LAST_TURN = "last_turn"


class SplitTurns(StrEnum):
    """Whether a conversation may become one example for each turn if no mask for all turns is exact."""

    AUTO = "auto"
    NEVER = "never"


class RowPart(StrEnum):
    """Parts of a conversation that a chat template may leave out.

    `system` are the turns of the roles system and developer, `tool` those of tools, and `content` those of user
    and assistant. The others are fields: `reasoning_content` also stands for reasoning in `<think>` tags, and
    `name` for the name of a speaker.
    """

    SYSTEM = "system"
    CONTENT = "content"
    REASONING_CONTENT = "reasoning_content"
    TOOL_CALLS = "tool_calls"
    TOOL = "tool"
    TOOLS = "tools"
    NAME = "name"


ColumnName = Annotated[str, Field(min_length=1, max_length=256)]
IgnoredColumn = Annotated[str, Field(max_length=256)]
"""Name of a column of the files; empty for one without a name, such as the index that pandas writes."""
MixPattern = Annotated[str, Field(pattern=r"^\S{1,256}$")]
MixWeight = Annotated[float, Field(gt=0, le=1000)]


class DataSection(Strict):
    """How files become rows, and rows become token sequences.

    `columns` maps our name of a column to its name in the files, and `ignore_columns` lists columns that are
    skipped (`""` is one without a name); any other column is refused. `ignore_message_keys` lists keys of
    messages that are skipped; they are counted. `eval_files` is a shell pattern of names relative to `data/`: rows
    of matching files are for evaluation. If no file matches, those of validation and test splits are, in a
    dataset that names splits; in any other, each row is held out with probability `test_split_size` (0 to 1), by a
    hash of itself that is keyed by `train.seed`, or by a secret of the sealed dataset with section `privacy`.
    `assistant_only_loss` and `completion_only_loss` restrict the loss to the assistant's turns of conversations
    and to the completions of prompts; rows of kind text are trained on completely. `chat_template` is Jinja
    text that replaces the base model's template, if it has one; `chat_template_path` names a file of the base
    model instead, which `model.model_file_sha256` lists. `chat_template_kwargs` sets variables that the
    template reads; a row's own column of this name overrides them. A row that the template does not print
    completely is refused, unless `allow_unrendered` names the missing parts. `mix` maps shell patterns of file
    names to weights: how often each epoch uses the training rows of these files, 2 for twice, 0.25 for a quarter
    of them, drawn once for the run; files that no pattern names have the weight 1. With `packing` a unit of
    `train.per_device_train_batch_size` is a bin of up to `max_length` tokens that contains complete rows;
    attention does not cross from one row to another.
    """

    format: RowFormat = RowFormat.AUTO
    columns: Annotated[dict[ColumnName, ColumnName], Field(max_length=32)] = {}  # noqa: RUF012 -- frozen, and copied
    ignore_columns: Annotated[tuple[IgnoredColumn, ...], Field(max_length=1024)] = ()
    ignore_message_keys: Annotated[tuple[ColumnName, ...], Field(max_length=1024)] = ()
    eval_files: Annotated[str, Field(min_length=1, max_length=256)] = "eval/*"
    max_length: Annotated[int, Field(ge=8, le=1 << 20)] = 1024
    on_overlong: OnOverlong = OnOverlong.ERROR
    test_split_size: Annotated[float, Field(ge=0, lt=1)] = 0.1
    assistant_only_loss: bool = True
    completion_only_loss: bool = True
    train_on: TrainOn = TrainOn.ALL_TURNS
    split_turns: SplitTurns = SplitTurns.AUTO
    chat_template: Annotated[str, Field(min_length=1, max_length=1 << 16)] | None = None
    chat_template_path: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    chat_template_kwargs: Annotated[dict[ArgumentName, TemplateArgument], Field(max_length=32)] = {}  # noqa: RUF012
    allow_unrendered: Annotated[tuple[RowPart, ...], Field(max_length=len(RowPart))] = ()
    mix: Annotated[dict[MixPattern, MixWeight], Field(max_length=64)] = {}  # noqa: RUF012 -- frozen, and copied
    packing: bool = False
    packing_strategy: Literal["bfd"] = "bfd"
    max_rows: Annotated[int, Field(ge=1, le=100_000_000)] = 10_000_000

    @field_validator("chat_template")
    @classmethod
    def _require_template(cls, text: str | None) -> str | None:
        if text is not None and "{{" not in text and "{%" not in text:
            raise ValueError(
                f"expected Jinja text with {{{{ }}}} or {{% %}}, got {text[:40]!r}: a name or path is no template"
            )
        return text

    @field_validator("allow_unrendered")
    @classmethod
    def _require_distinct(cls, parts: tuple[RowPart, ...]) -> tuple[RowPart, ...]:
        if len(set(parts)) != len(parts):
            raise ValueError("expected each part once")
        return parts

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        known = FORMAT_COLUMNS.get(self.format, ROW_COLUMNS)
        for name in self.columns:
            if name not in known:
                whose = "ours" if self.format is RowFormat.AUTO else f"format {self.format}"
                raise ValueError(
                    f"columns: {name!r} is no column of {whose}; expected one of {', '.join(known)}"
                )
        if len(set(self.columns.values())) != len(self.columns):
            raise ValueError("columns: two of ours have the same name in the files")
        for name in _ESSENTIAL_KEYS.intersection(self.ignore_message_keys):
            raise ValueError(f"ignore_message_keys: no message can be read without {name!r}")
        return self

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        if self.chat_template is not None and self.chat_template_path is not None:
            raise ValueError("chat_template and chat_template_path exclude each other")
        for name in self.chat_template_kwargs:
            if is_set_by_renderer(name):
                raise ValueError(
                    f"chat_template_kwargs: {name!r} is set by what renders the template"
                )
        return self


_BESIDE_CHATS: Final = ("tools", "chat_template_kwargs")
_ANSWER_COLUMNS: Final = (
    "messages", "conversations", "instruction", "input", "output", "history", "system", "prompt", "completion",
    *_BESIDE_CHATS,
)  # fmt: skip

FORMAT_COLUMNS: Final[Mapping[RowFormat, tuple[str, ...]]] = {
    RowFormat.MESSAGES: ("messages", *_BESIDE_CHATS),
    RowFormat.SHAREGPT: ("conversations", "system", *_BESIDE_CHATS),
    RowFormat.ALPACA: ("instruction", "input", "output", "history", "system", *_BESIDE_CHATS),
    RowFormat.PROMPT_COMPLETION: ("prompt", "completion", "system", *_BESIDE_CHATS),
    RowFormat.PREFERENCE: (
        "prompt", "chosen", "rejected", "messages", "rejected_response", "conversations", "instruction", "input",
        "history", "system", *_BESIDE_CHATS,
    ),
    RowFormat.UNPAIRED_PREFERENCE: ("label", *_ANSWER_COLUMNS),
    RowFormat.TEXT: ("text",),
}  # fmt: skip
"""Columns of the rows of each kind."""

ROW_COLUMNS: Final = tuple(
    dict.fromkeys(name for names in FORMAT_COLUMNS.values() for name in names)
)
"""Columns of the rows of all kinds."""

_ESSENTIAL_KEYS: Final = frozenset({"role", "content", "from", "value"})


_LEARNED_AS: Final[Mapping[RowFormat, LearnedRows]] = {
    RowFormat.PREFERENCE: "pairs",
    RowFormat.UNPAIRED_PREFERENCE: "labels",
}
"""What a method learns from rows of a format; from all other formats it learns answers."""


def check_method(method: MethodName, data: DataSection) -> None:
    """Requires that a `train.method` and the data section are compatible.

    Raises:
        ValueError: a format that the method cannot use.
    """
    learns_from = METHOD_RULES[method].learns_from
    if data.format is not RowFormat.AUTO and _LEARNED_AS.get(data.format, "answers") != learns_from:
        raise ValueError(
            f"data.format {data.format} cannot be trained on with train.method {method}"
        )
