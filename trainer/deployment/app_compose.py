"""app-compose.json, which dstack's guest measures byte for byte, for the two ways in which a job is deployed.

| profile | keys of the VM | data disk | reached by |
|---|---|---|---|
| `sealed` | made at boot in the VM, and lost with it | new at each boot | a mapped port |
| `kms` | from the key service that the text names | kept, emptied of all but sealed files | gateway, mapped port |
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from trainer.deployment.clean_start import CLEAN_START
from trainer.deployment.operator_variables import read_operator_variables
from trainer.encoding import canonical_json
from trainer.errors import ErrorCode, UsageError

APP_NAME: Final = "confidential-trainer"

KEY_PROVIDER_PLACEHOLDER: Final = (
    "FILL IN: the public key of the KMS root certificate as hex "
    "(trainer job render --key-provider-id)"
)
"""`key_provider_id` of a template. It is no hex, so that a guest that gets it does not boot."""


class DeploymentProfile(StrEnum):
    """How a job is deployed: with keys that end with the VM, or with those of a key management service."""

    SEALED = "sealed"
    KMS = "kms"


_SETTINGS: Final[Mapping[str, object]] = {
    "manifest_version": 2,
    "name": APP_NAME,
    "runner": "docker-compose",
    "local_key_provider_enabled": False,
    "public_logs": False,
    "public_sysinfo": False,
    "public_tcbinfo": False,
    "no_instance_id": False,
    "secure_time": True,
}
"""dstack's settings in both profiles. The clock is set from authenticated time servers before the app starts
(`secure_time`)."""


def render_app_compose(
    compose: str,
    profile: DeploymentProfile = DeploymentProfile.SEALED,
    *,
    key_provider_id: str | None = None,
) -> bytes:
    """Returns the bytes of app-compose.json. `allowed_envs` lists the operator's variables that the file takes.

    The output is canonical JSON (RFC 8785): the same input gives the same bytes, and a tool that sorts keys and
    removes white space does not change them.

    Args:
        compose: text of the compose file, with the job spec inside.
        profile: the deployment profile.
        key_provider_id: for `kms`, the identity of the key management service in hex; None leaves a placeholder.

    Raises:
        UsageError: the compose file takes such a variable, and the profile is `sealed`.
    """
    variables = read_operator_variables(compose)
    if variables and profile is DeploymentProfile.SEALED:
        raise UsageError(
            ErrorCode.USAGE,
            f"the compose file takes {', '.join(variables)} from the encrypted environment",
            expected="the profile kms: without a key service there is no encrypted environment",
            found="the profile sealed",
            hint="a gated model comes from a mirror or from model_urls; or render with --profile kms",
        )
    return canonical_json(
        {
            **_SETTINGS,
            **_profile_settings(profile, key_provider_id),
            "allowed_envs": list(variables),
            "docker_compose_file": compose,
        }
    )


def _profile_settings(profile: DeploymentProfile, key_provider_id: str | None) -> dict[str, object]:
    if profile is DeploymentProfile.SEALED:
        # The gateway and the encrypted environment need a KMS: without one, a mapped port is the way in.
        return {
            "key_provider": "none",
            "kms_enabled": False,
            "key_provider_id": "",
            "gateway_enabled": False,
        }
    return {
        "key_provider": "kms",
        "kms_enabled": True,
        # Without an identity the guest would accept the service that the operator names.
        "key_provider_id": key_provider_id or KEY_PROVIDER_PLACEHOLDER,
        "gateway_enabled": True,
        "init_script": CLEAN_START,
    }
