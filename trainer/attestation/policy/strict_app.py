"""The section `app` of a strict policy, from the app-compose.json that was reviewed.

A strict policy never leaves open where the VM's keys come from. It follows from the text which of the two ways
it is: no key service, or one that the provider names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import ValidationError

from trainer.attestation.dstack.compose import compose_hash, parse_app_compose
from trainer.attestation.dstack.key_source import (
    IDENTITY,
    KEY_SERVICE,
    NO_KEY_SERVICE,
    UNNAMED_SERVICE,
    KeySource,
    key_weaknesses,
    read_key_source,
)
from trainer.attestation.policy.app_section import (
    DERIVED_RECIPIENT_HINT,
    AppSection,
    KeyProviderDemand,
)
from trainer.errors import ErrorCode, UsageError
from trainer.spec import JobSpec

APP_ID_DIGITS: Final = 40

Recipient = Literal["derived", "instance"]

_FORMS: Final = {
    "--key-provider-id": (IDENTITY.pattern, "16 to 2048 bytes in lower-case hex"),
    "--kms-root-key": ("0[23][0-9a-f]{64}", "02 or 03 and 64 lower-case hex digits"),
    "--app-id": ("[0-9a-f]{40}", "40 lower-case hex digits"),
}


@dataclass(frozen=True)
class KeyServicePins:
    """A key service that the provider trusts, and the app that it gives keys for. None where it is not known.

    Attributes:
        identity: the service's identity in hex (`key_provider_id`).
        root_key: its root key, a compressed secp256k1 point in hex.
        app_id: the app's id in hex, 20 bytes.
    """

    identity: str | None = None
    root_key: str | None = None
    app_id: str | None = None

    def named(self) -> dict[str, str | None]:
        """Returns the option of `policy init` that gives each → its value."""
        return {
            "--key-provider-id": self.identity,
            "--kms-root-key": self.root_key,
            "--app-id": self.app_id,
        }


NO_PINS: Final = KeyServicePins()


def strict_app(
    app_compose: str,
    job_specs: Sequence[JobSpec],
    *,
    pins: KeyServicePins = NO_PINS,
    recipient: Recipient = "instance",
) -> AppSection:
    """Returns the section that accepts one app-compose.json, these job specs, and the key source of that text.

    Args:
        app_compose: exact text of app-compose.json.
        job_specs: the job specs that may run; at least one.
        pins: the key service, for a text that demands one; its identity only if the text does not name it.
        recipient: which of the job's recipients to seal to; later versions of the app cannot open what is sealed
            to the instance recipient.

    Raises:
        UsageError: no job spec; a text that lets others than the VM read the data; or `pins` that do not fit it.
    """
    source = app_key_source(app_compose, pins)
    for weakness in key_weaknesses(source):
        hint = (
            "or give --key-provider-id"
            if weakness is UNNAMED_SERVICE and not source.identity
            else None
        )
        raise UsageError(
            ErrorCode.USAGE,
            "the app-compose file",
            expected="one that lets nobody but the VM read the data",
            found=weakness.reason,
            hint=weakness.hint if hint is None else f"{weakness.hint}, {hint}",
        )
    digest = compose_hash(app_compose)
    if source.provider == NO_KEY_SERVICE:
        _refuse_pins(pins, recipient)
        # Without a key service, dstack's guest refuses to boot with another app id than this.
        app_id, root_key = digest[:APP_ID_DIGITS], "none"
    else:
        app_id, root_key = _required_pins(pins)
    if source.init_scripts is None:
        raise _not_a_compose_file("an init_script that is no text")
    try:
        return AppSection(
            compose_sha256=(digest,),
            job_spec_sha256=_digests(job_specs),
            app_id=app_id,
            key_provider=KeyProviderDemand(name=source.provider or "", id=source.identity),
            kms_root_key=root_key,
            init_script_sha256=source.init_scripts,
            recipient=recipient,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _not_a_compose_file(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def undecided_app(app_compose: str, job_specs: Sequence[JobSpec]) -> AppSection:
    """Returns the section that accepts one app-compose.json with any keys.

    It serves to find out which key service a job has, before anybody decides about it; never to seal data.
    """
    return AppSection(
        compose_sha256=(compose_hash(app_compose),),
        job_spec_sha256=_digests(job_specs),
        app_id="any",
        key_provider="any",
        kms_root_key="any",
        init_script_sha256="any",
        recipient="instance",
    )


def app_key_source(app_compose: str, pins: KeyServicePins = NO_PINS) -> KeySource:
    """Returns the key source of an app-compose.json; `pins` may add the identity that the text does not name.

    Raises:
        UsageError: not a JSON object, an option of another form, or two different identities.
    """
    try:
        document = parse_app_compose(app_compose)
    except ValueError as error:
        raise _not_a_compose_file(str(error)) from None
    for option, value in pins.named().items():
        form, expected = _FORMS[option]
        if value is not None and not re.fullmatch(form, value):
            raise UsageError(
                ErrorCode.USAGE, option, expected=expected, found=value, hint="ask the operator"
            )
    source = read_key_source(document)
    if source.provider == KEY_SERVICE and pins.identity is not None:
        if source.identity not in ("", pins.identity):
            raise UsageError(
                ErrorCode.USAGE,
                "--key-provider-id",
                expected=f"{source.identity}, which the app-compose file names",
                found=pins.identity,
                hint="leave the option out, or ask the operator for another app-compose file",
            )
        return KeySource(source.provider, pins.identity, source.init_scripts)
    return source


def _digests(job_specs: Sequence[JobSpec]) -> tuple[str, ...]:
    if not job_specs:
        raise UsageError(
            ErrorCode.USAGE, "a strict policy", expected="at least one job spec", found="none"
        )
    return tuple(spec.sha256() for spec in job_specs)


def _refuse_pins(pins: KeyServicePins, recipient: Recipient) -> None:
    given = [option for option, value in pins.named().items() if value is not None]
    if given:
        raise UsageError(
            ErrorCode.USAGE,
            ", ".join(given),
            expected="an app-compose file with a key service",
            found="one with no key service: the VM makes its keys itself",
            hint="leave the options out",
        )
    if recipient == "derived":
        raise UsageError(
            ErrorCode.USAGE,
            "--recipient derived",
            expected="an app-compose file with a key service",
            found="one with no key service, whose derived key ends with the VM",
            hint=DERIVED_RECIPIENT_HINT,
        )


def _required_pins(pins: KeyServicePins) -> tuple[str, str]:
    """Returns app id and root key.

    Raises:
        UsageError: one of them is not given.
    """
    if pins.app_id is not None and pins.root_key is not None:
        return pins.app_id, pins.root_key
    missing = [
        option
        for option, value in pins.named().items()
        if value is None and option != "--key-provider-id"
    ]
    raise UsageError(
        ErrorCode.USAGE,
        "the key service of this app",
        expected=" and ".join(missing),
        found="nothing that names it",
        hint="whoever runs the key service publishes its root key, and the operator knows the app id; or take "
        "both from the job, with --from-job",
    )


def _not_a_compose_file(found: str) -> UsageError:
    return UsageError(
        ErrorCode.USAGE,
        "the app-compose file",
        expected="the app-compose.json of dstack",
        found=found,
        hint="it is the app-compose.json that the VM measures, not docker-compose.yaml",
    )
