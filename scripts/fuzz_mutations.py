"""Mutations of honest input, by what the input is made of: bytes, JSON, or YAML.

JSON is changed as a tree, and strings in it by what they hold (JSON again, hex, base64, PEM), so that a change
reaches the parser behind the parser. The same generator state gives the same mutation.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

MAX_BYTES: Final = 1 << 18
NUMBERS: Final = (
    0,
    1,
    -1,
    2,
    7,
    127,
    128,
    255,
    256,
    32767,
    65535,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
)
_RAW: Final = (
    "NaN",
    "-Infinity",
    "1e999",
    "-0",
    "0.1",
    "1E400",
    "9" * 400,
    "-" + "9" * 5000,
    '"\\ud800"',
    "tru",
    "01",
)
_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 2**53, 2**64, 10**30, 1.5, "", "0", "\0", "a" * 300, "\u202e", "é" * 20, "😀", [],
    {}, [[]], {"": {}}, [None] * 50, "age1" + "q" * 58, "00" * 32, "sha256:" + "00" * 32, "{}", "[]", "null",
)  # fmt: skip
_YAML: Final = (
    "&a ", "*a", "<<: *a", "<<: [*a, *a]", "!!python/object:os.system ", "!!binary ", "!reset ", "!!set {a}",
    "\t", "? ", "- ", "--- ", "...\n", "%YAML 9.9\n", "|+2\n", ">\n", '"\\ud800"', '"\\UFFFFFFFF"', "'", '"', "{",
    "}", "[", "]", ": ", "#", "~", ".nan", "1e999", "0o17", "0x1F", "2026-11-23", "=", "\0", "\x85", "\u2028",
    "\ufeff", "@", "`", "%",
)  # fmt: skip

Mutation = Callable[[bytes, Random, Sequence[bytes]], bytes]


class Raw:
    """Text that is written into JSON as it is."""

    def __init__(self, text: str) -> None:
        self.text = text


class Pairs(list[tuple[str, Any]]):
    """A JSON object, which may have a key twice."""


def mutate_bytes(data: bytes, rng: Random, pool: Sequence[bytes]) -> bytes:
    """One change to bytes: a bit, a length field, a cut, a repetition, or a part of another input."""
    if not data:
        return rng.randbytes(rng.randrange(1, 64))
    at = rng.randrange(len(data))
    size = min(len(data) - at, 1 << rng.randrange(10))
    kind = rng.randrange(9)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + rng.randbytes(1) + data[at + 1 :]
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:at] + data[at + size :]
    if kind == 4:
        return data[:at] + data[at : at + size] * rng.choice((2, 2, 3, 40)) + data[at + size :]
    if kind == 5:
        return data[:at] + rng.randbytes(size) + data[at + size * rng.randrange(2) :]
    if kind == 6:
        other = rng.choice(pool)
        return data[:at] + other[rng.randrange(len(other) + 1) :]
    return _edit_number(data, at, rng)


def _edit_number(data: bytes, at: int, rng: Random) -> bytes:
    """Overwrite what may be a length field: with a boundary, or with one more or less than it says."""
    width, order = rng.choice((1, 2, 3, 4, 8)), rng.choice(("little", "big"))
    field = data[at : at + width]
    old = int.from_bytes(field, order)  # type: ignore[arg-type]  # one of the two literals
    number = rng.choice((*NUMBERS, old + 1, old - 1, old * 2, old + len(data)))
    number %= 1 << 8 * len(field)
    return data[:at] + number.to_bytes(len(field), order) + data[at + width :]  # type: ignore[arg-type]


def mutate_json(data: bytes, rng: Random, pool: Sequence[bytes]) -> bytes:
    """One change to a JSON document as a tree; what is no JSON (any more) is changed as bytes."""
    if rng.randrange(12) == 0:
        return mutate_bytes(data, rng, pool)
    try:
        root = json.loads(data, object_pairs_hook=Pairs)
        return _dump(_changed(root, rng, pool)).encode("utf-8", "surrogatepass")
    except (
        ValueError,
        OverflowError,
        RecursionError,
    ):
        # Also where a number or the depth is beyond Python's.
        return mutate_bytes(data, rng, pool)


def _dump(value: Any) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(key)}:{_dump(each)}" for key, each in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_dump(each) for each in value) + "]"
    if isinstance(value, dict):
        return _dump(Pairs(value.items()))
    return json.dumps(value)


def _changed(value: Any, rng: Random, pool: Sequence[bytes]) -> Any:
    """`value` with one node in it changed; deeper nodes are as likely as shallow ones."""
    if not isinstance(value, list) or not value or rng.randrange(5) == 0:
        return _node(value, rng, pool)
    at = rng.randrange(len(value))
    if isinstance(value, Pairs):
        key, old = value[at]
        return Pairs([*value[:at], (key, _changed(old, rng, pool)), *value[at + 1 :]])
    return [*value[:at], _changed(value[at], rng, pool), *value[at + 1 :]]


def _node(value: Any, rng: Random, pool: Sequence[bytes]) -> Any:
    if isinstance(value, list) and value and rng.randrange(3):
        return _collection(value, rng)
    if isinstance(value, str) and value and rng.randrange(4):
        return _text(value, rng, pool)
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.randrange(2):
        return rng.choice(
            (value + 1, value - 1, -value, value * 1000, float(value), str(value), *NUMBERS)
        )
    kind = rng.randrange(6)
    if kind == 0:
        depth = rng.choice((2, 30, 70, 300, 3000))
        return (
            Raw("[" * depth + "]" * depth)
            if rng.randrange(2)
            else Raw('{"a":' * depth + "1" + "}" * depth)
        )
    return Raw(rng.choice(_RAW)) if kind == 1 else rng.choice(_VALUES)


def _collection(value: list[Any], rng: Random) -> Any:
    """An entry or element removed, repeated, moved, renamed, or many of them."""
    at, kind = rng.randrange(len(value)), rng.randrange(6)
    rest = [*value[:at], *value[at + 1 :]]
    if kind == 0:
        changed = rest
    elif kind == 1:
        changed = [*value, value[at]]
    elif kind == 2:
        changed = [value[at], *rest]
    elif kind == 3:
        changed = [*value, *[value[at]] * rng.choice((2, 20, 500))]
    elif isinstance(value, Pairs):
        name = rng.choice(
            (
                "",
                "x",
                value[at][0] + "_",
                rng.choice(value)[0],
                "\0",
                "__class__",
                "docker_compose_file",
            )
        )
        changed = [*rest, (name, value[at][1])]
    else:
        changed = [*rest, rng.choice(_VALUES)]
    return Pairs(changed) if isinstance(value, Pairs) else changed


def _text(text: str, rng: Random, pool: Sequence[bytes]) -> str:
    """Text changed by what it holds."""
    if rng.randrange(6) == 0:
        return mutate_bytes(text.encode("utf-8", "surrogatepass"), rng, pool).decode("latin-1")
    if text.lstrip()[:1] in {"{", "["} and len(text) > 2:
        return mutate_json(text.encode("utf-8", "surrogatepass"), rng, pool).decode(
            "utf-8", "replace"
        )
    if len(text) % 2 == 0 and re.fullmatch("[0-9a-f]+", text):
        return mutate_bytes(bytes.fromhex(text), rng, pool).hex()
    if "-----BEGIN" in text:
        return mutate_pem(text.encode(), rng, pool).decode("utf-8", "replace")
    if len(text) > 40 and re.fullmatch("[A-Za-z0-9+/]+=*", text):
        return base64.b64encode(mutate_bytes(_unbase64(text), rng, pool)).decode()
    if "\n" in text:
        return mutate_yaml(text.encode("utf-8", "surrogatepass"), rng, pool).decode(
            "utf-8", "replace"
        )
    return mutate_bytes(text.encode("utf-8", "surrogatepass"), rng, pool).decode("latin-1")


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except ValueError:
        return text.encode()


def mutate_pem(data: bytes, rng: Random, pool: Sequence[bytes]) -> bytes:
    """One change to the DER inside one block of a PEM file, or to the file's text."""
    blocks = list(re.finditer(rb"(-----BEGIN [^-]+-----\s)([^-]+)", data))
    if not blocks or rng.randrange(6) == 0:
        return mutate_bytes(data, rng, pool)
    chosen = rng.choice(blocks)
    if rng.randrange(8) == 0:
        return data + data[chosen.start() :] if rng.randrange(2) else data[: chosen.start()]
    der = mutate_bytes(_unbase64(chosen[2].decode("latin-1")), rng, pool)
    return data[: chosen.start(2)] + base64.encodebytes(der) + data[chosen.end(2) :]


