"""Rules on what a container sees of the VM's files."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from functools import partial
from typing import Final

from trainer.audit.document import Document
from trainer.audit.findings import shown
from trainer.audit.nodes import Node
from trainer.audit.service_rules import Hits, element_of

_GUEST_AGENT: Final = frozenset(
    {f"{folder}/{name}.sock" for folder in ("/var/run", "/run") for name in ("dstack", "tappd")}
)
_ENGINES: Final = tuple(
    f"{folder}/{name}.sock"
    for folder in ("/var/run", "/run")
    for name in ("docker", "containerd/containerd", "podman/podman")
)
_VOLUME_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*")


def _sources(document: Document) -> Iterator[Node]:
    """Yields what is mounted from the VM's file system into a container, in any of compose's forms."""
    for service in document.services():
        for node in service.get("volumes").elements():
            yield from _mounted(node)
    for volume in document.compose.get("volumes").children():
        # The local driver binds a directory if `device` names one: a host mount that looks like a named volume.
        if (device := volume.get("driver_opts").get("device")).value is not None:
            yield device
    for section in ("configs", "secrets"):
        for entry in document.compose.get(section).children():
            if (file := entry.get("file")).value is not None:
                yield file


def _mounted(node: Node) -> Iterator[Node]:
    """Yields what an entry of `volumes` mounts, unless it is a named volume or none of the VM's files."""
    if node.is_mapping:
        source = node.get("source") if node.get("source").value is not None else node.get("src")
        is_mount = source.value is not None and node.get("type").text not in {"tmpfs", "image"}
        name = source.text
    else:
        # Short form: source:target. A variable at its start may become any source, and a text without a colon is
        # an anonymous volume.
        source, is_mount = node, ":" in node.text or node.text.startswith("$")
        name = node.text if node.text.startswith("$") else node.text.partition(":")[0]
    if is_mount and not _VOLUME_NAME.fullmatch(name):
        yield Node(name, source.line, source.path)


def _reaches_engine(source: str) -> bool:
    """Returns whether a container engine's socket is the source, or lies below it."""
    path = posixpath.normpath(source).rstrip("/")
    path = re.sub("^//+", "/", path)  # normpath keeps two slashes at the start, which POSIX leaves undefined
    return any(socket == path or socket.startswith(f"{path}/") for socket in _ENGINES)


def engine_socket(document: Document) -> Hits:
    """Finds the socket of the container engine, which starts any container with any rights."""
    for node in _sources(document):
        if _reaches_engine(node.text):
            yield node, f"{shown(node.text)} gives the container the engine's socket"
    for service in document.services():
        if (switch := service.get("use_api_socket")).is_on:
            yield switch, "use_api_socket gives the container the engine's socket"


def host_mount(document: Document) -> Hits:
    """Finds files of the VM other than the guest agent's socket."""
    for node in _sources(document):
        if not _reaches_engine(node.text) and posixpath.normpath(node.text) not in _GUEST_AGENT:
            yield node, f"{shown(node.text)} of the VM is mounted"


volumes_from: Final = partial(element_of, key="volumes_from", message="takes over the volumes of {}")
"""Finds volumes of other containers."""
