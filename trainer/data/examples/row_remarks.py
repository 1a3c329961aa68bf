"""What a provider should know about rows that are trained on: counts over all rows, without any of their text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainer.data.examples.row_summary import RowSummary


@dataclass
class RowRemarks:
    """Counts of what was done to rows, or left out of them.

    Attributes:
        has_template: whether the base model has a chat template.
        rows: number of rows.
        without_template: number of rows of plain prompts, which the chat template does not render.
        ignored_keys: number of keys of messages that were left out.
    """

    has_template: bool
    rows: int = 0
    without_template: int = 0
    ignored_keys: int = 0

    def add(self, row: RowSummary) -> None:
        """Counts a row."""
        self.rows += 1
        self.without_template += self.has_template and row.without_template
        self.ignored_keys += row.ignored_keys

    def warnings(self) -> Iterator[str]:
        """Yields a warning for each count above 0."""
        if self.without_template:
            yield (
                f"{self.without_template} of {self.rows} rows are trained on without the model's chat template: "
                "their prompts are text. To make conversations of them, name the columns instruction and output "
                "with data.columns, add a column `system`, or write lists of messages"
            )
        if self.ignored_keys:
            yield f"{self.ignored_keys} keys of messages were left out (data.ignore_message_keys)"
