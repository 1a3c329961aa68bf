"""The Jinja environment of chat templates.

A template is untrusted code. It runs in Jinja's sandbox for immutable values, which gives no access to attributes
that lead out of the sandbox and no way to change the arguments. As with `transformers`, a template can use
`raise_exception`, `strftime_now`, a `tojson` that does not escape HTML, `break`, `continue` and `{% generation
%}`.

Source: chat templating in the documentation of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

from trainer.errors import ErrorCode, JobError, UsageError

OPEN_MARK, CLOSE_MARK = "\ufdd0", "\ufdd1"
"""Unicode noncharacters, which are reserved for internal use: they mark the ends of a generation block."""

_MAX_DECISIONS: Final = 1024


def make_environment(now: datetime, *, marked: bool) -> Any:
    """Returns an environment whose `strftime_now` formats `now`, and which marks generation blocks if `marked`."""
    from jinja2 import nodes  # noqa: PLC0415 -- part of an extra
    from jinja2.exceptions import TemplateError  # noqa: PLC0415
    from jinja2.ext import Extension, loopcontrols  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    class Generation(Extension):
        """`{% generation %}…{% endgeneration %}`: its content, between marks if `marked` is set."""

        tags = {"generation"}  # noqa: RUF012 -- Jinja's interface

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

        def _content(self, caller: Any) -> str:
            return f"{OPEN_MARK}{caller()}{CLOSE_MARK}" if marked else str(caller())

    def raise_exception(_message: object) -> None:
        raise TemplateError

    class Sandbox(ImmutableSandboxedEnvironment):
        """Jinja's sandbox, which decides once for each type and name: its answer depends on nothing else."""

        _decided: dict[tuple[type, str], bool] = {}  # noqa: RUF012 -- of this one environment

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            key = (type(obj), attr)
            if key not in self._decided:
                if len(self._decided) >= _MAX_DECISIONS:  # names may come from rows
                    self._decided.clear()
                self._decided[key] = super().is_safe_attribute(obj, attr, value)
            return self._decided[key]

    # trim_blocks and lstrip_blocks as in transformers: templates are written for this treatment of white space.
    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = now.strftime
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def require_jinja(chat_template: str, key: str) -> None:
    """Requires that the chat template that a job spec chooses is Jinja text.

    Args:
        chat_template: the template.
        key: the key of the job spec that chooses it.

    Raises:
        UsageError: `SPEC_INVALID`, with the line of the first syntax error.
    """
    try:
        with naming_syntax_errors():
            make_environment(datetime.min, marked=False).from_string(chat_template)
    except JobError as error:
        expected, found = error.expected, error.found
        raise UsageError(
            ErrorCode.SPEC_INVALID, f"job spec: {key}", expected=expected, found=found
        ) from error


@contextmanager
def naming_syntax_errors() -> Iterator[None]:
    """Raises an error that names the line instead of Jinja's.

    Raises:
        JobError: `MODEL_INVALID`; it quotes the template only.
    """
    from jinja2 import TemplateSyntaxError  # noqa: PLC0415 -- part of an extra

    try:
        yield
    except TemplateSyntaxError as error:
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the base model's chat template cannot be used",
            expected="Jinja text",
            found=f"{error.message} in line {error.lineno}",
            hint="write a template that works into data.chat_template",
        ) from error
