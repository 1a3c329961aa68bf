"""What torch 2.11 lacks of what the project is pinned to, for machines with a GPU that have no other."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any


def accept_grouped_queries() -> None:
    """Let `varlen_attn` take `enable_gqa`, which came with torch 2.12; its kernel had grouped queries before."""
    from torch.nn.attention import varlen

    attention: Any = varlen.varlen_attn
    if "enable_gqa" in inspect.signature(attention).parameters:
        return

    @wraps(attention)
    def without_flag(*arguments: Any, **named: Any) -> Any:
        named.pop("enable_gqa", None)
        return attention(*arguments, **named)

    varlen.varlen_attn = without_flag
