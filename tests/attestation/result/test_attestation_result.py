"""Results of appraisals: only an appraisal makes one, and a pass does not last."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from trainer.attestation.checks import CheckState
from trainer.attestation.result.attestation_result import APPRAISER, AttestationResult
from trainer.errors import ErrorCode, VerificationError

World = Any  # conftest.World


def test_only_an_appraisal_makes_results(world: World) -> None:
    result = world.change(nonce="02" * 32).appraise()
    checks = tuple(dataclasses.replace(check, state=CheckState.AFFIRMED) for check in result.checks)
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    with pytest.raises(TypeError, match="only"):
        AttestationResult(**{**fields, "checks": checks}, appraiser=object())
    with pytest.raises(ValueError, match="appraiser"):
        dataclasses.replace(result, checks=checks)
    with pytest.raises(TypeError, match="appraise again"):
        copy.copy(result)
    with pytest.raises(TypeError, match="appraise again"):
        pickle.dumps(result)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.checks = checks


def test_a_result_without_checks_is_no_pass(world: World) -> None:
    result = world.appraise()
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    empty = AttestationResult(**{**fields, "checks": ()}, appraiser=APPRAISER)
    with pytest.raises(VerificationError, match="no checks"):
        empty.require_pass(world.now)


def test_a_pass_expires(world: World) -> None:
    result = world.appraise()
    assert result.expires_at == world.claims.issued_at + world.policy.freshness.max_age_seconds
    result.require_pass(result.expires_at - 1)
    for moment in (result.expires_at, result.appraised_at - 301):
        with pytest.raises(VerificationError) as refused:
            result.require_pass(moment)
        assert refused.value.code is ErrorCode.ATTESTATION_EXPIRED


def test_a_pass_lives_no_longer_than_the_collateral(world: World) -> None:
    result = world.with_collateral(valid_seconds=100).appraise()
    assert result.expires_at == world.now + 100


def test_a_pass_lives_no_longer_than_the_gpus_certificates(world: World) -> None:
    bench = world.bench
    changed = world.with_gpu(
        dataclasses.replace(bench.leaf, end=world.now + 50), bench.ca, bench.root
    )
    assert changed.appraise().expires_at == world.now + 50


def test_a_pass_lives_no_longer_than_the_claims(world: World) -> None:
    assert world.claiming(expires_at=world.now + 9).appraise().expires_at == world.now + 9


def test_a_clock_that_runs_ahead_does_not_lengthen_a_pass(world: World) -> None:
    result = world.claiming(issued_at=world.now + 299).appraise()
    assert result.status == "pass"
    assert result.expires_at == world.now + world.policy.freshness.max_age_seconds


def test_a_check_is_found_by_its_code(world: World) -> None:
    result = world.appraise()
    assert result.check("nonce").number == 37
    with pytest.raises(KeyError, match="no-such"):
        result.check("no-such")
