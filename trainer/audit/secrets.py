"""Recognises secrets in a compose file, by the name of the variable or option and by the form of the text.

No part of a recognised value is ever printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

MASK: Final = "(hidden)"

# Bounded repetitions: an attacker's compose file must not make a search take quadratic time.
_WORDS: Final = (
    r"(?:PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIAL)\w{0,64}"
    r"|(?:TOKEN|KEY)S?(?:_(?:B64|BASE64|HEX|PEM|\d{1,9}))?"
)
_MAX_NAME: Final = 256
_SECRET_NAME: Final = re.compile(rf"(?:{_WORDS})$")
_ASSIGNED: Final = re.compile(rf"(?i)(?<!PUBLIC[_-])({_WORDS})(?<!_FILE)(?<!_PATH)=.+")
_OPTION: Final = re.compile(r"(--?[A-Za-z][\w.-]*)(=.*)?", re.DOTALL)
_HANDED_OVER: Final = re.compile(
    r"""(?<!\S)(--?[A-Za-z][\w.-]*)([ \t]+|=)("[^"]*"|'[^']*'|[^\s"'-]\S*)"""
)
_URL_PASSWORD: Final = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_TOKEN_FORMS: Final = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[opsu]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bxox[a-z]-[A-Za-z0-9-]{10,}|AGE-SECRET-KEY-\S+|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\beyJ[\w-]{10,300}\.[\w-]{10,}\.[\w-]*"
)
"""Matches tokens of well-known services, private keys and JSON web tokens."""

WHOLLY_VARIABLE: Final = re.compile(r"\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*(?::?(?:-|\?[^}]*))?\}")
"""Matches a value that is only a variable reference: the secret is then not in the file."""


def is_secret_name(name: str) -> bool:
    """Returns whether a variable or option of this name usually holds a secret; `…_FILE` holds a path."""
    upper = name[-_MAX_NAME:].upper().replace("-", "_")
    found = _SECRET_NAME.search(upper)
    return found is not None and not upper.endswith(("_FILE", "_PATH")) and "PUBLIC" not in upper


def masked(text: str) -> str:
    """Returns `text` with each secret replaced by `MASK`."""
    # First what a name or a URL gives away, then tokens of known forms anywhere in the text.
    text = _URL_PASSWORD.sub(f"://{MASK}@", _ASSIGNED.sub(rf"\1={MASK}", text))
    return _TOKEN_FORMS.sub(MASK, _HANDED_OVER.sub(_without_value, text))


def _without_value(match: re.Match[str]) -> str:
    value = match[3].strip("'\"")
    if not is_secret_name(match[1]) or not value or WHOLLY_VARIABLE.fullmatch(value):
        return match[0]
    return f"{match[1]}{match[2]}{MASK}"


def argument_names(arguments: Sequence[str]) -> Iterator[str]:
    """Yields, for each argument, the option whose value it is, or "": for `--token value`, "" and `--token`."""
    option = ""
    for argument in arguments:
        match = _OPTION.fullmatch(argument)
        yield "" if match else option
        option = argument if match and match[2] is None else ""
