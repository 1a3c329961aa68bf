"""Decides which elements of two lists belong together, so that an inserted element is one change and not many."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Final, TypeAlias

from trainer.audit.nodes import Node

MAX_TABLE: Final = 10_000
"""Cells of the table of common subsequences; longer stretches that differ are compared by position."""

Pair: TypeAlias = tuple[str | int, Node | None, Node | None]
"""Key or index, and the elements of the old and the new list; None where a list has none."""

Identity: TypeAlias = Callable[[Node], int]
"""Maps nodes of equal content to the same number."""

_PORT: Final = re.compile(r"(?:(?:(\[[^\]]*\]|[^:]*):)?([^:]*):)?([^:/]+)(?:/(\w+))?")
_NO_ORDER: Final = frozenset(
    """allowed_envs cap_add cap_drop device_cgroup_rules devices dns env_file expose extra_hosts features group_add
    profiles security_opt tmpfs volumes_from""".split()  # noqa: SIM905 -- a table of words
)


def aligned(
    name: str, old: Sequence[Node], new: Sequence[Node], identity: Identity
) -> Iterator[Pair]:
    """Pairs the elements of two lists: by key, by value where the order has no meaning, or in sequence.

    Args:
        name: the key that holds the lists.
        old: elements of the old list.
        new: elements of the new list.
        identity: maps nodes of equal content to the same number.
    """
    if name in REFERENCE_KEYS:
        before, after = _keyed(name, old), _keyed(name, new)
        for key in sorted(before.keys() | after.keys()):
            yield key, before.get(key), after.get(key)
    elif name in _NO_ORDER:
        yield from _leftovers(old, new, identity)
    else:
        yield from _in_sequence(
            old, new, [identity(node) for node in old], [identity(node) for node in new]
        )


def _keyed(name: str, nodes: Sequence[Node]) -> Mapping[str, Node]:
    found: dict[str, Node] = {}
    for node in nodes:
        key = REFERENCE_KEYS[name](node)
        # Repeated keys get a suffix: an entry that is listed twice must not hide the first one.
        while key in found:
            key += "+"
        found[key] = node
    return found


def _port_key(node: Node) -> str:
    if node.is_mapping:
        return f"{node.get('target').text}/{node.get('protocol').text or 'tcp'}"
    match = _PORT.fullmatch(node.text)
    return f"{match[3]}/{match[4] or 'tcp'}" if match else node.text


def _volume_key(node: Node) -> str:
    if node.is_mapping:
        return node.get("target").text
    source, separator, rest = node.text.partition(":")
    return rest.partition(":")[0] if separator else source


def _source_key(node: Node) -> str:
    return (node.get("source") if node.is_mapping else node).text


REFERENCE_KEYS: Final[Mapping[str, Callable[[Node], str]]] = {
    "ports": _port_key,
    "volumes": _volume_key,
    "configs": _source_key,
    "secrets": _source_key,
}
"""Name of a list of references → what identifies one of them. Their values are no secrets, whatever the name."""


def same_port(node: Node) -> Node:
    """Returns a published port in its short form, so that both forms compare equal.

    A port with further settings is returned unchanged.
    """
    if not node.is_mapping or not {key for key, _ in node.items()} <= {
        "target",
        "published",
        "protocol",
        "host_ip",
    }:
        return node
    protocol = node.get("protocol").text
    parts = (node.get("host_ip").text, node.get("published").text, node.get("target").text)
    text = ":".join(part for part in parts if part)
    return Node(
        text + (f"/{protocol}" if protocol not in {"", "tcp"} else ""), node.line, node.path
    )


def _leftovers(old: Sequence[Node], new: Sequence[Node], identity: Identity) -> Iterator[Pair]:
    """Pairs the elements that only one of the lists has, regardless of order."""
    # Each old element takes one equal new element with it; what is left on both sides was removed or added.
    spare = [identity(node) for node in new]
    removed = []
    remaining = dict.fromkeys(range(len(new)))
    places: dict[int, list[int]] = {}
    for index, number in enumerate(spare):
        places.setdefault(number, []).append(index)
    for index, node in enumerate(old):
        if matches := places.get(identity(node)):
            del remaining[matches.pop()]
        else:
            removed.append((index, node))
    added = [(index, new[index]) for index in remaining]
    yield from _zipped(removed, added)


def _in_sequence(
    old: Sequence[Node], new: Sequence[Node], before: Sequence[int], after: Sequence[int]
) -> Iterator[Pair]:
    """Pairs the elements between those of a longest common subsequence."""
    at = then = 0
    for index, other in (*_common(before, after), (len(old), len(new))):
        removed = [(each, old[each]) for each in range(at, index)]
        added = [(each, new[each]) for each in range(then, other)]
        yield from _zipped(removed, added)
        at, then = index + 1, other + 1


def _zipped(
    removed: Sequence[tuple[int, Node]], added: Sequence[tuple[int, Node]]
) -> Iterator[Pair]:
    for one, other in zip_longest(removed, added):
        index = (other or one)[0]
        yield index, one and one[1], other and other[1]


def _common(before: Sequence[int], after: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the index pairs of a longest common subsequence.

    Where the lists differ in more than `MAX_TABLE` cells, only the common start and end count.
    """
    shorter = min(len(before), len(after))
    start = next((each for each in range(shorter) if before[each] != after[each]), shorter)
    limit = shorter - start
    end = next((each for each in range(limit) if before[-1 - each] != after[-1 - each]), limit)
    head = [(each, each) for each in range(start)]
    tail = [(len(before) - each, len(after) - each) for each in range(end, 0, -1)]
    middle = _subsequence(before[start : len(before) - end], after[start : len(after) - end])
    return head + [(start + one, start + other) for one, other in middle] + tail


def _subsequence(before: Sequence[int], after: Sequence[int]) -> list[tuple[int, int]]:
    if len(before) * len(after) > MAX_TABLE:
        return []
    # longest[i][j]: length of a longest common subsequence of before[i:] and after[j:], filled from the end.
    longest = [[0] * (len(after) + 1) for _ in range(len(before) + 1)]
    for one in reversed(range(len(before))):
        for other in reversed(range(len(after))):
            longest[one][other] = (
                longest[one + 1][other + 1] + 1
                if before[one] == after[other]
                else max(longest[one + 1][other], longest[one][other + 1])
            )
    pairs, one, other = [], 0, 0
    while one < len(before) and other < len(after):
        if before[one] == after[other]:
            pairs.append((one, other))
            one, other = one + 1, other + 1
        elif longest[one + 1][other] >= longest[one][other + 1]:
            one += 1
        else:
            other += 1
    return pairs
