"""Section `exchange`: limits of the untrusted carrier, and who may submit."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from trainer.models import MAX_PROVIDERS, ProviderPublicKey, Strict

MIN_JOINT_PROVIDERS: Final = 2

MAX_DATASET_TRIES: Final = 10
"""Each try has a process that waits for it, and a refused one lets a worker say a little in public."""


STORE_LOCATION: Final = (
    r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}){0,8}"
)
"""A bucket, and below it a prefix of plain names."""

MAX_STORED_BYTES: Final = 1 << 40
"""The largest file in an object store: its index names each part."""


class ExchangeSection(Strict):
    """Limits of the untrusted carrier, and who may submit. Times in seconds, sizes in bytes.

    With `joint` the job trains one adapter on the datasets of all `providers` together, in the order of the list,
    once each of them has sent one. Otherwise the first dataset of any of them is trained on.
    """

    host: Annotated[str, Field(pattern=r"^[0-9A-Za-z.:-]{1,253}$")] = "0.0.0.0"  # noqa: S104 -- inside a VM
    port: Annotated[int, Field(ge=0, le=65535)] = 8443
    max_upload_bytes: Annotated[int, Field(ge=1 << 10, le=1 << 44)] = 1 << 34
    dataset_timeout_seconds: Annotated[int, Field(ge=1, le=30 * 86400)] = 86400
    dataset_tries: Annotated[int, Field(ge=1, le=MAX_DATASET_TRIES)] = 5
    """How many datasets that open may be handed to a worker: each try after the first follows a refusal."""
    linger_seconds: Annotated[int, Field(ge=0, le=30 * 86400)] = 3600
    joint: bool = False
    providers: Annotated[tuple[ProviderPublicKey, ...], Field(max_length=MAX_PROVIDERS)] = ()
    """Provider keys of those who may submit a dataset; empty: whoever reaches the job."""

    store: Annotated[str, Field(pattern=f"^{STORE_LOCATION}$")] | None = None
    """An object store that the exchange goes through in place of HTTP; None: none."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if len(set(self.providers)) != len(self.providers):
            raise ValueError("providers: expected each provider key once")
        if self.joint and len(self.providers) < MIN_JOINT_PROVIDERS:
            raise ValueError(
                f"joint: expected at least {MIN_JOINT_PROVIDERS} provider keys in exchange.providers, "
                f"got {len(self.providers)}"
            )
        if self.store is not None and self.joint:
            raise ValueError(
                "joint: several providers exchange over HTTP or a spool, not through a store"
            )
        if self.store is not None and self.max_upload_bytes > MAX_STORED_BYTES:
            raise ValueError(f"max_upload_bytes: at most {MAX_STORED_BYTES} with a store")
        return self

    @property
    def who_may_submit(self) -> str:
        """Says in words who may submit a dataset to the job."""
        if self.joint:
            return f"each of these providers has to submit a dataset: {', '.join(self.providers)}"
        if not self.providers:
            return "whoever reaches the job may submit a dataset: exchange.providers lists nobody"
        return f"only listed providers may submit a dataset: {', '.join(self.providers)}"
