"""Every text that is accepted means the same to other readers of YAML: the same values, the same digest."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import rfc8785
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.growth import grows_linearly
from trainer.errors import ErrorCode, UsageError
from trainer.strict_yaml import parse_yaml


def parse(text: str | bytes) -> Any:
    data = text if isinstance(text, bytes) else text.encode()
    return parse_yaml(data, what="document", limit=1 << 16, code=ErrorCode.SPEC_INVALID)


def core_schema(text: str) -> object:
    """A plain scalar as YAML 1.2.2, section 10.3.2 (core schema) reads it; written from its table alone."""
    if re.fullmatch(r"null|Null|NULL|~|", text):
        return None
    if re.fullmatch(r"true|True|TRUE|false|False|FALSE", text):
        return text.lower() == "true"
    if re.fullmatch(r"[-+]?[0-9]+", text):
        return int(text)
    if re.fullmatch(r"0o[0-7]+", text):
        return int(text, 0)
    if re.fullmatch(r"0x[0-9a-fA-F]+", text):
        return int(text, 0)
    if re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", text):
        return float(text)
    if re.fullmatch(r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN", text):
        return float(text.replace(".", "", 1))
    return text


REFUSED = (
    "0x10", "0o17", "017", "00", "0b11", "+5", "+0.5", ".5", "5.", "1_000", "1:30", "190:20:30.15", "1e",
    ".inf", "-.Inf", ".nan", "yes", "No", "on", "OFF", "y", "N", "2026-11-30", "2026-11-30 10:00:00", "=",
    "!!str 5", "! 5", "!!int 5", "!<tag:yaml.org,2002:str> 5", "!local x", "&a 5", "*a", "!!set {a}", "!!seq [a]",
)  # fmt: skip


@pytest.mark.parametrize("scalar", REFUSED)
@pytest.mark.parametrize("place", ["key: {}\n", "[a, {}]\n", "- {}\n"])
def test_what_readers_take_for_different_values(scalar: str, place: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(place.format(scalar))
    assert caught.value.code is ErrorCode.SPEC_INVALID


@pytest.mark.parametrize(
    "scalar", [text for text in REFUSED if not text.startswith(("!", "&", "*"))]
)
def test_the_same_in_quotes_is_text(scalar: str) -> None:
    assert parse(f"key: '{scalar}'\n") == parse(f'key: "{scalar}"\n') == {"key": scalar}
    assert parse(f"key: |-\n  {scalar}\n") == {"key": scalar}


@pytest.mark.parametrize(
    "text",
    [
        b"%YAML 1.1\n---\na: 1\n", b"%TAG ! tag:x,2026:\n---\na: 1\n", b"a: 1\n---\nb: 2\n", b"a: 1\n...\nb: 2\n",
        "a: 1\n".encode("utf-16"), b"a: \xff\n", "a: x\u0085b: 2\n".encode(), 'a: "x\u2028y"\n'.encode(),
        "a: |\n  x\u2029y\n".encode(), b"a: \x07\n", b"a: \x00\n", b"yes: 1\n", b"? [a]\n: 1\n", b"<<: {a: 1}\n",
        b"a: 1\na: 2\n",
    ],
)  # fmt: skip
def test_texts_that_readers_cut_or_decode_in_different_ways(text: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.code is ErrorCode.SPEC_INVALID


def test_a_long_scalar_takes_linear_time() -> None:
    def parse_digits(size: int) -> None:
        text = "1" * size + "x"
        assert parse(f"a: {text}\n") == {"a": text}

    assert grows_linearly(parse_digits, 15_000)


@settings(max_examples=300)
@given(st.text("01279.-+_:eExXob aftrnulysTFN~=", max_size=8))
def test_plain_scalars_are_those_of_the_core_schema(text: str) -> None:
    """And those of YAML 1.1, which PyYAML reads, apart from numbers like 2e-4, which only YAML 1.2 knows."""
    document = f"[{text.strip()}, end]"
    try:
        found = parse(document)
    except UsageError:
        return
    if isinstance(found[0], dict):
        return  # a colon at the end: a mapping in brackets
    assert found[0] == core_schema(text.strip())
    assert type(found[0]) is type(core_schema(text.strip()))
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?[eE][-+]?[0-9]+", text.strip()):
        assert found == yaml.safe_load(document)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=100)
@given(st.dictionaries(st.text(min_size=1, max_size=4), VALUES, min_size=1, max_size=4))
def test_json_is_in_the_subset_and_keeps_its_digest(value: dict[str, Any]) -> None:
    text = json.dumps(value)
    if "<<" in text or "\\ud" in text:
        return  # a merge key of YAML; JSON writes what is beyond the basic plane as two halves
    assert rfc8785.dumps(parse(text)) == rfc8785.dumps(value)
