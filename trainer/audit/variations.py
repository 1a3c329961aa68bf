"""What may differ between a deployment and the shipped one: the published list, with a grammar for each place.

`shape` compares a compose file with the shipped one and asks this list about each place that is in it; everything
else has to be as shipped. docs/audit.md shows the list, and a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from trainer.attestation.dstack.key_source import IDENTITY
from trainer.audit.document import EMBEDDED, SERVICE, Document
from trainer.audit.nodes import Node, child_path
from trainer.deployment import OPERATOR_VARIABLES, DeploymentProfile, operator_reference
from trainer.spec import JOB_VARIABLE, MAX_VARIABLE_BYTES

Grammar = Callable[[Node, Document], bool]

JOB_PORT: Final = 8443
GUEST_AGENT_PORT: Final = 8090
"""Where dstack's guest agent shows its public page."""

_IMAGE: Final = re.compile(
    r"[a-z0-9][a-z0-9._/-]*(?::[0-9]{1,5}/[a-z0-9._/-]+)?@sha256:(?!0{64})[0-9a-f]{64}"
)
_HUB: Final = re.compile(
    r"https://[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?(?:/[A-Za-z0-9._-]+)*/?"
)
_IMAGE_FILE: Final = re.compile(r"/(?:etc|opt|usr)(?:/[A-Za-z0-9_][A-Za-z0-9._+-]*)+")
_PORT: Final = re.compile(
    rf"(?:(?:[0-9]{{1,3}}\.){{3}}[0-9]{{1,3}}:)?([1-9][0-9]{{0,4}}):{JOB_PORT}"
)
_APP_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SIZE: Final = "[1-9][0-9]{0,6}[kmg]"


@dataclass(frozen=True)
class Note:
    """What a reviewer should know about a value that is within its grammar.

    Args:
        code: stable name.
        message: in words; `{}` is replaced by the value.
        hint: what to make of it.
        holds: for which values.
    """

    code: str
    message: str
    hint: str
    holds: Callable[[Node], bool] = lambda _: True


@dataclass(frozen=True)
class Variation:
    """A place whose value a deployment chooses.

    Args:
        place: its path in the shipped app-compose.json; that of the compose file begins with `EMBEDDED`.
        grammar: what it may be, in words.
        accepts: whether a value is within the grammar; None where what is below the place has to be as shipped.
        is_optional: whether it may be absent.
        notes: about values that are accepted.
    """

    place: str
    grammar: str
    accepts: Grammar | None
    is_optional: bool = False
    notes: tuple[Note, ...] = ()


def _matches(pattern: re.Pattern[str]) -> Grammar:
    return lambda node, _: isinstance(node.value, str) and pattern.fullmatch(node.value) is not None


def _number(low: int, high: int) -> Grammar:
    return lambda node, _: type(node.value) is int and low <= node.value <= high


def _is_port(node: Node, _: Document) -> bool:
    match = _PORT.fullmatch(node.value) if isinstance(node.value, str) else None
    return match is not None and int(match[1]) <= 0xFFFF and int(match[1]) != GUEST_AGENT_PORT


def _is_job(node: Node, document: Document) -> bool:
    fits = len(node.text.encode()) <= MAX_VARIABLE_BYTES
    return fits and any(found.path == node.path for found, _ in document.job_specs)


def _is_operator_variable(node: Node, document: Document) -> bool:
    # The encrypted environment needs a key service. A compose file alone has no profile yet.
    name = node.path.rpartition(".")[2]
    return (
        node.text == operator_reference(name) and document.profile is not DeploymentProfile.SEALED
    )


def _are_taken_variables(node: Node, document: Document) -> bool:
    names = [element.value for element in node.elements()]
    taken = document.profile is DeploymentProfile.KMS and document.operator_variables
    return isinstance(node.value, tuple) and names == list(taken or ())


def _is_key_service(node: Node, document: Document) -> bool:
    if document.profile is DeploymentProfile.SEALED:
        return node.value == ""
    return isinstance(node.value, str) and IDENTITY.fullmatch(node.value) is not None


def _is_gateway(node: Node, document: Document) -> bool:
    return node.value is False or (node.value is True and document.profile is DeploymentProfile.KMS)


_ENVIRONMENT: Final = child_path(SERVICE, "environment")
_DEVICES: Final = "deploy.resources.reservations.devices"

