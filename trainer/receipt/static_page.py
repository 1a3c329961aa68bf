"""The form of the report page: one style element, tables and charts, and nothing that a browser would run or load.

The page is not parsed as browsers parse HTML, which corrects what is wrong with it and may understand it
differently. It must be in the one form that the report has: this head, then text and tags of a closed list.
"""

from __future__ import annotations

import re
from html import unescape
from typing import Final

from trainer.encoding import page_security_policy

_TAGS: Final = (
    "article|b|circle|details|div|figcaption|figure|g|h1|h2|h3|li|line|main|p|polyline|section|small|span|summary|svg|"
    "table|td|text|th|tr|ul"
)
# None of these attributes makes a browser run or load something.
_ATTRIBUTES: Final = (
    "(?: (?:aria-label|class|cx|cy|points|r|role|text-anchor|viewBox|x|x1|x2|y|y1|y2)="
    '(?:"[^"<>]*"|[a-z.-]+))*'
)
_PAGE: Final = re.compile(
    r"<!doctype html><html lang=en><head><meta charset=utf-8>"
    r'<meta name=viewport content="width=device-width,initial-scale=1">'
    r'<meta http-equiv=Content-Security-Policy content="([^"<>]*)">'
    r"<title>[^<]*</title><style>([^<]*)</style></head><body>(.*)</body></html>\n",
    re.DOTALL,
)
_TAG: Final = re.compile(rf"</?(?:{_TAGS}){_ATTRIBUTES}/?>")


def require_static_page(text: str) -> None:
    """Requires that a text is a page of this form.

    Raises:
        ValueError: another head, another security policy than that of its style, or markup of another kind.
    """
    page = _PAGE.fullmatch(text)
    if page is None:
        raise ValueError("not a page with the head of a report")
    policy, style, body = page.groups()
    if unescape(policy) != page_security_policy(style):
        raise ValueError("a page whose security policy allows more than its own style")
    if any(_TAG.match(part) is None for part in re.findall("<[^<]*", body)):
        raise ValueError("a page with markup that no report has")
