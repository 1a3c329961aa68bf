"""Arguments of chat templates: variables that a template reads beside the messages, such as `enable_thinking`."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

ArgumentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]
"""Name of a Jinja variable."""

TemplateArgument = bool | int | Annotated[str, Field(max_length=4096)] | tuple[str, ...]
"""Value of a variable; no fraction, since 1 and 1.0 have one digest in a job spec but are printed differently."""

_SET_BY_RENDERER: Final = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}
)
_SET_BY_JINJA: Final = frozenset({"range", "dict", "lipsum", "cycler", "joiner", "namespace"})


def is_set_by_renderer(name: str) -> bool:
    """Returns whether a variable of templates is the renderer's own, such as `messages` and `bos_token`."""
    return name in _SET_BY_RENDERER | _SET_BY_JINJA or name.endswith("_token")
