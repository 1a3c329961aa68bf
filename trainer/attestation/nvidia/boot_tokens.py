"""Detached EAT bundles (RFC 9711), as `nvattest` writes them: one overall token and one token per device.

Tokens of a local verifier are unsigned (algorithm `none`), and those of a remote one would need its keys: no
signature is verified here. What is checked is that all parts agree, so that every reader of a result reads the
same claims.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Final, cast

from trainer.encoding import parse_json, sha256_hex

Claims = dict[str, object]
"""One JSON object of claims."""

_TOKEN_KEYS: Final = frozenset({"iss", "sub", "aud", "exp", "nbf", "iat", "jti"})
"""Claims that RFC 7519 adds to a device's claims in its token."""

_TOKEN: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")
_MAX_DEPTH: Final = 8


def overall_claims(bundle: object, claims: Mapping[str, Claims]) -> Claims | None:
    """Returns the overall token's claims; None if the release makes no tokens (no bundle, or an empty object).

    Args:
        bundle: `[["JWT", token], {name: token}]`, where the overall token's `submods` has the digest of each
            device's token: `["DIGEST", ["SHA256", hex]]`, over the complete text of the token.
        claims: the claims about each device that the result has outside the bundle, by device name.

    Raises:
        ValueError: a token is not the one that the overall token names, or differs from `claims`.
    """
    if bundle is None or bundle == {}:
        return None
    match bundle:
        case [["JWT", first], dict() as tokens]:
            overall = _payload(first, "the overall token")
        case _:
            raise ValueError("detached_eat is no overall token with one token per device")
    digests = as_object(overall.get("submods"), "submods")
    # Equal sets of names: a device without a token, or a token without claims, would be read by some readers
    # only.
    if not digests.keys() == tokens.keys() == claims.keys():
        raise ValueError("the tokens are for other devices than the claims")
    for name, claim in claims.items():
        payload = _payload(tokens[name], name)
        if digests[name] != ["DIGEST", ["SHA256", sha256_hex(str(tokens[name]).encode())]]:
            raise ValueError(f"{name}: the digest is not that of its token")
        own, listed = (
            {key: value for key, value in each.items() if key not in _TOKEN_KEYS}
            for each in (payload, claim)
        )
        if not _equal(own, listed):
            raise ValueError(f"{name}: its token differs from the list of claims")
    return overall


def as_object(value: object, name: str) -> Claims:
    """Returns `value` if it is a JSON object.

    Raises:
        ValueError: it is not one.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")  # noqa: TRY004 - a fault of the text, not of the caller
    return value


def _payload(token: object, name: str) -> Claims:
    """Returns the payload of a JWT in compact form (RFC 7519)."""
    parts = _TOKEN.fullmatch(token) if isinstance(token, str) else None
    if parts is None:
        raise ValueError(f"{name}: no JWT")
    header, payload, signature = parts.groups()
    # Either algorithm `none` without a signature, or another algorithm with one.
    if (_decoded(header, name).get("alg") == "none") == bool(signature):
        raise ValueError(f"{name}: signature and algorithm do not belong together")
    return _decoded(payload, name)


def _decoded(part: str, name: str) -> Claims:
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        data = b""
    # Encoding again must give the same text: base64url has several spellings for some bytes.
    if base64.urlsafe_b64encode(data).rstrip(b"=") != part.encode():
        raise ValueError(f"{name}: not base64url")
    try:
        return as_object(parse_json(data.decode()), "a part")
    except UnicodeDecodeError:
        raise ValueError(f"{name}: not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _equal(one: object, other: object, depth: int = _MAX_DEPTH) -> bool:
    """Returns whether two JSON values are the same. Unlike with `==`, true is not 1.

    Values nested deeper than `depth` count as different, which bounds the recursion.
    """
    if type(one) is not type(other) or depth == 0:
        return False
    if isinstance(one, dict):
        others = cast("Claims", other)
        return one.keys() == others.keys() and all(
            _equal(one[key], others[key], depth - 1) for key in one
        )
    if isinstance(one, list):
        items = cast("list[object]", other)
        return len(one) == len(items) and all(
            _equal(*pair, depth - 1) for pair in zip(one, items, strict=True)
        )
    return one == other
