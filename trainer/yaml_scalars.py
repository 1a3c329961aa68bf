"""What a plain (unquoted) scalar of YAML is read as, and which ones readers of YAML take for different values."""

from __future__ import annotations

import re
from typing import Final

SCALAR_PATTERNS: Final = {
    "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    "null": re.compile(r"(?:~|null|Null|NULL|)\Z"),
    "int": re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z"),
    "float": re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"),
    "merge": re.compile(r"<<\Z"),
}
"""What a plain scalar must match to be of a kind (YAML 1.2, section 10.3.2, and the merge key); the first wins.

YAML 1.1, which PyYAML implements, reads `yes` as true, `1:30` as 90, `010` as 8 and `2e-4` as text.
"""

_AMBIGUOUS: Final = re.compile(
    r"""(?:
        y | yes | n | no | on | off                             # truth values
      | [-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?        # to base 60: 1:30 is 90
      | [-+]?0(?:b[01_]+ | o[0-7_]+ | x[0-9a-f_]+)              # to base 2, 8, 16
      | [-+]?(?:\.[0-9] | [0-9])[0-9_]*(?:\.[0-9_]*)?(?:e[-+]?[0-9_]*)?    # with +, _, leading zeros: 010 is 8
      | [-+]?\.(?:inf | nan)
      | [0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[t\ ].*)?              # times
      | =
    )\Z""",
    re.VERBOSE | re.IGNORECASE,
)
"""Numbers, and plain scalars that readers take for different values: a number, truth value, time, or text.

The readers are those of YAML 1.1 (https://yaml.org/type/) and 1.2, and those that confuse the two.
"""

_JSON_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?\Z")
"""The numbers of JSON (RFC 8259, section 6), which mean the same in every version of YAML 1.2."""

FIRST_CHARACTERS: Final = {
    "bool": [*"tTfF"],
    "null": [*"~nN", ""],
    "int": [*"-+0123456789"],
    "float": [*"-+.0123456789"],
    "merge": ["<"],
}


def is_ambiguous(text: str) -> bool:
    """Returns whether readers of YAML take this plain scalar for different values."""
    return bool(_AMBIGUOUS.match(text)) and not _JSON_NUMBER.match(text)
