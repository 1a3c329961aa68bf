"""Rules on what a container sees of the VM's files."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Final

from trainer.audit.document import Document
from trainer.audit.findings import shown
from trainer.audit.nodes import Node
from trainer.audit.service_rules import Hits

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
    """Everything of the VM's file system that is put into a container, in any of compose's ways of saying it."""
    for service in document.services():
        for node in service.get("volumes").elements():
            yield from _mounted(node)
    for volume in document.compose.get("volumes").children():
        # The local driver binds a directory if it is told to: a host mount that looks like a named volume.
        if (device := volume.get("driver_opts").get("device")).value is not None:
            yield device
    for section in ("configs", "secrets"):
        for entry in document.compose.get(section).children():
            if (file := entry.get("file")).value is not None:
                yield file


def _mounted(node: Node) -> Iterator[Node]:
    if node.is_mapping:
        source = node.get("source") if node.get("source").value is not None else node.get("src")
        if source.value is not None and node.get("type").text not in {"tmpfs", "image"}:
            yield from _unless_named(source, source.text)
    elif node.text.startswith("$"):
        yield node
    elif ":" in node.text:
        yield from _unless_named(node, node.text.partition(":")[0])


def _unless_named(node: Node, source: str) -> Iterator[Node]:
    if not _VOLUME_NAME.fullmatch(source):
        yield Node(source, node.line, node.path)


def _reaches_engine(source: str) -> bool:
    """Whether a container engine's socket is the source, or lies below it."""
    path = posixpath.normpath(source).rstrip("/")
    path = re.sub("^//+", "/", path)
    return any(socket == path or socket.startswith(f"{path}/") for socket in _ENGINES)


def engine_socket(document: Document) -> Hits:
    """The socket of the container engine, which starts any container with any rights."""
    for node in _sources(document):
        if _reaches_engine(node.text):
            yield node, f"{shown(node.text)} gives the container the engine's socket"
    for service in document.services():
        if (switch := service.get("use_api_socket")).is_on:
            yield switch, "use_api_socket gives the container the engine's socket"


def host_mount(document: Document) -> Hits:
    """Files of the VM other than the guest agent's socket."""
    for node in _sources(document):
        if not _reaches_engine(node.text) and posixpath.normpath(node.text) not in _GUEST_AGENT:
            yield node, f"{shown(node.text)} of the VM is mounted"


def volumes_from(document: Document) -> Hits:
    """Another container's files."""
    for service in document.services():
        for node in service.get("volumes_from").elements():
            yield node, f"takes over the volumes of {shown(node.text)}"
