"""Section `exchange`: limits of the untrusted carrier."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.models import Strict


class ExchangeSection(Strict):
    """Limits of the untrusted carrier. Times in seconds, sizes in bytes."""

    host: Annotated[str, Field(pattern=r"^[0-9A-Za-z.:-]{1,253}$")] = "0.0.0.0"  # noqa: S104 -- inside a VM
    port: Annotated[int, Field(ge=0, le=65535)] = 8443
    max_upload_bytes: Annotated[int, Field(ge=1 << 10, le=1 << 44)] = 1 << 34
    dataset_timeout_seconds: Annotated[int, Field(ge=1, le=30 * 86400)] = 86400
    linger_seconds: Annotated[int, Field(ge=0, le=30 * 86400)] = 3600
