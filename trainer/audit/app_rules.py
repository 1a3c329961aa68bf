"""Rules on app-compose.json, which configures the guest OS. Names and defaults are dstack's (`AppCompose`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Final

from trainer.attestation.dstack.key_source import CLEAN_START_SHA256
from trainer.audit.document import EMBEDDED, Document
from trainer.audit.environment_rules import SCRIPTS, own_variables
from trainer.audit.findings import shown
from trainer.audit.nodes import Node
from trainer.audit.service_rules import Hits
from trainer.deployment import OPERATOR_VARIABLES
from trainer.encoding import sha256_hex

_STEERING: Final = re.compile(r"(?i)(?:LD|PYTHON|COMPOSE|DOCKER|DSTACK)_?\w*|PATH|BASH_ENV|ENV|HOME|\w*ROOT_\w*")
_HEX: Final = re.compile("(?:[0-9a-fA-F]{2})+")
_OWN_SCRIPT: Final = "init_script"
_THROUGH_GATEWAY: Final = "connections may come through the gateway, which ends TLS unless it passes it through"
_FILE_SYSTEMS: Final = frozenset({"ext4", "zfs"})
_WEAK_GPU: Final = ("allow_devtools", "allow_debug", "allow_insecure_boot")
_ABSENT: Final = Node(None, 1, "")


def _app(document: Document) -> Node:
    return document.app or _ABSENT


def value_at(document: Document, *, path: str, message: str, holds: Callable[[Node], object]) -> Hits:
    """Finds the value at `path` of app-compose.json, such as `docker_config.registry`, if `holds` is true for it.

    In the message, `{}` is replaced by the value.
    """
    if document.app is None:
        return
    node = document.app
    for key in path.split("."):
        node = node.get(key)
    if holds(node):
        yield node, message.format(shown(node.text))


switched_on: Final = partial(value_at, holds=lambda node: node.is_on)
"""Finds what a key of app-compose.json switches on."""


def no_compose(document: Document) -> Hits:
    """Finds another runner than compose: no rule here judges what it runs."""
    if document.app is None:
        return
    runner = document.app.get("runner")
    if runner.text not in {"docker-compose", "nerdctl-compose"}:
        yield runner, f"the runner is {shown(runner.text)}, not docker-compose"
    elif document.compose.value is None:
        yield document.app.get(EMBEDDED), "there is no compose file inside"


def script(document: Document) -> Hits:
    """Finds scripts that run as root in the VM, outside of any container."""
    for name in SCRIPTS:
        node = _app(document).get(name)
        own = name == _OWN_SCRIPT  # elsewhere it would run while the engine does
        if any(each.text.strip() and not (own and _is_clean_start(each)) for each in node.elements()):
            yield node, f"{name} runs as root in the VM, before and outside of the containers"


def clean_start(document: Document) -> Hits:
    """Finds the script of this project's profile `kms`, by its digest."""
    for node in _app(document).get(_OWN_SCRIPT).elements():
        if _is_clean_start(node):
            yield node, f"{_OWN_SCRIPT} is this project's clean start: it empties the container engine's stores"


def disk_retained(document: Document) -> Hits:
    """Finds data disks that outlive a VM, and that nothing empties before a container engine reads them."""
    if document.app is None or _key_provider(document.app)[1] == "none":
        return
    script_node = document.app.get(_OWN_SCRIPT)
    if not any(_is_clean_start(node) for node in script_node.elements()):
        yield script_node, "other versions of the app, whose disk this may be, can have left containers that start"


def _is_clean_start(node: Node) -> bool:
    return sha256_hex(node.text.encode()) == CLEAN_START_SHA256


def allowed_env(document: Document, *, kind: str) -> Hits:
    """Finds variables that the deployer fills in after the text was measured.

    Args:
        document: the compose file.
        kind: `own`: this project has them for the deployer, and the job treats them as an operator's input;
            `steering`: they change which program or file is used; `other`: all others.
    """
    for node in _app(document).get("allowed_envs").elements():
        effect = OPERATOR_VARIABLES.get(node.text)
        found = "own" if effect is not None else "steering" if _STEERING.fullmatch(node.text) else "other"
        if found == kind:
            consequence = ", after the text was measured" if effect is None else f": {effect}"
            yield node, f"whoever deploys can set {shown(node.text)}{consequence}"
    if kind == "own" and document.app is None:  # no list: the place where the compose file uses it is shown
        for node, name in own_variables(document):
            yield node, f"whoever deploys can set {name}: {OPERATOR_VARIABLES[name]}"


public_tcbinfo: Final = partial(
    value_at,
    path="public_tcbinfo",
    message="anyone can read the measurements and this text from the VM",
    holds=lambda node: node.is_on or node.value is None,
)
"""Finds public measurements, which are no secret. Absent means on."""


