"""Canonical JSON and digests: the only ways this project turns values into bytes that are signed or compared.

It also makes text that strangers wrote safe to print, and says what a page around it may do.
"""

from __future__ import annotations

import base64
import decimal
import hashlib
import hmac
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final, NoReturn, cast

import rfc8785

from trainer.errors import ErrorCode, UsageError

_BLOCK: Final = 1 << 20
_ROUNDING_UP: Final = decimal.Context(prec=2, rounding=decimal.ROUND_CEILING)


def canonical_json(value: object) -> bytes:
    """Returns the RFC 8785 (JCS) bytes of a JSON value.

    Raises:
        UsageError: the value has no canonical form (NaN, an integer beyond 2**53, a non-string key).
    """
    try:
        if _is_plain(value):
            return _PLAIN.encode(value).encode()
        return rfc8785.dumps(value)  # type: ignore[arg-type]  # its alias is narrower than what it accepts
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeEncodeError) as error:
        reason = (
            "lone surrogates in a text" if isinstance(error, UnicodeEncodeError) else str(error)
        )
        raise UsageError(ErrorCode.USAGE, f"no canonical JSON form: {reason}") from error


def exact_json(value: object) -> bytes:
    """Returns a JSON value as text in which 1 and 1.0 differ; the canonical form writes both alike.

    For validation of what was read from another format: a number must be of the type that is demanded.

    Raises:
        UsageError: as `canonical_json`.
    """
    canonical_json(value)
    return json.dumps(value).encode()


_PLAIN: Final = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False
)
# RFC 8785 numbers are IEEE doubles (section 3.2.2.3): above this, two integers may have one representation.
_MAX_INTEGER: Final = 2**53 - 1


def _is_plain(value: object) -> bool:
    """Returns whether Python's own encoder gives the canonical form, about ten times as fast on long texts.

    It escapes what RFC 8785 escapes (section 3.2.2.2). It formats floats differently (section 3.2.2.3), and sorts
    keys by code point where the RFC sorts by UTF-16 units (section 3.2.3): both are the same for ASCII keys.
    """
    # Exact types: bool is an int, and a subclass of str may have another JSON form.
    kind = type(value)
    if kind is dict:
        items = cast("dict[object, object]", value).items()
        return all(type(key) is str and key.isascii() and _is_plain(inner) for key, inner in items)
    if kind is list:
        return all(map(_is_plain, cast("list[object]", value)))
    if kind is int:
        return abs(cast("int", value)) <= _MAX_INTEGER
    return kind in (str, bool, type(None))


def rounded_up(value: float) -> float:
    """Returns the smallest number of two significant digits that is not below `value`."""
    return float(_ROUNDING_UP.create_decimal_from_float(value))


def sha256_hex(data: bytes) -> str:
    """Returns the SHA-256 of `data` in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def has_sha256(data: bytes, expected: Iterable[str]) -> bool:
    """Returns whether the SHA-256 of `data` in lower-case hex is among the expected ones.

    It compares in constant time, so that timing reveals no prefix of the digest of a secret.
    """
    digest = sha256_hex(data)
    matches = [hmac.compare_digest(digest, one) for one in expected]  # all are compared
    return any(matches)


def stream_sha256(stream: BinaryIO) -> str:
    """Returns the SHA-256 of the rest of `stream`, read in blocks, in lower-case hex."""
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, read in blocks, in lower-case hex."""
    with path.open("rb") as file:
        return stream_sha256(file)


# Default_Ignorable_Code_Point (Unicode, DerivedCoreProperties.txt) as far as Python calls it printable: fillers,
# joiners and variation selectors, which have no width.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def printable(text: str) -> str:
    """Returns `text` with every control, formatting and invisible character as a visible escape.

    Evidence comes from strangers: it must not move the cursor, change colours, turn the reading direction, or look
    like another text.
    """
    if text.isascii() and text.isprintable():
        return text
    shown = (
        char if char.isprintable() and not _INVISIBLE.match(char) else _escape(char)
        for char in text
    )
    return "".join(shown)


def _escape(char: str) -> str:
    return f"\\u{ord(char):04x}" if char <= "\uffff" else f"\\U{ord(char):08x}"


def without_controls(text: str) -> str:
    """Returns a text of many lines with every control character but tab and line feed as a visible escape.

    What a model answers, or a library logs, must not move the cursor of whoever looks at it in a terminal.
    """
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def page_security_policy(style: str) -> str:
    """Returns the Content-Security-Policy of a page that may use its one style element, and nothing else.

    If a text of a stranger got into the page as markup, it could run no script and load nothing.
    """
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def parse_json(data: bytes | str) -> object:
    """Parses JSON strictly: duplicate keys, NaN and Infinity are refused.

    If two readers see different values in one signed text, one of them acts on a value that nobody signed.

    Raises:
        ValueError: not JSON, or JSON that two readers could understand differently. The message holds no
            part of the text (`json.JSONDecodeError` carries the whole document in `doc`).
    """
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def strict_decoder() -> json.JSONDecoder:
    """Returns a decoder as strict as `parse_json`, for values in a longer text, which its errors may quote."""
    return json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has the same key twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"not JSON: {name}")
