"""The policy's section `app`: what may run, where the VM's keys come from, and which key data is sealed to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from trainer.attestation.dstack.key_source import (
    IDENTITY,
    KEY_SERVICE,
    NO_KEY_SERVICE,
    KeySource,
    KeyWeakness,
    key_weaknesses,
)
from trainer.attestation.policy.sections import Unset
from trainer.models import Sha256Hex, Strict

KeyIdentity = Annotated[str, Field(pattern=f"^({IDENTITY.pattern})?$")]
"""Identity of a key provider: the public key of the KMS's root certificate; empty where there is none."""
RootKey = Annotated[str, Field(pattern=r"^0[23][0-9a-f]{64}$")]
"""Compressed secp256k1 point in hex."""
AppId = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]

MAX_INIT_SCRIPTS: Final = 16

OPEN_ROOT_KEY: Final = KeyWeakness(
    "kms-root-key-open",
    "the root key of the key service is left open: keys that another service issued pass for its own",
    "write the root key of the key service into app.kms_root_key",
)

DERIVED_RECIPIENT: Final = "derived_recipient"
DERIVED_RECIPIENT_HINT: Final = (
    "write name, identity and root key of a key service that you trust into app.key_provider and "
    "app.kms_root_key, or `recipient: instance`"
)


class KeyProviderDemand(Strict):
    """The key provider that the VM must have measured: its name (`none`, `kms` …) and identity."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]
    id: KeyIdentity


class AppSection(Strict):
    """What may run, where the VM's keys come from, and which of the two recipients a dataset is sealed to."""

    compose_sha256: Annotated[tuple[Sha256Hex, ...], Field(min_length=1)]
    job_spec_sha256: Annotated[tuple[Sha256Hex, ...], Field(min_length=1)]
    app_id: AppId | Unset
    key_provider: KeyProviderDemand | Unset
    kms_root_key: RootKey | Literal["none"] | Unset
    """`none`: no key service issued the VM's keys."""
    init_script_sha256: Annotated[tuple[Sha256Hex, ...], Field(max_length=MAX_INIT_SCRIPTS)] | Unset
    """The scripts that run before a container engine starts, in order; empty for none."""
    recipient: Literal["derived", "instance"]

    @field_validator("kms_root_key")
    @classmethod
    def _root_fits_provider(cls, root: str, info: ValidationInfo) -> str:
        # Such a policy would accept nothing, and say so only when a job is verified.
        provider = info.data.get("key_provider")
        if not isinstance(provider, KeyProviderDemand) or root == "any":
            return root
        if (provider.name == NO_KEY_SERVICE) != (root == "none"):
            raise ValueError("write `none` here exactly if key_provider has the name none")
        return root

    @field_validator("recipient")
    @classmethod
    def _derived_needs_a_named_service(cls, recipient: str, info: ValidationInfo) -> str:
        # Whoever has the key service has this key. If any service will do, it may be the operator's own.
        provider, root = info.data.get("key_provider"), info.data.get("kms_root_key")
        if recipient == "derived" and {"key_provider", "kms_root_key"} <= info.data.keys():
            named = (
                isinstance(provider, KeyProviderDemand)
                and provider.name == KEY_SERVICE
                and provider.id
            )
            if not named or root in ("any", "none"):
                raise PydanticCustomError(
                    DERIVED_RECIPIENT,
                    "`derived` needs a key service with name kms, identity and root key",
                )
        return recipient

    @property
    def key_source(self) -> KeySource:
        """Where the VM's keys must come from under this policy."""
        scripts = None if self.init_script_sha256 == "any" else self.init_script_sha256
        if self.key_provider == "any":
            return KeySource(None, "", scripts)
        return KeySource(self.key_provider.name, self.key_provider.id, scripts)

    def key_weaknesses(self) -> Iterator[KeyWeakness]:
        """Yields why others than the VM could read the data because of what this section leaves open."""
        source = self.key_source
        yield from key_weaknesses(source)
        if source.provider == KEY_SERVICE and self.kms_root_key == "any":
            yield OPEN_ROOT_KEY

    def explain(self) -> Iterator[str]:
        """Yields what this section demands and leaves open, one sentence each."""
        yield f"The measured app-compose.json must be one of {len(self.compose_sha256)} listed."
        yield f"The job spec must be one of {len(self.job_spec_sha256)} listed."
        yield "Whoever reaches the job may submit a dataset, unless its spec lists providers (exchange.providers)."
        if self.recipient == "instance":
            yield "Data is sealed to a key that lives in this VM's memory only; after a restart it is sealed anew."
        else:
            yield "Data is sealed to a key that the key service also gives to later versions of the same app."
        yield from self._explain_demands()
        yield from self._explain_readers()

    def _explain_demands(self) -> Iterator[str]:
        """Yields which app and which key provider are demanded."""
        yield (
            "Not demanded: a particular app id."
            if self.app_id == "any"
            else f"The app id must be {self.app_id}."
        )
        provider, root, scripts = self.key_provider, self.kms_root_key, self.init_script_sha256
        if provider == "any":
            yield "Not demanded: a key provider."
        elif provider.name == NO_KEY_SERVICE:
            yield "The VM must have no key provider: it makes its keys itself, at boot."
        else:
            yield f"The key provider must be {provider.name} with identity {provider.id or 'empty'}."
        if root == "any":
            yield "Not demanded: a particular key service root key."
        elif root != "none":
            yield f"The key service root key must be {root}."
        if scripts == "any":
            yield "Not demanded: which scripts run before the container engine starts."
        else:
            named = ", ".join(scripts) or "none"
            yield f"Scripts that run before the container engine starts: {named}."

    def _explain_readers(self) -> Iterator[str]:
        """Yields who else could read the data."""
        weaknesses = list(self.key_weaknesses())
        for weakness in weaknesses:
            yield f"CAUTION: {weakness.reason}."
        source = self.key_source
        if source.provider == NO_KEY_SERVICE:
            yield "Who else could read the data: nobody. The VM's keys and its disk end with it."
        elif not weaknesses:
            get = "get" if self.recipient == "derived" else "do not get"
            yield (
                "Who else could read the data: whoever controls the key service, and whoever may publish versions "
                "of the app under it, earlier or later. They can get the key of the VM's disk, and with the host "
                f"change on it what runs in the VM; the key that data is sealed to they {get}. What earlier "
                "versions left on the disk is removed before a container engine starts."
            )
