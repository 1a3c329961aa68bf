"""The closed list of variables that a deployment may take from dstack's encrypted environment.

That environment exists with a key service only, and it is an operator's input: anyone can encrypt one. So a
variable is listed here if no value of it can change what is trained, or who gets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trainer.exchange.object_store import STORE_VARIABLES
from trainer.strict_yaml import YamlError, load_yaml_tree

_STORE: Final = (
    "how the object store of the job spec is reached, which carries ciphertext and public documents"
)

OPERATOR_VARIABLES: Final[Mapping[str, str]] = {
    "HF_TOKEN": "access to models at the hub; digests in the job spec decide what is loaded",
    **dict.fromkeys(STORE_VARIABLES, _STORE),
}
"""Environment variables that `allowed_envs` may list, each with what its value can change."""


def operator_reference(name: str) -> str:
    """Returns the value with which a compose file passes a variable on; empty where nobody set the variable."""
    return f"${{{name}:-}}"


def read_operator_variables(compose: str) -> tuple[str, ...]:
    """Returns the variables of the list that a service of a compose file takes, in the order of the list.

    A text that is no acceptable compose file takes none: other functions report what is wrong with it.
    """
    try:
        document = load_yaml_tree(compose, compose_features=True).plain_value()
    except YamlError:
        return ()
    services = document.get("services") if isinstance(document, dict) else None
    environments = [
        service.get("environment")
        for service in (services.values() if isinstance(services, dict) else ())
        if isinstance(service, dict)
    ]
    return tuple(
        name
        for name in OPERATOR_VARIABLES
        if any(
            isinstance(each, dict) and each.get(name) == operator_reference(name)
            for each in environments
        )
    )