def mutate_yaml(data: bytes, rng: Random, pool: Sequence[bytes]) -> bytes:
    """One change to YAML by lines and words; JSON inside or instead is changed as JSON."""
    if data.lstrip()[:1] == b"{" and rng.randrange(8):
        return mutate_json(data, rng, pool)
    kind, lines = rng.randrange(9), data.splitlines(keepends=True)
    if kind == 0 or not lines:
        return mutate_bytes(data, rng, pool)
    at = rng.randrange(len(lines))
    line = lines[at]
    if kind == 1:
        lines[at] = b""
    elif kind == 2:
        lines[at] = line * rng.choice((2, 3, 200))
    elif kind == 3:
        lines[at] = (
            b" " * rng.randrange(8) + line.lstrip(b" ") if rng.randrange(2) else b"\t" + line
        )
    elif kind == 4:
        lines.insert(
            rng.randrange(len(lines)),
            rng.choice(rng.choice(pool).splitlines(keepends=True) or [b""]),
        )
    elif kind == 5:
        lines[at] = _nested(line, rng)
    else:
        where = rng.choice([match.end() for match in re.finditer(rb"[:\-] |^ *|\w+", line)] or [0])
        lines[at] = line[:where] + rng.choice(_YAML).encode("utf-8", "surrogatepass") + line[where:]
    return b"".join(lines)


def _nested(line: bytes, rng: Random) -> bytes:
    """The line's value replaced by one that is deep, or refers to itself or to what stands above."""
    depth = rng.choice((3, 40, 80, 600, 3000))
    values = (
        b"[" * depth + b"]" * depth,
        b"{a: " * depth + b"}" * depth,
        b"&b [*b]",
        b"&b {<<: *b}",
        b"- " * depth + b"x",
    )
    return line.partition(b":")[0] + b": " + rng.choice(values) + b"\n"


FORMS: Final[dict[str, Mutation]] = {
    "bytes": mutate_bytes,
    "json": mutate_json,
    "pem": mutate_pem,
    "yaml": mutate_yaml,
}


def mutate(data: bytes, form: str, rng: Random, pool: Sequence[bytes]) -> bytes:
    """One to six changes in a row, cut to `MAX_BYTES`.

    Args:
        data: what to start from.
        form: a key of `FORMS`.
        rng: the only source of chance.
        pool: other inputs of the same target.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        data = FORMS[form](data, rng, pool)[:MAX_BYTES]
    return data
