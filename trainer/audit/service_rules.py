"""Rules on what a container may do: image, isolation, ports."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, TypeAlias

from trainer.audit.document import Document
from trainer.audit.findings import shown
from trainer.audit.nodes import Node

Hits: TypeAlias = Iterator[tuple[Node, str]]
"""What a rule found: where, and in words."""

_DIGEST: Final = re.compile(r"@sha256:([0-9a-f]{64})$")
_CONTROL_ALL: Final = frozenset(
    {"ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_PTRACE", "SYS_RAWIO", "BPF", "DAC_READ_SEARCH"}
)
_SWITCH_USERS: Final = frozenset({"CHOWN", "DAC_OVERRIDE", "KILL", "SETGID", "SETUID"})
"""What the job makes three users of its processes with; any container has them that drops none."""

_NAMESPACES: Final = ("network_mode", "pid", "ipc", "uts", "cgroup", "userns_mode")
_HOOKS: Final = ("post_start", "pre_stop")


def value_at(
    document: Document, *, path: str, message: str, holds: Callable[[Node], object] = lambda _: True
) -> Hits:
    """Finds services that state a value at `path`, such as `logging.driver`, for which `holds` is true.

    In the message, `{}` is replaced by the value.
    """
    for service in document.services():
        node = service
        for key in path.split("."):
            node = node.get(key)
        if node.value is not None and holds(node):
            yield node, message.format(shown(node.text))


def element_of(
    document: Document, *, key: str, message: str, holds: Callable[[Node], object] = lambda _: True
) -> Hits:
    """Finds elements of the list `key` of each service for which `holds` is true.

    In the message, `{}` is replaced by the element.
    """
    for service in document.services():
        for node in service.get(key).elements():
            if holds(node):
                yield node, message.format(shown(node.text))


image_without_digest: Final = partial(
    value_at,
    path="image",
    message="the image {} is not pinned by a digest",
    holds=lambda image: not _DIGEST.search(image.text),
)
"""Finds images named by tag: the registry decides what runs."""

image_placeholder: Final = partial(
    value_at,
    path="image",
    message="the digest of the image is a placeholder of zeros",
    holds=lambda image: (match := _DIGEST.search(image.text)) and not match[1].strip("0"),
)
"""Finds a digest of zeros: a template that nobody has filled in."""

image_tag_ignored: Final = partial(
    value_at,
    path="image",
    message="the tag beside the digest means nothing: only the digest decides",
    holds=lambda image: _DIGEST.search(image.text) and ":" in image.text.partition("@")[0].rpartition("/")[2],
)
"""Finds a tag beside a digest: it looks as if it named the version that runs, and nothing reads it."""


def image_missing(document: Document) -> Hits:
    """Finds services that do not name what they run."""
    for service in document.services():
        known = ("image", "build", "provider")
        if all(service.get(key).value is None for key in known):
            yield service, "the service names no image"


def outside_text(document: Document) -> Hits:
    """Finds parts of the compose file that are in other files, or services that are commands of the host."""
    if (include := document.compose.get("include")).value is not None:
        yield include, "`include` reads other files, which are not in the measured text"
    for service in document.services():
        if (file := service.get("extends").get("file")).value is not None:
            yield file, f"`extends` reads {shown(file.text)}, which is not in the measured text"
        if (provider := service.get("provider")).value is not None:
            yield provider, "`provider` runs a program of the host instead of a container"


def privileged(document: Document) -> Hits:
    """Finds containers, or hooks in them, without any isolation from the VM."""
    for service in document.services():
        hooks = (hook for name in _HOOKS for hook in service.get(name).elements())
        for node in (service, *hooks):
            if (switch := node.get("privileged")).is_on:
                yield switch, "privileged: the container can do whatever the VM's root can"


def shared_namespace(document: Document) -> Hits:
    """Finds namespaces of the host or of another container."""
    for service in document.services():
        for name in _NAMESPACES:
            node = service.get(name)
            kind = node.text.partition(":")[0]
            if kind in {"host", "container"} or "$" in node.text:
                yield node, f"{name} is {shown(node.text)}: not the container's own"


def shared_network(document: Document) -> Hits:
    """Finds a network of the compose file that is the host's, under a name of its own."""
    for network in document.compose.get("networks").children():
        for key in ("name", "driver"):
            if (node := network.get(key)).text == "host":
                yield node, "this network is the host's"


