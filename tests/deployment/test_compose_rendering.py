"""A job spec in a compose file: it arrives as it was written, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.deployment import read_embedded_job, render_compose
from trainer.errors import ErrorCode, UsageError
from trainer.spec import MAX_VARIABLE_BYTES

COMPOSE = """\
services:
  trainer:
    environment:
      HF_ENDPOINT: https://mirror.example
      TRAINER_JOB: |
        version: 1

        model: {}
    ports: ["8443:8443"]
"""
JOB = "# first line\nversion: 1\n\nmodel:\n  a: b\n"


def test_the_job_replaces_the_block_and_nothing_else() -> None:
    rendered = render_compose(COMPOSE, JOB)
    before, after = yaml.safe_load(COMPOSE), yaml.safe_load(rendered)
    assert after["services"]["trainer"]["environment"].pop("TRAINER_JOB") == JOB
    before["services"]["trainer"]["environment"].pop("TRAINER_JOB")
    assert after == before
    assert render_compose(rendered, JOB) == rendered
    assert render_compose(rendered, "version: 1\n\nmodel: {}\n") == COMPOSE


def test_dollar_signs_are_doubled_for_compose_and_arrive_single() -> None:
    job = 'version: 1\nname: "${HOME} $$ $x"\n'
    rendered = render_compose(COMPOSE, job)
    assert "$${HOME} $$$$ $$x" in rendered
    assert read_embedded_job(rendered) == job


@settings(deadline=None)
@given(st.text(alphabet="ab $:#\n-'\"{}[]|>\t é", max_size=80))
def test_what_is_accepted_arrives_unchanged(text: str) -> None:
    job = text.rstrip("\n") + "\n"
    try:
        rendered = render_compose(COMPOSE, job)
    except UsageError:
        return
    received = yaml.safe_load(rendered)["services"]["trainer"]["environment"]["TRAINER_JOB"]
    assert received.replace("$$", "$") == job
    assert "$" not in received.replace("$$", "")


@pytest.mark.parametrize(
    "job", ["version: 1\r\nmodel: x\r\n", "  version: 1\nmodel: x\n", "a: \x07b\n"]
)
def test_what_would_not_arrive_as_it_is_is_refused(job: str) -> None:
    with pytest.raises(UsageError) as caught:
        render_compose(COMPOSE, job)
    assert caught.value.code is ErrorCode.USAGE


def test_a_spec_above_what_the_kernel_takes_is_refused() -> None:
    fits = "#" * (MAX_VARIABLE_BYTES - 1) + "\n"
    assert read_embedded_job(render_compose(COMPOSE, fits)) == fits
    with pytest.raises(UsageError) as caught:
        render_compose(COMPOSE, "#" + fits)
    assert caught.value.code is ErrorCode.SPEC_TOO_LARGE


@pytest.mark.parametrize(
    "compose",
    [
        COMPOSE.replace("TRAINER_JOB: |", "TRAINER_JOB: >"),
        COMPOSE.replace("TRAINER_JOB", "OTHER"),
        COMPOSE + COMPOSE.removeprefix("services:\n").replace("trainer:", "second:"),
    ],
    ids=["folded", "absent", "twice"],
)
def test_a_compose_file_without_one_place_for_the_job_is_refused(compose: str) -> None:
    with pytest.raises(UsageError, match="TRAINER_JOB"):
        render_compose(compose, JOB)


def test_a_value_with_variables_is_no_job() -> None:
    with pytest.raises(UsageError, match="without variables"):
        read_embedded_job(COMPOSE.replace("model: {}", "model: ${MODEL}"))


def test_every_shipped_compose_file_takes_another_job() -> None:
    for path in (Path(__file__).parents[2] / "configs").glob("docker-compose*.yaml"):
        assert read_embedded_job(render_compose(path.read_text("utf-8"), JOB)) == JOB
