"""Writes the revision of a base model and the digests of its files into the text of a job.yaml.

The text is edited, not written anew: comments, order and everything else stay as the operator wrote them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trainer.errors import ErrorCode, UsageError
from trainer.model_files.companion_files import is_companion
from trainer.model_files.tensor_listing import INDEX, WEIGHTS
from trainer.models import Sha256Hex
from trainer.spec import parse_job_spec
from trainer.strict_yaml import YamlError, YamlNode, load_yaml_tree

_REVISION_LINE: Final = re.compile(r"\s*model_revision:\s*(?:\"[^\"]*\"|'[^']*'|[^\s#]+)?(.*)")
_ENTRY_COMMENT: Final = re.compile(r"""^[^#]*?(?:"[^"]*"|'[^']*'|[^\s#]+)\s*(#.*)?$""")
_FILL_IN: Final = re.compile(r"\s*# FILL IN\b[^\n]*")


@dataclass(frozen=True)
class ModelPins:
    """What a job spec pins of a base model.

    Args:
        revision: the commit of the model repository, 40 hex digits; None for a local directory.
        file_sha256: name of each file that the job loads → SHA-256 in hex.
    """

    revision: str | None
    file_sha256: Mapping[str, Sha256Hex]


def select_model_files(
    names: Sequence[str], index: bytes | None, chat_template_path: str | None = None
) -> tuple[str, ...]:
    """Returns the names of the files that a job loads, of all files of a model, sorted.

    Args:
        names: names of all files, relative to the model's directory.
        index: content of `model.safetensors.index.json`; needed only where there is no `model.safetensors`.
        chat_template_path: `data.chat_template_path` of the job spec.

    Raises:
        UsageError: there is no config.json, no such template, or no weights as safetensors.
    """
    present = frozenset(names)
    loaded = {name for name in present if name == "config.json" or is_companion(name)}
    loaded |= {chat_template_path} if chat_template_path is not None else set()
    if WEIGHTS in present:  # transformers prefers the single file where both forms are there
        loaded.add(WEIGHTS)
    elif INDEX in present and index is not None:
        loaded |= {INDEX, *_read_shards(index)}
    missing = sorted(loaded - present) or [
        name for name in ("config.json", WEIGHTS) if name not in loaded
    ]
    if missing and not (missing == [WEIGHTS] and INDEX in loaded):
        raise UsageError(
            ErrorCode.USAGE,
            "the model's files",
            expected=f"config.json, weights as {WEIGHTS} or with {INDEX}, and data.chat_template_path if set",
            found=f"no {', '.join(missing)}",
            hint="choose a model, or a conversion of it, that is published as safetensors",
        )
    return tuple(sorted(loaded))


def _read_shards(index: bytes) -> frozenset[str]:
    """Returns the names of the weight files that an index names."""
    try:
        shards = json.loads(index)["weight_map"].values()
        return frozenset(str(name) for name in shards)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            ErrorCode.USAGE, INDEX, expected="an object with `weight_map`", found="something else"
        ) from error


def read_model_name(text: str) -> tuple[str, str | None]:
    """Returns `model_name_or_path` and `model_revision` of a job.yaml that may lack digests so far.

    Raises:
        UsageError: not YAML, or there is no such key.
    """
    model = _read_section(text, "model")
    name, revision = (model.get(key) for key in ("model_name_or_path", "model_revision"))
    if name is None or not isinstance(name.content, str) or not name.content:
        raise UsageError(ErrorCode.SPEC_INVALID, "job spec: model.model_name_or_path is missing")
    return name.content, revision.content if revision and isinstance(
        revision.content, str
    ) else None


def read_chat_template_path(text: str) -> str | None:
    """Returns `data.chat_template_path` of a job.yaml that may lack digests so far; None without it.

    Raises:
        UsageError: not YAML.
    """
    path = _read_section(text, "data", required=False).get("chat_template_path")
    return path.content if path and isinstance(path.content, str) else None


def _read_section(text: str, name: str, *, required: bool = True) -> Mapping[str, YamlNode]:
    try:
        root = load_yaml_tree(text, compose_features=False)
    except YamlError as error:
        raise UsageError(ErrorCode.SPEC_INVALID, f"job spec: {error}") from error
    section = root.content.get(name) if isinstance(root.content, Mapping) else None
    if section is not None and isinstance(section.content, Mapping):
        return section.content
    if required:
        raise UsageError(ErrorCode.SPEC_INVALID, f"job spec: the section `{name}` is missing")
    return {}


