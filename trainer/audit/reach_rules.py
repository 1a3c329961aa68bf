"""Rules on what a container reaches beyond itself, other than files: names, logs, groups, kernel settings."""

from __future__ import annotations

from functools import partial
from typing import Final

from trainer.audit.document import Document
from trainer.audit.environment_rules import pairs
from trainer.audit.findings import shown
from trainer.audit.service_rules import Hits, element_of, value_at

GUEST_AGENT_PORT: Final = "8090"
"""Where dstack's guest agent shows its public page."""

_LOCAL_LOGS: Final = frozenset({"", "none", "local", "json-file", "journald"})


def extra_host(document: Document, *, gateway: bool, message: str) -> Hits:
    """Finds `extra_hosts`, in each of its forms.

    Args:
        document: the compose file.
        gateway: find names for the VM itself (`host-gateway`), through which its own services can be reached, or
            else those for other addresses.
        message: `{}` is replaced by the address.
    """
    for service in document.services():
        hosts = service.get("extra_hosts")
        addresses = [(node, node.text) for _, node in hosts.items()]
        if not hosts.is_mapping:
            addresses += [(node, node.text.replace("=", ":", 1).partition(":")[2]) for node in hosts.elements()]
        for node, address in addresses:
            if (address == "host-gateway") is gateway:
                yield node, message.format(shown(address))


def name_override(document: Document) -> Hits:
    """Finds names that resolve to what this text says, or by a server that it names."""
    yield from extra_host(document, gateway=False, message="a name is made to lead to {}")
    for service in document.services():
        for name in ("dns", "external_links"):
            for node in service.get(name).elements():
                yield node, f"{name}: {shown(node.text)} decides where names lead"


remote_logs: Final = partial(
    value_at,
    path="logging.driver",
    message="what the container prints goes to the log driver {}",
    holds=lambda driver: driver.text not in _LOCAL_LOGS,
)
"""Finds a driver that sends what containers print to somewhere else."""


def guest_agent_port(document: Document) -> Hits:
    """Finds the port of the guest agent's page, published or used by a container."""
    for service in document.services():
        for node in service.get("ports").elements():
            published = (
                node.get("published").text if node.is_mapping else node.text.rpartition(":")[0].rpartition(":")[2]
            )
            if GUEST_AGENT_PORT in {
                published,
                node.get("target").text,
                node.text.rpartition(":")[2].partition("/")[0],
            }:
                yield node, f"port {GUEST_AGENT_PORT} is where the guest agent shows its page"


def external_object(document: Document) -> Hits:
    """Finds volumes, configs and secrets that are made outside the compose file."""
    for section in ("volumes", "configs", "secrets"):
        for entry in document.compose.get(section).children():
            if (node := entry.get("external")).is_on:
                yield node, f"one of the {section} is made elsewhere; its content is not in the measured text"


def kernel_setting(document: Document) -> Hits:
    """Finds settings of the kernel."""
    for service in document.services():
        for name, node in pairs(service.get("sysctls")):
            yield node, f"the kernel setting {shown(name)} is changed"


group_added: Final = partial(
    element_of, key="group_add", message="the container's process is put into the group {}"
)
"""Finds added groups, which may own sockets and devices."""
