"""What is wrong with a job.yaml, in its author's terms: keys as they are written, accepted forms, hints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from trainer.errors import ErrorCode, UsageError
from trainer.spec.key_hints import key_hint, nested_hints
from trainer.spec.key_types import describe_field, is_union
from trainer.spec.value_hints import value_hint

_SHOWN_KEYS: Final = 64
_SHOWN_VALUE: Final = 200


def spec_error(error: ValidationError, spec: type[BaseModel], known: Sequence[str]) -> UsageError:
    """Returns all unknown keys as one error, or else the first problem that pydantic found.

    Args:
        error: what pydantic found.
        spec: the model of the job spec.
        known: all `section.key` names, and the sections.
    """
    problems = error.errors(include_url=False, include_context=False, include_input=True)
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    if unknown:
        return _unknown_keys([(_key(problem), problem["input"]) for problem in unknown], known)
    first = problems[0]
    where = _key(first) or "document"
    if first["type"] == "missing":
        return UsageError(ErrorCode.SPEC_INVALID, f"job spec: {where} is missing")
    if first["type"] == "value_error":
        reason = first["msg"].removeprefix("Value error, ")
        return UsageError(
            ErrorCode.SPEC_INVALID, ": ".join(filter(None, ("job spec", _key(first), reason)))
        )
    return _wrong_value(first, spec, known)


def _unknown_keys(found: Sequence[tuple[str, object]], known: Sequence[str]) -> UsageError:
    names = ", ".join(repr(key) for key, _ in found[:_SHOWN_KEYS])
    more = f" and {len(found) - _SHOWN_KEYS} more" if len(found) > _SHOWN_KEYS else ""
    if len(found) == 1:
        message = f"job spec: unknown key {names}"
    else:
        message = f"job spec: {len(found)} unknown keys: {names}{more}"
    hints = []
    for key, value in found[:_SHOWN_KEYS]:
        if own := key_hint(key, known):
            hints.append(f"{key}: {own}")
        inner = dict(nested_hints(value, known))
        hints += (f"{name} in {key}: {text}" for name, text in inner.items())
    if len(found) == len(hints) == 1:
        hint = hints[0].partition(": ")[2]
    else:
        hint = "\n      ".join(hints[:_SHOWN_KEYS]) or "see trainer/SPEC.md for all keys"
    return UsageError(ErrorCode.SPEC_UNKNOWN_KEY, message, hint=hint)


def _wrong_value(problem: Any, spec: type[BaseModel], known: Sequence[str]) -> UsageError:
    """Returns the error for a value of the wrong type or out of range."""
    field = _field(problem["loc"], spec)
    where, expected, value = (
        _key(problem),
        problem["msg"].removeprefix("Input should be "),
        problem["input"],
    )
    hint = None
    if problem["type"] == "model_type":
        expected = f"keys below {where or 'the document'}"
        nested = [f"{name}: {inner}" for name, inner in dict(nested_hints(value, known)).items()]
        section = key_hint("datasets", known) if where == "data" else None
        hint = "\n      ".join(filter(None, (section, *nested[:_SHOWN_KEYS]))) or None
    elif field is not None:
        # pydantic names the first form of a union that does not fit, and where it was tried.
        if is_union(field):
            where, expected = (
                ".".join(map(str, problem["loc"][:2])),
                describe_field(field).replace("`", ""),
            )
        hint = value_hint(where, value)
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN_VALUE else f"{shown[:_SHOWN_VALUE]}…"
    return UsageError(
        ErrorCode.SPEC_INVALID,
        f"job spec: {where or 'document'}",
        expected=expected,
        found=shown,
        hint=hint,
    )


def _key(problem: Any) -> str:
    return ".".join(str(part) for part in problem["loc"])


def _field(location: Sequence[int | str], spec: type[BaseModel]) -> FieldInfo | None:
    """Returns the field of the section that a problem is in; None outside of sections."""
    if len(location) < 2:
        return None
    section = spec.model_fields.get(str(location[0]))
    model = section.annotation if section is not None else None
    if not isinstance(model, type) or not issubclass(model, BaseModel):
        return None
    return model.model_fields.get(str(location[1]))
