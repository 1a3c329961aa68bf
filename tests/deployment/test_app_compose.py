"""app-compose.json for both profiles: who has the keys, and what the operator can reach."""

from __future__ import annotations

import json

import pytest

from trainer.deployment import CLEAN_START, KEY_PROVIDER_PLACEHOLDER, DeploymentProfile, render_app_compose

COMPOSE = "services: {}\n"


def settings(profile: DeploymentProfile, key_provider_id: str | None = None) -> dict[str, object]:
    parsed: dict[str, object] = json.loads(render_app_compose(COMPOSE, profile, key_provider_id=key_provider_id))
    return parsed


def test_sealed_has_no_key_service_no_gateway_and_no_script() -> None:
    found = settings(DeploymentProfile.SEALED)
    assert (found["key_provider"], found["kms_enabled"], found["gateway_enabled"]) == ("none", False, False)
    assert "init_script" not in found
    assert render_app_compose(COMPOSE) == render_app_compose(COMPOSE, DeploymentProfile.SEALED)


def test_kms_names_its_service_and_starts_clean() -> None:
    found = settings(DeploymentProfile.KMS, "ab" * 32)
    assert (found["key_provider"], found["kms_enabled"], found["key_provider_id"]) == ("kms", True, "ab" * 32)
    assert found["init_script"] == CLEAN_START


def test_a_kms_template_cannot_boot() -> None:
    """dstack's guest reads the identity as hex: it refuses the placeholder, and takes no text for any service."""
    found = settings(DeploymentProfile.KMS)["key_provider_id"]
    assert found == KEY_PROVIDER_PLACEHOLDER
    with pytest.raises(ValueError, match="non-hexadecimal"):
        bytes.fromhex(KEY_PROVIDER_PLACEHOLDER)


@pytest.mark.parametrize("profile", DeploymentProfile)
def test_both_profiles_publish_nothing_and_let_nobody_set_variables(profile: DeploymentProfile) -> None:
    found = settings(profile)
    assert [found[key] for key in ("public_logs", "public_sysinfo", "public_tcbinfo")] == [False] * 3
    assert found["allowed_envs"] == []
    assert (found["secure_time"], found["no_instance_id"]) == (True, False)
    assert found["docker_compose_file"] == COMPOSE


def test_the_bytes_are_canonical() -> None:
    data = render_app_compose(COMPOSE, DeploymentProfile.KMS)
    again = json.dumps(json.loads(data), ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    assert data == again
