"""The shape: the shipped files have it, and no mutant of them has, apart from the published variations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.audit.mutations import (
    COMPOSE_FILES,
    CONFIGS,
    Mutant,
    app_mutants,
    compose_mutants,
    shipped,
)
from trainer.audit import Severity, audit_compose
from trainer.deployment import DeploymentProfile
from trainer.errors import UsageError

KMS, SEALED = DeploymentProfile.KMS, DeploymentProfile.SEALED
SERVICE = "docker_compose_file.services.trainer"


def is_refused(data: bytes) -> bool:
    try:
        return audit_compose(data).reaches(Severity.HIGH)
    except UsageError:
        return True


@pytest.mark.parametrize("profile", DeploymentProfile)
@pytest.mark.parametrize("compose", COMPOSE_FILES)
def test_the_shipped_files_pass(compose: str, profile: DeploymentProfile) -> None:
    review = audit_compose(shipped(compose, profile))
    assert not review.reaches(Severity.LOW), review.findings
    assert review.job_spec_sha256 is not None


def passing(mutants: list[Mutant]) -> set[tuple[str, str]]:
    return {(each.rule, each.place) for each in mutants if not is_refused(each.data)}


def test_no_mutant_of_the_compose_file_passes() -> None:
    made = list(compose_mutants(shipped("docker-compose.yaml", KMS)))
    assert passing(made) == {
        ("other value", f"{SERVICE}.pids_limit"),
        ("remove", f"{SERVICE}.deploy"),
    }, "within the published list, and nothing else"
    assert len({each.data for each in made}) >= 300


@pytest.mark.parametrize(
    ("profile", "published"),
    [(SEALED, {"name"}), (KMS, {"name", "gateway_enabled"})],
    ids=["sealed", "kms"],
)
def test_no_mutant_of_the_app_passes(profile: DeploymentProfile, published: set[str]) -> None:
    made = list(app_mutants(shipped("docker-compose.yaml", profile)))
    assert passing(made) == {("other value", place) for place in published}
    assert len({each.data for each in made}) >= 80


def test_a_clean_file_has_notes_alone(render: Callable[..., bytes]) -> None:
    review = audit_compose(render())
    assert {each.code for each in review.findings} == {
        "gateway",
        "key-provider-kms",
        "port-published",
    }
    assert {each.severity for each in review.findings} == {Severity.INFO}
    assert review.job_spec_sha256 is not None
    assert review.compose_sha256 is not None


@pytest.mark.parametrize(
    ("name", "to_fill_in"),
    [
        ("app-compose-sealed.json", ["image-placeholder"]),
        ("app-compose-kms.json", ["image-placeholder", "key-provider-unpinned"]),
        *((name, ["image-placeholder"]) for name in COMPOSE_FILES),
    ],
)
def test_a_template_names_what_is_to_be_filled_in(name: str, to_fill_in: list[str]) -> None:
    review = audit_compose((CONFIGS / name).read_bytes())
    assert (
        sorted(each.code for each in review.findings if each.severity is not Severity.INFO)
        == to_fill_in
    )
    assert review.job_spec_sha256 is not None


def test_the_job_spec_is_named_wherever_it_is(render: Callable[..., bytes]) -> None:
    """The digest is an aid to reading: it is shown for a file that is refused as well."""

    def as_config(app: Any, compose: Any) -> None:
        service = compose["services"]["trainer"]
        compose["configs"] = {"job": {"content": service["environment"].pop("TRAINER_JOB")}}
        service["configs"] = [{"source": "job", "target": "/etc/trainer/job.yaml"}]

    def as_list(app: Any, compose: Any) -> None:
        service = compose["services"]["trainer"]
        service["environment"] = [f"TRAINER_JOB={service['environment']['TRAINER_JOB']}"]

    reviews = [
        audit_compose(render(edit)) for edit in (lambda _app, _compose: None, as_config, as_list)
    ]
    assert len({review.job_spec_sha256 for review in reviews}) == 1
    assert reviews[0].job_spec_sha256 is not None
    assert [review.reaches(Severity.HIGH) for review in reviews] == [False, True, True]


def two_services(app: Any, compose: Any) -> None:
    compose["services"]["other"] = copy.deepcopy(compose["services"]["trainer"])


def in_other_words(app: Any, compose: Any) -> None:
    """The same job spec with its keys escaped: no search for words finds it."""
    two_services(app, compose)
    environment = compose["services"]["other"]["environment"]
    environment["TRAINER_JOB"] = environment["TRAINER_JOB"].replace("\nmodel:", '\n"\\x6dodel":')


def twice_in_a_list(app: Any, compose: Any) -> None:
    """Compose takes the last of two equal names in a list; a reader may stop at the first."""
    service = compose["services"]["trainer"]
    job = service["environment"]["TRAINER_JOB"]
    service["environment"] = [f"TRAINER_JOB={job}", f"TRAINER_JOB={job}# another\n"]


@pytest.mark.parametrize("edit", [two_services, in_other_words, twice_in_a_list])
def test_of_two_job_specs_none_is_named(
    edit: Callable[[Any, Any], None], render: Callable[..., bytes]
) -> None:
    review = audit_compose(render(edit))
    assert review.job_spec_sha256 is None
    assert review.reaches(Severity.HIGH)


def test_of_a_list_only_what_differs_is_found(render: Callable[..., bytes]) -> None:
    def insert(app: Any, compose: Any) -> None:
        compose["services"]["trainer"]["cap_add"].insert(1, "NET_RAW")

    found = [
        each for each in audit_compose(render(insert)).findings if each.severity is Severity.HIGH
    ]
    assert [(each.path, each.code) for each in found] == [(f"{SERVICE}.cap_add[1]", "capability")]
    assert found[0].message.startswith("expected nothing, got NET_RAW, because ")
