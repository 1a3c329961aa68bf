"""Change exactly one thing in an honest world, and exactly one check answers: its own."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.attestation.attacks import Attack, attacks
from tests.attestation.attacks_image import prepared
from trainer.attestation.catalogue import DATASET_CHECKS
from trainer.attestation.checks import CheckState
from trainer.errors import ErrorCode, VerificationError

if TYPE_CHECKING:
    from trainer.simulator.appraisal_world import World

LEAST_ATTACKS = 700
LEAST_CODES = 60


@pytest.mark.parametrize("attack", attacks(), ids=lambda attack: attack.key)
def test_answered_by_its_own_code(world: World, attack: Attack) -> None:
    result = attack.change(world).appraise()
    failed = [check.code for check in result.checks if check.state is CheckState.CONTRAINDICATED]
    assert sorted(failed) == sorted(attack.codes)
    assert result.status == "fail"
    with pytest.raises(VerificationError) as refused:
        result.require_pass(world.now)
    assert refused.value.code is ErrorCode.VERIFICATION_FAILED
    assert attack.code in str(refused.value)


def test_the_world_of_the_image_attacks_is_honest_before_them(world: World) -> None:
    assert prepared(world).contraindicated() == []


def test_every_check_has_an_attack_that_it_answers() -> None:
    answered = {attack.code for attack in attacks()}
    assert answered == {definition.code for definition in DATASET_CHECKS}
    assert len(answered) >= LEAST_CODES
    assert len(attacks()) >= LEAST_ATTACKS


def test_no_two_attacks_have_one_name() -> None:
    assert [
        key for key, count in Counter(attack.key for attack in attacks()).items() if count > 1
    ] == []
