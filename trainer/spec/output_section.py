"""Section `output`: contents of the sealed result."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.models import Strict


class OutputSection(Strict):
    """Contents of the sealed result in addition to the adapter and the receipt.

    `samples` is the number of held-out prompts that the model answers before and after training, with at most
    `sample_max_new_tokens` tokens each.
    `merged_16bit` adds the complete model, the adapter merged into the base, in bfloat16. In a mixture of experts
    this rounding may send a token to another expert where the scores of two are nearly equal.
    """

    include_logs: bool = True
    merged_16bit: bool = False
    samples: Annotated[int, Field(ge=0, le=64)] = 3
    sample_max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 32
