"""Where the keys of a VM come from, and who else could read the data because of it: one rule for all that ask.

| key provider | keys | data disk | strict |
|---|---|---|---|
| `none` | made at boot in the VM, and lost with it | new at each boot | yes |
| `kms` | from a key service: the same for all versions of the app | kept | with identity and clean start |
| `local`, `tpm` | from the machine that the operator has | kept | no |

Whoever controls a key service can derive each key that it gives, that of the disk included. The key of the disk
depends on app and instance and not on the compose text: an honest service gives it to earlier versions of the app
as well. What they left there runs beside the job, unless something empties the disk before an engine starts.

Source: dstack 0.6.0, `dstack-types` (`key_provider()` of `AppCompose`) and `dstack-util` (`request_app_keys`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from trainer.encoding import sha256_hex

NO_KEY_SERVICE: Final = "none"
KEY_SERVICE: Final = "kms"

CLEAN_START_SHA256: Final = "449a39fb638fc46344aaf904a85b26a05215bbe47e846ad3923962a1dc21ed69"
"""SHA-256 of the init script that empties the container engines' stores (`trainer/deployment/clean_start.sh`)."""

IDENTITY: Final = re.compile("(?:[0-9a-f]{2}){16,2048}")
"""Identity of a key service, 16 to 2048 bytes in lower-case hex: the public key of its root certificate."""


@dataclass(frozen=True)
class KeySource:
    """Where the keys of a VM come from, as app-compose.json says or a policy demands.

    Attributes:
        provider: dstack's name of the key provider; None where it is left open or contradicts itself.
        identity: identity of the key provider in hex; empty where none is named.
        init_scripts: SHA-256 of each script that runs before a container engine starts; None where left open.
    """

    provider: str | None
    identity: str = ""
    init_scripts: tuple[str, ...] | None = ()


@dataclass(frozen=True)
class KeyWeakness:
    """Why a key source is not strict.

    Attributes:
        code: stable name.
        reason: who else could read the data, in plain words.
        hint: what to do about it.
    """

    code: str
    reason: str
    hint: str


OPEN_PROVIDER: Final = KeyWeakness(
    "key-provider-open",
    "any key service may give the VM its keys, one of the operator's own as well: whoever controls it can read "
    "what is sealed to the derived key, and can put containers on the VM's disk that run beside the job",
    "use no key service (key_provider none), or name one that you trust by its identity",
)
MACHINE_PROVIDER: Final = KeyWeakness(
    "key-provider-machine",
    "the keys come from the machine or from a service on it, which the operator has: he may be able to read what "
    "is sealed to the derived key, and the VM's disk",
    "use no key service (key_provider none), or name one that you trust by its identity",
)
UNNAMED_SERVICE: Final = KeyWeakness(
    "key-provider-unpinned",
    "the key service is not named by its identity, so the one that the operator names is asked: whoever controls "
    "it can read what is sealed to the derived key, and can put containers on the VM's disk that run beside it",
    "name the key service by its identity in hex (key_provider_id)",
)
NO_CLEAN_START: Final = KeyWeakness(
    "clean-start-missing",
    "with a key service the VM's disk outlives it and nothing empties it: earlier versions of the app can have "
    "left containers or changed image layers that run beside the job and read the data",
    "make app-compose.json with `trainer job render --profile kms`, whose init_script empties the disk",
)


def key_weaknesses(source: KeySource) -> Iterator[KeyWeakness]:
    """Yields why others than the VM could read the data because of where its keys come from; nothing if strict."""
    if source.provider == NO_KEY_SERVICE:
        return
    if source.provider is None:
        yield OPEN_PROVIDER
    elif source.provider != KEY_SERVICE:
        yield MACHINE_PROVIDER
    elif not IDENTITY.fullmatch(source.identity):
        yield UNNAMED_SERVICE
    # Exactly the one script: another one before it could keep what it removes.
    if source.init_scripts != (CLEAN_START_SHA256,):
        yield NO_CLEAN_START


def read_key_source(app: Mapping[str, object]) -> KeySource:
    """Returns the key source of a parsed app-compose.json, as dstack picks it."""
    by_switch = {"kms": app.get("kms_enabled"), "local": app.get("local_key_provider_enabled")}
    switched_on = [name for name, switch in by_switch.items() if switch not in (None, False)]
    stated = app.get("key_provider")
    provider: object = next(iter(switched_on), NO_KEY_SERVICE) if stated is None else stated
    # Releases differ in which of the keys they read. Where these contradict each other, nothing is certain.
    consistent = switched_on == [name for name in by_switch if name == provider]
    identity = app.get("key_provider_id")
    return KeySource(
        provider if consistent and isinstance(provider, str) else None,
        identity if isinstance(identity, str) else "",
        _script_digests(app.get("init_script")),
    )


def _script_digests(scripts: object) -> tuple[str, ...] | None:
    """Returns the digest of each script: dstack 0.5 has one text, 0.6 a list; None for anything else."""
    if scripts is None:
        return ()
    texts = scripts if isinstance(scripts, list | tuple) else [scripts]
    digests = [
        sha256_hex(text.encode("utf-8", "surrogatepass")) for text in texts if isinstance(text, str)
    ]
    return tuple(digests) if len(digests) == len(texts) else None
