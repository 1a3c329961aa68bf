"""The forms in which a chat template may print a value: as it is, or escaped for JSON, Python, HTML or XML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from trainer.data.examples.row_texts import Scalar

_HTML: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"})
"""As Jinja's filter `escape` writes them."""

_HTML_SAFE_JSON: Final = str.maketrans(
    {"&": r"\u0026", "<": r"\u003c", ">": r"\u003e", "'": r"\u0027"}
)
"""As Jinja's own filter `tojson` writes them inside JSON text."""


def printed_forms(value: Scalar) -> Iterator[str]:
    """Yields the forms of a value, the likeliest first."""
    if isinstance(value, str):
        yield value
        for ascii_only in (False, True):
            escaped = json.dumps(value, ensure_ascii=ascii_only)[1:-1]
            yield from (escaped, escaped.translate(_HTML_SAFE_JSON))
        yield repr(value)[1:-1]
        yield value.translate(_HTML)
    else:
        yield json.dumps(value)  # true, null, 1.0
        yield str(value)  # True, None, 1.0