def capability(document: Document, *, group: str, consequence: str = "") -> Hits:
    """Finds added capabilities of one group.

    Args:
        document: the compose file.
        group: `root`: amounts to being root of the VM; `users`: the job gives it up once its processes are users
            of their own; `other`: beyond those that the job itself can use.
        consequence: end of the message.
    """
    for service in document.services():
        for node in service.get("cap_add").elements():
            name = node.text.upper().removeprefix("CAP_")
            found = "root" if name in _CONTROL_ALL else "users" if name in _SWITCH_USERS else "other"
            if found == group:
                yield node, f"the capability {shown(name)} is added{consequence}"


def device(document: Document) -> Hits:
    """Finds devices of the VM. GPUs that are reserved through `deploy` are not devices in this sense."""
    for service in document.services():
        for name in ("devices", "device_cgroup_rules"):
            for node in service.get(name).elements():
                yield node, f"{name}: {shown((node.get('source') if node.is_mapping else node).text)}"


def published_port(document: Document) -> Hits:
    """Finds ports that can be reached from outside the container."""
    for service in document.services():
        for node in service.get("ports").elements():
            if node.is_mapping:
                ports = f"{node.get('published').text or 'any'}:{node.get('target').text}"
                address = node.get("host_ip").text
            else:
                # Short form: [address:][published:]target. An IPv6 address has brackets and colons of its own.
                ports, parts = node.text, node.text.rsplit(":", 2)
                address = parts[0].strip("[]") if len(parts) == 3 else ""
            where = "all interfaces" if address in {"", "0.0.0.0", "::"} else address  # noqa: S104 -- compared only
            yield node, f"publishes {shown(ports)} on {shown(where)}"


def _is_unconfined(option: Node) -> bool:
    parts = re.split("[:=]", option.text, maxsplit=1)
    return parts[-1] in {"unconfined", "disable"} or parts == ["no-new-privileges", "false"]


unconfined: Final = partial(
    element_of, key="security_opt", message="security_opt {} switches a protection off", holds=_is_unconfined
)
"""Finds security profiles that are switched off."""


def own_command(document: Document) -> Hits:
    """Finds commands that replace the image's own, or run beside it."""
    for service in document.services():
        if (entrypoint := service.get("entrypoint")).value is not None:
            yield entrypoint, "the image's entry point is replaced: the digest alone does not say what runs"
        test = service.get("healthcheck").get("test")
        if test.value is not None and [node.text for node in test.elements()][:1] not in (["NONE"], []):
            yield test, "a command runs in the container again and again, to see whether it is well"
        for name in _HOOKS:
            for hook in service.get(name).elements():
                yield hook, f"{name} runs a command in the container"


def restarted(document: Document) -> Hits:
    """Finds restarts. A job runs once: a restarted container has new keys, and nobody sends it data again."""
    for service in document.services():
        policies = (service.get("restart"), service.get("deploy").get("restart_policy").get("condition"))
        for node in policies:
            if node.value is not None and node.text not in {"no", "none", "false"}:
                yield node, f"the container is restarted: {shown(node.text)}"


def switched_off(document: Document, *, key: str, message: str) -> Hits:
    """Finds services that do not switch `key` on; without the key, the finding is about the service."""
    for service in document.services():
        if not (node := service.get(key)).is_on:
            yield (node if node.value is not None else service), message


def inline_config_unstartable(document: Document) -> Hits:
    """Finds inline configs of read-only containers: compose copies a config into the container that it made."""
    inline = {
        name
        for name, config in document.compose.get("configs").items()
        if any(config.get(key).value is not None for key in ("content", "environment"))
    }
    for service in document.services():
        for node in service.get("configs").elements() if service.get("read_only").is_on else ():
            name = node.get("source").text if node.is_mapping else node.text
            if name in inline:
                yield node, f"cannot start: compose gives no read-only container the inline config {shown(name)}"
