"""Plain text: `{"text": …}`. Every token is trained on."""

from __future__ import annotations

from typing import Final

from trainer.data.rows.row import RowLocation, TextRow
from trainer.data.rows.row_kind import Document, RowKind
from trainer.data.rows.values import check_text


def _parse(location: RowLocation, document: Document) -> TextRow:
    text = check_text(location, "text", document["text"], empty=False)
    return TextRow(location.file, location.index, text)


PLAIN_TEXT: Final = RowKind("text", ("text",), _parse)
