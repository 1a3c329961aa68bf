"""Canonical JSON and strict parsing."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from trainer.encoding import (
    canonical_json,
    file_sha256,
    has_sha256,
    parse_json,
    printable,
    sha256_hex,
    stream_sha256,
)
from trainer.errors import UsageError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values)
def test_canonical_form_reads_back(value: object) -> None:
    assert parse_json(canonical_json(value)) == value


@given(json_values)
def test_the_quick_way_gives_what_the_library_gives(value: object) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


@given(st.text())
def test_the_quick_way_escapes_as_the_library_does(text: str) -> None:
    assert canonical_json({"key": text}) == rfc8785.dumps({"key": text})


def test_canonical_form_is_rfc_8785s() -> None:
    value = {"€": 1, "\r": 2, "1": 333333333.33333329, "a": [1e30, 4.50, 2e-3, 1e-27], "b": 1.0}
    expected = '{"\\r":2,"1":333333333.3333333,"a":[1e+30,4.5,0.002,1e-27],"b":1,"€":1}'
    assert canonical_json(value) == expected.encode()


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), 2**60, -(2**60), {1: 2}, object(), "\ud800", {"\ud800": 1}],
)
def test_values_without_a_canonical_form_are_refused(value: object) -> None:
    with pytest.raises(UsageError):
        canonical_json(value)


@pytest.mark.parametrize(
    "text", ['{"a":1,"a":2}', "NaN", "[Infinity]", "{", b"\xff", "[" * 100_000]
)
def test_ambiguous_or_broken_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_the_error_holds_nothing_of_the_text() -> None:
    with pytest.raises(ValueError, match="not JSON") as caught:
        parse_json('{"secret canary": broken')
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert not hasattr(caught.value, "doc")


def test_digests_agree(tmp_path: Path) -> None:
    data = b"x" * 3_000_000
    path = tmp_path / "file"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    assert sha256_hex(data) == stream_sha256(io.BytesIO(data)) == file_sha256(path) == digest


def test_a_digest_is_compared_with_what_it_is_of() -> None:
    digest = sha256_hex(b"a value")
    assert has_sha256(b"a value", ("0" * 64, digest))
    assert not any(
        has_sha256(b"a value", other)
        for other in ((digest.upper(), digest[:-1], sha256_hex(b""), ""), ())
    )


@pytest.mark.parametrize(
    "char", ["\x1b", "\n", "\r", "\x9b", "\u202e", "\u200f", "\u2028", "\x00", "\x7f", "\ufeff"]
)
def test_control_and_formatting_characters_become_visible(char: str) -> None:
    assert printable(f"a{char}b") == f"a\\u{ord(char):04x}b"


def test_ordinary_text_stays() -> None:
    text = "GH100, 96.00.9F \N{EN DASH} ünïcode ✔"
    assert printable(text) == text
