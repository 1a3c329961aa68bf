"""Names of the data files of a joint job: each provider's are below a folder with the provider's number.

`provider-01//train.jsonl` is `train.jsonl` of the provider that `exchange.providers` lists first. No file of a
bundle has a name with two slashes in a row, so that a dataset with a folder `provider-01` is not taken for a pool.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from trainer.encoding import canonical_json, sha256_hex

_FOLDER: Final = re.compile(r"provider-([0-9]{2})//")


def pool_folder(number: int) -> str:
    """Returns the folder of the provider with a number, counted from 1; byte order is the order of the numbers."""
    return f"provider-{number:02d}"


def pool_name(number: int, name: str) -> str:
    """Returns the name in the pool of a file that is called `name` in the bundle of the provider with a number."""
    return f"{pool_folder(number)}//{name}"


def name_in_bundle(name: str) -> str:
    """Returns the name that a file has in its provider's bundle; a name of no pool is returned as it is."""
    return _FOLDER.sub("", name, count=1) if _FOLDER.match(name) else name


def number_in_pool(name: str) -> int | None:
    """Returns the number of the provider that a file of a pool is from; None for a name of no pool."""
    match = _FOLDER.match(name)
    return int(match[1]) if match else None


def pool_sha256(manifests: Sequence[str]) -> str:
    """Returns SHA-256 of the RFC 8785 JSON of a list of the manifests' digests, in hex.

    Args:
        manifests: digests in hex, in the order of the providers in the job spec.
    """
    return sha256_hex(canonical_json(list(manifests)))
