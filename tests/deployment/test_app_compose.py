"""app-compose.json for both profiles: who has the keys, and what the operator can reach."""

from __future__ import annotations

import json

import pytest

from trainer.deployment import (
    CLEAN_START,
    KEY_PROVIDER_PLACEHOLDER,
    DeploymentProfile,
    render_app_compose,
)
from trainer.errors import ErrorCode, UsageError

COMPOSE = "services: {}\n"


def settings(profile: DeploymentProfile, key_provider_id: str | None = None) -> dict[str, object]:
    parsed: dict[str, object] = json.loads(
        render_app_compose(COMPOSE, profile, key_provider_id=key_provider_id)
    )
    return parsed


def test_sealed_has_no_key_service_no_gateway_and_no_script() -> None:
    found = settings(DeploymentProfile.SEALED)
    assert (found["key_provider"], found["kms_enabled"], found["gateway_enabled"]) == (
        "none",
        False,
        False,
    )
    assert "init_script" not in found
    assert render_app_compose(COMPOSE) == render_app_compose(COMPOSE, DeploymentProfile.SEALED)


def test_kms_names_its_service_and_starts_clean() -> None:
    found = settings(DeploymentProfile.KMS, "ab" * 32)
    assert (found["key_provider"], found["kms_enabled"], found["key_provider_id"]) == (
        "kms",
        True,
        "ab" * 32,
    )
    assert found["init_script"] == CLEAN_START


def test_a_kms_template_cannot_boot() -> None:
    """dstack's guest reads the identity as hex: it refuses the placeholder, and takes no text for any service."""
    found = settings(DeploymentProfile.KMS)["key_provider_id"]
    assert found == KEY_PROVIDER_PLACEHOLDER
    with pytest.raises(ValueError, match="non-hexadecimal"):
        bytes.fromhex(KEY_PROVIDER_PLACEHOLDER)


@pytest.mark.parametrize("profile", DeploymentProfile)
def test_both_profiles_publish_nothing_and_let_nobody_set_variables(
    profile: DeploymentProfile,
) -> None:
    found = settings(profile)
    assert [found[key] for key in ("public_logs", "public_sysinfo", "public_tcbinfo")] == [
        False
    ] * 3
    assert found["allowed_envs"] == []
    assert (found["secure_time"], found["no_instance_id"]) == (True, False)
    assert found["docker_compose_file"] == COMPOSE


WITH_TOKEN = """\
services:
  trainer:
    environment:
      HF_TOKEN: ${HF_TOKEN:-} # comes encrypted
"""


def test_kms_lets_the_operator_set_the_token_that_the_compose_file_takes() -> None:
    assert json.loads(render_app_compose(WITH_TOKEN, DeploymentProfile.KMS))["allowed_envs"] == [
        "HF_TOKEN"
    ]
    for other in (
        "# HF_TOKEN: x",
        "HF_TOKEN: ${HF_TOKEN:-x}",
        "HF_HOME: ${HF_HOME:-}",
        "HF_TOKEN: $HF_TOKEN",
    ):
        compose = WITH_TOKEN.replace(
            "HF_TOKEN: ${HF_TOKEN:-} # comes encrypted", f"{other}\n      A: b"
        )
        assert json.loads(render_app_compose(compose, DeploymentProfile.KMS))["allowed_envs"] == []


def test_sealed_has_no_encrypted_environment() -> None:
    with pytest.raises(UsageError) as caught:
        render_app_compose(WITH_TOKEN)
    assert caught.value.code is ErrorCode.USAGE
    assert "model_urls" in str(caught.value.hint)


def test_the_bytes_are_canonical() -> None:
    data = render_app_compose(COMPOSE, DeploymentProfile.KMS)
    again = json.dumps(
        json.loads(data), ensure_ascii=False, sort_keys=True, separators=(",", ":")
    ).encode()
    assert data == again