_LIST: Final = (
    Variation(
        f"{SERVICE}.image",
        "`NAME@sha256:` and the 64 hex digits of the image that you reviewed; not all zero, no tag",
        _matches(_IMAGE),
    ),
    Variation(
        f"{_ENVIRONMENT}.{JOB_VARIABLE}",
        f"the text of a job spec, at most {MAX_VARIABLE_BYTES} bytes, with `$` written `$$`",
        _is_job,
    ),
    Variation(
        f"{_ENVIRONMENT}.HF_ENDPOINT",
        "`https://`, a host in lower case, and at most a port and a path",
        _matches(_HUB),
        is_optional=True,
        notes=(
            Note(
                "model-hub",
                "the base model comes from {}",
                "expected: digests in the job spec decide what is loaded",
            ),
        ),
    ),
    Variation(
        f"{_ENVIRONMENT}.SSL_CERT_FILE",
        "the path of a file of the image, below `/etc`, `/opt` or `/usr`",
        _matches(_IMAGE_FILE),
        is_optional=True,
    ),
    *(
        Variation(
            f"{_ENVIRONMENT}.{name}",
            f"`{operator_reference(name)}`, in the profile `kms`",
            _is_operator_variable,
            is_optional=True,
            notes=(
                Note(
                    "env-own",
                    f"whoever deploys can set {name}: {effect}",
                    "expected: the job treats its value as an operator's input",
                ),
            ),
        )
        for name, effect in OPERATOR_VARIABLES.items()
    ),
    Variation(
        f"{SERVICE}.ports[0]",
        f"`PORT:{JOB_PORT}` or `ADDRESS:PORT:{JOB_PORT}`: a port up to 65535, not {GUEST_AGENT_PORT}",
        _is_port,
        notes=(
            Note("port-published", "publishes {}", "expected: the job's own port, and no other"),
        ),
    ),
    Variation(
        f"{SERVICE}.tmpfs[0]",
        "`/run/trainer:size=SIZE,mode=0711,exec`: a whole number and `k`, `m` or `g`",
        _matches(re.compile(f"/run/trainer:size={_SIZE},mode=0711,exec")),
    ),
    Variation(
        f"{SERVICE}.tmpfs[1]",
        "`/tmp:size=SIZE`: a whole number and `k`, `m` or `g`",
        _matches(re.compile(f"/tmp:size={_SIZE}")),  # noqa: S108 -- compared only
    ),
    Variation(f"{SERVICE}.pids_limit", "a whole number from 1024 to 65536", _number(1024, 65536)),
    Variation(
        f"{SERVICE}.deploy", "absent without a GPU; as shipped with one", None, is_optional=True
    ),
    Variation(
        f"{SERVICE}.{_DEVICES}[0].count",
        "`all`, or a whole number from 1 to 64",
        lambda node, document: node.value == "all" or _number(1, 64)(node, document),
    ),
    Variation("name", "1 to 64 letters, digits, `.`, `_` and `-`", _matches(_APP_NAME)),
    Variation(
        "key_provider",
        "`none` in the profile `sealed`, `kms` in the profile `kms`",
        lambda node, _: node.value in ("none", "kms"),
        notes=(
            Note(
                "key-provider-none",
                "keys are made in the VM at boot and end with it",
                "expected in the profile sealed: after a restart you verify and grant again",
                lambda node: node.value == "none",
            ),
            Note(
                "key-provider-kms",
                "keys come from a key service, and the clean start empties the disk that outlives the VM",
                "expected in the profile kms: who controls the service can derive every key but the instance key",
                lambda node: node.value == "kms",
            ),
        ),
    ),
    Variation(
        "key_provider_id",
        "empty in the profile `sealed`; in `kms` the service's identity in lower-case hex, 16 to 2048 bytes",
        _is_key_service,
    ),
    Variation(
        "gateway_enabled",
        "false; in the profile `kms` true as well",
        _is_gateway,
        notes=(
            Note(
                "gateway",
                "connections may come through the gateway, which ends TLS unless it passes it through",
                "harmless to the trainer's own client: it pins the key in the evidence",
                lambda node: node.value is True,
            ),
        ),
    ),
    Variation(
        "allowed_envs",
        f"{', '.join(f'`{name}`' for name in OPERATOR_VARIABLES)}, if the compose file takes it; else empty",
        _are_taken_variables,
    ),
    Variation(
        EMBEDDED,
        "the compose file, as above",
        lambda _, document: document.compose.value is not None,
    ),
)

VARIATIONS: Final[Mapping[str, Variation]] = {variation.place: variation for variation in _LIST}
"""The published list, by place."""