def pin_model(text: str, pins: ModelPins) -> str:
    """Returns the text of job.yaml with the revision and digests of `pins`.

    Comments stay, also those of single files; `# FILL IN` goes where something was filled in.

    Raises:
        UsageError: the keys are not written one to a line, or the result is not a job spec.
    """
    model = _read_section(text, "model")
    lines = text.splitlines()
    edits = [_edit_digests(lines, model, pins.file_sha256)]
    if pins.revision is not None:
        edits.append(_edit_revision(lines, model, pins.revision))
    # From the end, so that line numbers stay right; an insertion after the line before which it inserts.
    for edit in sorted(edits, key=lambda each: (each.start, each.end), reverse=True):
        lines[edit.start : edit.end] = edit.lines
    pinned = "\n".join(lines) + "\n"
    _require_pinned(pinned, pins)
    return pinned


@dataclass(frozen=True)
class _LineEdit:
    """Replaces the lines from `start` to before `end`, counted from 0."""

    start: int
    end: int
    lines: Sequence[str]


def _indent(lines: Sequence[str], model: Mapping[str, YamlNode]) -> str:
    """Returns the spaces before the keys of the section `model`."""
    line = lines[model["model_name_or_path"].line - 1]
    return line[: len(line) - len(line.lstrip(" "))]


def _edit_digests(
    lines: Sequence[str], model: Mapping[str, YamlNode], digests: Mapping[str, str]
) -> _LineEdit:
    node, indent = model.get("model_file_sha256"), _indent(lines, model)
    if node is None:
        after_name = model["model_name_or_path"].line
        return _LineEdit(after_name, after_name, _render_digests(indent, digests, {}))
    start, end = node.line - 1, _last_line(node, lines)
    comment = _FILL_IN.sub("", lines[start].partition(":")[2].partition("{")[0]).rstrip()
    own_lines = [line for line in lines[start + 1 : end] if line.lstrip().startswith("#")]
    key, *entries = _render_digests(indent, digests, _entry_comments(node, lines))
    return _LineEdit(start, end, [f"{key}{comment}", *own_lines, *entries])


def _edit_revision(lines: Sequence[str], model: Mapping[str, YamlNode], revision: str) -> _LineEdit:
    node, indent = model.get("model_revision"), _indent(lines, model)
    line = f'{indent}model_revision: "{revision}"'
    if node is None:
        after_name = model["model_name_or_path"].line
        return _LineEdit(after_name, after_name, [line])
    found = _REVISION_LINE.fullmatch(lines[node.line - 1])
    comment = _FILL_IN.sub("", found[1]).rstrip() if found else ""
    return _LineEdit(node.line - 1, node.line, [f"{line}{comment}"])


def _render_digests(
    indent: str, digests: Mapping[str, str], comments: Mapping[str, str]
) -> list[str]:
    entries = (
        f'{indent}  {name}: "{digest}"{" " * 2 if name in comments else ""}{comments.get(name, "")}'
        for name, digest in sorted(digests.items())
    )
    return [f"{indent}model_file_sha256:", *entries]


def _last_line(digests: YamlNode, lines: Sequence[str]) -> int:
    """Returns the 1-based line that the mapping of digests ends in."""
    entries = digests.content.values() if isinstance(digests.content, Mapping) else ()
    last = max((entry.line for entry in entries), default=digests.line)
    if lines[digests.line - 1].partition(":")[2].lstrip().startswith("{"):
        while "}" not in lines[last - 1].partition("#")[0]:
            last += 1
    return last


def _entry_comments(digests: YamlNode, lines: Sequence[str]) -> dict[str, str]:
    """Returns name of a file → the comment behind its digest, without `# FILL IN`."""
    comments = {}
    for name, entry in digests.content.items() if isinstance(digests.content, Mapping) else ():
        found = _ENTRY_COMMENT.match(lines[entry.line - 1]) if entry.line > digests.line else None
        if found and found[1] and not _FILL_IN.match(found[1]):
            comments[name] = found[1]
    return comments


def _require_pinned(text: str, pins: ModelPins) -> None:
    """Requires that the edited text is a job spec with exactly these pins: the edit relies on its layout."""
    model = parse_job_spec(text.encode()).model
    if (model.model_revision, dict(model.model_file_sha256)) != (
        pins.revision,
        dict(pins.file_sha256),
    ):
        raise UsageError(
            ErrorCode.SPEC_INVALID,
            "the section `model` cannot be edited",
            expected="each key and each file on a line of its own",
            found="another layout",
            hint="compare with configs/llama-3.2-3b-dpo.yaml",
        )