def _key_provider(app: Node) -> tuple[Node, str]:
    """Returns the node that decides the key provider, and its name, as dstack picks it."""
    if (stated := app.get("key_provider")).value is not None:
        return stated, stated.text
    if (kms := app.get("kms_enabled")).is_on:
        return kms, "kms"
    local = app.get("local_key_provider_enabled")
    return (local, "local") if local.is_on else (kms, "none")


def key_provider_local(document: Document) -> Hits:
    """Finds keys that are bound to one machine, by a service that its operator runs."""
    if document.app is not None:
        node, kind = _key_provider(document.app)
        if kind not in {"kms", "none"}:
            yield node, f"the app's keys come from the machine itself ({shown(kind)}), not from a key service"


def key_provider_none(document: Document) -> Hits:
    """Finds keys that end with the VM."""
    if document.app is not None:
        node, kind = _key_provider(document.app)
        if kind == "none":
            yield (
                node,
                "keys are made in the VM at boot and end with it; no key chain names the app",
            )


def key_provider_unpinned(document: Document) -> Hits:
    """Finds that any key service will do, also one that the operator runs."""
    if document.app is not None and _key_provider(document.app)[1] == "kms":
        node = document.app.get("key_provider_id")
        if not node.text:
            yield node, "the text does not say which key service: the one that the operator names is asked"
        elif not _HEX.fullmatch(node.text):
            yield node, "the identity of the key service is not hex: a placeholder, with which no VM boots"


swap: Final = partial(
    value_at,
    path="swap_size",
    message="memory may be written to the VM's disk, encrypted only with the disk's key",
    holds=lambda node: node.is_on and re.search("[1-9]", node.text),
)
"""Finds swap: memory may be written to the VM's disk."""

storage_unknown: Final = partial(
    value_at,
    path="storage_fs",
    message="storage_fs is {}, which no known release offers",
    holds=lambda node: node.value is not None and node.text not in _FILE_SYSTEMS,
)
"""Finds a file system that no release is known to offer."""

registry: Final = partial(
    value_at,
    path="docker_config.registry",
    message="images come from {}; only a digest says which",
    holds=lambda node: node.text,
)
"""Finds another registry that images come from or through."""


def features(document: Document) -> Hits:
    """Finds features, the form of older releases for switching things on."""
    for node in _app(document).get("features").elements():
        if node.text != "tproxy-net":
            yield node, f"the feature {shown(node.text)} is switched on in a way that newer releases ignore"


def gateway(document: Document) -> Hits:
    """Finds that connections arrive through dstack's gateway."""
    for name in ("gateway_enabled", "tproxy_enabled"):
        if (node := _app(document).get(name)).is_on:
            yield node, _THROUGH_GATEWAY
    for node in _app(document).get("features").elements():
        if node.text == "tproxy-net":
            yield node, _THROUGH_GATEWAY


secure_time_off: Final = partial(
    value_at,
    path="secure_time",
    message="the host can set the VM's clock",
    holds=lambda node: node.value is not None and not node.is_on,
)
"""Finds a clock that the host sets: it makes old evidence look new."""

secure_time_absent: Final = partial(
    value_at,
    path="secure_time",
    message="secure_time is not stated, and its default depends on the release",
    holds=lambda node: node.value is None,
)
"""Finds that `secure_time` is not stated; releases differ in their default."""

gpu_policy_absent: Final = partial(
    value_at,
    path="requirements.gpu_policy",
    message="requirements.gpu_policy is not stated: the guest's default decides",
    holds=lambda node: node.value is None,
)
"""Finds that `gpu_policy` is not stated.

Guests that know the key then apply their default; others attest no GPU at boot.
"""


def gpu_policy_weak(document: Document) -> Hits:
    """Finds a policy that allows a GPU whose memory others may read."""
    policy = _app(document).get("requirements").get("gpu_policy")
    attested = policy.get("attest_gpu")
    if attested.value is not None and not attested.is_on:
        yield attested, "the GPU is not attested before keys are handed out"
    for name in _WEAK_GPU:
        if (node := policy.get(name)).is_on:
            yield node, f"{name}: the GPU may be in a mode that does not keep secrets"


def requirements_ignored(document: Document) -> Hits:
    """Finds `requirements` beside a numeric version.

    Guests that do not know `requirements` refuse a version in quotes, and overlook the key otherwise.
    """
    app = _app(document)
    version = app.get("manifest_version")
    if app.get("requirements").value is not None and not isinstance(version.value, str):
        yield version, "guests that do not know `requirements` overlook it with a numeric manifest_version"


def job_spec_missing(document: Document) -> Hits:
    """Finds that no job spec is part of what is measured."""
    if not document.job_specs:
        yield document.compose.get("services"), "no service gets a job spec: the text does not fix the job"


def job_spec_ambiguous(document: Document) -> Hits:
    """Finds more than one job spec: which one runs depends on the command line."""
    for node, _ in document.job_specs[1:]:
        yield node, "there is more than one job spec in the text"
