"""Reads a base model's tokenizer from its files: tokenizer.json, configuration and chat templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainer.data.examples.chat_template import named_templates
from trainer.data.examples.jinja_environment import require_jinja
from trainer.data.examples.model_config import vocabulary_size
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.errors import ErrorCode, JobError, missing_package
from trainer.spec import DataSection

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE: Final = "tokenizer.json"
_STOP_FILES: Final = ("generation_config.json", "config.json")
_NAMED: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_MAX_FILE_BYTES: Final = 1 << 28
_DEFAULTS: Final = DataSection()


def read_tokenizer(
    model_dir: Path, data: DataSection = _DEFAULTS, *, now: datetime | None = None
) -> ModelTokenizer:
    """Reads the tokenizer of a model directory: tokenizer.json, configuration and chat templates.

    Args:
        model_dir: the directory.
        data: the section of the job spec, which may replace the chat template and set its variables.
        now: the date and time that templates can read; None is the current one.

    Raises:
        JobError: `MODEL_INVALID`: a file has another form than required.
        UsageError: the packages for it are not installed, the chat template reads no such variable, or
            is no Jinja text.
    """
    config = _json_file(model_dir / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= _json_file(model_dir / "special_tokens_map.json")
    backend = _read_backend(model_dir / TOKENIZER_FILE)
    special = special_tokens(config)
    _add_missing(backend, config, special)
    default = model_dir / "chat_template.jinja"
    files = {"default": _text_file(default)} if default.is_file() else {}
    further = sorted((model_dir / "additional_chat_templates").glob("*.jinja"))
    files |= {path.stem: _text_file(path) for path in further}
    own = named_templates(config.get("chat_template"), files)
    chosen = chosen_template(model_dir, data)
    return ModelTokenizer(
        backend,
        special,
        own if chosen is None else {"default": chosen},
        read_stop_ids(model_dir),
        arguments=data.chat_template_kwargs,
        vocabulary=vocabulary_size(_json_file(model_dir / "config.json")),
        now=now,
    )


def chosen_template(model_dir: Path, data: DataSection) -> str | None:
    """Returns the Jinja text that the job spec chooses instead of the model's own template; None keeps that.

    Raises:
        JobError: `MODEL_INVALID`: the file that it names cannot be read.
        UsageError: `SPEC_INVALID`: the text is not Jinja.
    """
    path = data.chat_template_path
    text = data.chat_template if path is None else _text_file(model_dir / path)
    if text is not None:
        require_jinja(text, "data.chat_template" if path is None else "data.chat_template_path")
    return text


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the named special tokens of a tokenizer_config.json, including names that the model introduces."""
    extra = config.get("extra_special_tokens")
    named = {name: config.get(name) for name in _NAMED}
    named |= {
        name: value
        for name, value in config.items()
        if name.endswith("_token") and isinstance(value, str)
    }
    named |= extra if isinstance(extra, dict) else {}
    texts = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in named.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def read_stop_ids(model_dir: Path) -> frozenset[int]:
    """Returns the ids at which generation with this model ends, according to its configuration.

    Raises:
        JobError: `MODEL_INVALID`: a configuration has another form than required.
    """
    values = (_json_file(model_dir / name).get("eos_token_id") for name in _STOP_FILES)
    lists = (value if isinstance(value, list) else [value] for value in values)
    return frozenset(id_ for ids in lists for id_ in ids if isinstance(id_, int))


def _read_backend(path: Path) -> Tokenizer:
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 -- part of an extra
    except ImportError as error:
        raise missing_package(error.name, "validate", "counting tokens") from error
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare exceptions
        raise _invalid(path.name, type(error).__name__) from error


def _add_missing(backend: Tokenizer, config: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """Adds the special tokens that only the configuration names, as loading with transformers does."""
    from tokenizers import AddedToken  # noqa: PLC0415 -- part of an extra

    extra = config.get("extra_special_tokens", config.get("additional_special_tokens"))
    listed = [item.get("content") if isinstance(item, dict) else item for item in extra or []]
    wanted = dict.fromkeys((*special.values(), *(text for text in listed if isinstance(text, str))))
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([AddedToken(text, special=True) for text in wanted if text not in known])


def _text_file(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(path.name, type(error).__name__) from error


def _json_file(path: Path) -> dict[str, Any]:
    """Returns the JSON object of a file of the model; an empty object if the file does not exist."""
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise _invalid(path.name, "a larger file")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise _invalid(path.name, type(error).__name__) from error
    if not isinstance(value, dict):
        raise _invalid(path.name, "no object")
    return value


def _invalid(name: str, found: str) -> JobError:
    return JobError(
        ErrorCode.MODEL_INVALID,
        f"the base model's {name} cannot be used",
        expected="the file as its model was published with",
        found=found,
    )
