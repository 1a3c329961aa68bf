"""Rules on what a container reaches beyond itself, other than files: names, logs, groups, kernel settings."""

from __future__ import annotations

from typing import Final

from trainer.audit.document import Document
from trainer.audit.environment_rules import pairs
from trainer.audit.findings import shown
from trainer.audit.nodes import Node
from trainer.audit.service_rules import Hits

GUEST_AGENT_PORT: Final = "8090"
"""Where dstack's guest agent shows its public page."""

_LOCAL_LOGS: Final = frozenset({"", "none", "local", "json-file", "journald"})


def _hosts(service: Node) -> Hits:
    """Names and addresses of `extra_hosts`, in each of its forms."""
    yield from ((node, node.text) for _, node in service.get("extra_hosts").items())
    if not service.get("extra_hosts").is_mapping:
        for node in service.get("extra_hosts").elements():
            yield node, node.text.replace("=", ":", 1).partition(":")[2]


def host_gateway(document: Document) -> Hits:
    """A name for the VM itself: its own services can be reached from the container."""
    for service in document.services():
        for node, address in _hosts(service):
            if address == "host-gateway":
                yield node, "the container reaches services of the VM itself, such as the guest agent's"


def name_override(document: Document) -> Hits:
    """Names that lead where this text says, or where a server says that it names."""
    for service in document.services():
        for node, address in _hosts(service):
            if address != "host-gateway":
                yield node, f"a name is made to lead to {shown(address)}"
        for name in ("dns", "external_links"):
            for node in service.get(name).elements():
                yield node, f"{name}: {shown(node.text)} decides where names lead"


def remote_logs(document: Document) -> Hits:
    """A driver that sends what containers print to somewhere else."""
    for service in document.services():
        driver = service.get("logging").get("driver")
        if driver.text not in _LOCAL_LOGS:
            yield driver, f"what the container prints goes to the log driver {shown(driver.text)}"


def guest_agent_port(document: Document) -> Hits:
    """The port of the guest agent's page, taken by, or passed on from, a container."""
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
    """Volumes, configs and secrets that something else has made."""
    for section in ("volumes", "configs", "secrets"):
        for entry in document.compose.get(section).children():
            if (node := entry.get("external")).is_on:
                yield node, f"one of the {section} is made elsewhere; its content is not in the measured text"


def kernel_setting(document: Document) -> Hits:
    """Settings of the kernel."""
    for service in document.services():
        for name, node in pairs(service.get("sysctls")):
            yield node, f"the kernel setting {shown(name)} is changed"


def cgroup_parent(document: Document) -> Hits:
    """Limits and device rules that come from another group of processes."""
    for service in document.services():
        if (node := service.get("cgroup_parent")).value is not None:
            yield node, "limits and device rules come from a control group that this text does not describe"


def group_added(document: Document) -> Hits:
    """Groups, which may own sockets and devices."""
    for service in document.services():
        for node in service.get("group_add").elements():
            yield node, f"the container's process is put into the group {shown(node.text)}"
