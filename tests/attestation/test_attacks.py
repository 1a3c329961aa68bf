"""Change exactly one thing in an honest world, and exactly one check answers: its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.attestation.attacks import Attack, attacks
from trainer.attestation.catalogue import DATASET_CHECKS
from trainer.errors import ErrorCode, VerificationError

if TYPE_CHECKING:
    from tests.attestation.conftest import World


@pytest.mark.parametrize("attack", attacks(), ids=lambda attack: attack.key)
def test_one_change_is_answered_by_its_own_code(world: World, attack: Attack) -> None:
    changed = attack.change(world)
    assert changed.contraindicated() == [attack.code]
    result = changed.appraise()
    assert result.status == "fail"
    with pytest.raises(VerificationError) as refused:
        result.require_pass(world.now)
    assert refused.value.code is ErrorCode.VERIFICATION_FAILED
    assert attack.code in str(refused.value)


def test_every_check_has_an_attack_that_it_answers() -> None:
    assert {attack.code for attack in attacks()} == {definition.code for definition in DATASET_CHECKS}
