"""Where a VM's keys come from: which choices let others read the data, and how app-compose.json states them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.attestation.dstack.key_source import (
    CLEAN_START_SHA256,
    MACHINE_PROVIDER,
    NO_CLEAN_START,
    OPEN_PROVIDER,
    UNNAMED_SERVICE,
    KeySource,
    KeyWeakness,
    key_weaknesses,
    read_key_source,
)
from trainer.deployment import CLEAN_START, DeploymentProfile, render_app_compose
from trainer.encoding import sha256_hex

COMPOSE = (Path(__file__).parents[3] / "configs" / "docker-compose.yaml").read_text("utf-8")
IDENTITY = "ab" * 91
ONLY = (CLEAN_START_SHA256,)


def shipped(profile: DeploymentProfile, **changes: object) -> dict[str, object]:
    identity = IDENTITY if profile is DeploymentProfile.KMS else None
    app = json.loads(render_app_compose(COMPOSE, profile, key_provider_id=identity)) | changes
    return {name: value for name, value in app.items() if value is not ...}


def weaknesses(app: dict[str, object]) -> list[KeyWeakness]:
    return list(key_weaknesses(read_key_source(app)))


def test_the_digest_is_that_of_the_shipped_script() -> None:
    assert sha256_hex(CLEAN_START.encode()) == CLEAN_START_SHA256
    assert CLEAN_START_SHA256 in (Path(__file__).parents[3] / "trainer" / "SPEC.md").read_text(
        "utf-8"
    )


@pytest.mark.parametrize("profile", DeploymentProfile)
def test_the_shipped_profiles_are_strict(profile: DeploymentProfile) -> None:
    assert weaknesses(shipped(profile)) == []


def test_both_forms_of_init_script_are_read() -> None:
    app = shipped(DeploymentProfile.KMS)
    assert read_key_source(app) == KeySource("kms", IDENTITY, ONLY)
    assert read_key_source(app | {"init_script": [CLEAN_START]}) == KeySource("kms", IDENTITY, ONLY)
    assert read_key_source(shipped(DeploymentProfile.SEALED)) == KeySource("none")


@pytest.mark.parametrize(
    ("app", "provider"),
    [
        ({}, "none"),
        ({"kms_enabled": True}, "kms"),
        ({"local_key_provider_enabled": True}, "local"),
        ({"key_provider": "tpm"}, "tpm"),
        ({"key_provider": "none", "kms_enabled": False}, "none"),
    ],
)
def test_the_provider_is_the_one_that_the_guest_picks(
    app: dict[str, object], provider: str
) -> None:
    assert read_key_source(app).provider == provider


# attacks

WEAK: dict[str, tuple[KeyWeakness, dict[str, object]]] = {
    "no identity": (UNNAMED_SERVICE, {"key_provider_id": ""}),
    "identity left out": (UNNAMED_SERVICE, {"key_provider_id": ...}),
    "identity of a template": (UNNAMED_SERVICE, {"key_provider_id": "FILL IN"}),
    "half a byte": (UNNAMED_SERVICE, {"key_provider_id": "abc"}),
    "an identity that is no text": (UNNAMED_SERVICE, {"key_provider_id": ["ab"]}),
    "too short an identity": (UNNAMED_SERVICE, {"key_provider_id": "ab" * 15}),
    "too long an identity": (UNNAMED_SERVICE, {"key_provider_id": "ab" * 2049}),
    "no script": (NO_CLEAN_START, {"init_script": ...}),
    "an empty list of scripts": (NO_CLEAN_START, {"init_script": []}),
    "another script": (NO_CLEAN_START, {"init_script": CLEAN_START + "# and more\n"}),
    "the script without its last line end": (
        NO_CLEAN_START,
        {"init_script": CLEAN_START.rstrip("\n")},
    ),
    "a script before it": (NO_CLEAN_START, {"init_script": ["true\n", CLEAN_START]}),
    "a script after it": (NO_CLEAN_START, {"init_script": [CLEAN_START, "true\n"]}),
    "scripts that are no texts": (NO_CLEAN_START, {"init_script": [CLEAN_START, 1]}),
    "half of a surrogate pair": (NO_CLEAN_START, {"init_script": "\ud800"}),
    "where an engine runs already": (
        NO_CLEAN_START,
        {"init_script": ..., "pre_launch_script": CLEAN_START},
    ),
    "the machine's own keys": (
        MACHINE_PROVIDER,
        {"key_provider": "local", "kms_enabled": False, "local_key_provider_enabled": True},
    ),
    "a TPM that the operator has": (
        MACHINE_PROVIDER,
        {"key_provider": "tpm", "kms_enabled": False},
    ),
    "a provider that no release knows": (
        MACHINE_PROVIDER,
        {"key_provider": "cloud", "kms_enabled": False},
    ),
    "a service that is switched off": (OPEN_PROVIDER, {"kms_enabled": False}),
    "a provider that is no text": (OPEN_PROVIDER, {"key_provider": 1}),
    "a service, and local keys": (OPEN_PROVIDER, {"local_key_provider_enabled": True}),
    "no provider, and a service that is switched on": (OPEN_PROVIDER, {"key_provider": "none"}),
}


@pytest.mark.parametrize("name", WEAK)
def test_a_key_source_that_lets_others_read_is_found(name: str) -> None:
    expected, changes = WEAK[name]
    assert weaknesses(shipped(DeploymentProfile.KMS, **changes)) == [expected]


def test_a_sealed_vm_with_a_service_switched_on_is_found() -> None:
    for switch in ("kms_enabled", "local_key_provider_enabled"):
        assert weaknesses(shipped(DeploymentProfile.SEALED, **{switch: True})) == [
            OPEN_PROVIDER,
            NO_CLEAN_START,
        ]


def test_what_is_left_open_is_weak() -> None:
    assert list(key_weaknesses(KeySource(None, "", None))) == [OPEN_PROVIDER, NO_CLEAN_START]
    assert list(key_weaknesses(KeySource("kms", IDENTITY, None))) == [NO_CLEAN_START]
