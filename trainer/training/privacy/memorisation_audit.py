"""What a run's weights memorised: rows' losses before and after training, and canaries among others like them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random, SystemRandom
from typing import Final

import torch

from trainer.data.examples.example import Example
from trainer.data.examples.example_set import Dataset
from trainer.data.rows import Row
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection, PrivacySection
from trainer.training.batches import split_micro_batches
from trainer.training.loss import CausalLoss
from trainer.training.privacy.canaries import canary_examples, exposures
from trainer.training.privacy.membership import membership
from trainer.training.privacy.per_example_gradients import row_means
from trainer.training.privacy.privacy_findings import Exposure, Membership
from trainer.training.token_store import TokenStore
from trainer.training.tokenizer import ModelTokenizer

EVALUATED_TOKENS: Final = 1 << 14
"""So many go through the model at once where no gradient is made."""


@dataclasses.dataclass(frozen=True)
class Probes:
    """What is looked at before and after training.

    Attributes:
        members: rows that are trained on.
        outsiders: held-out rows.
        canaries: texts added to the training rows, each once here.
        references: others like them, never trained on.
    """

    members: tuple[Example, ...] = ()
    outsiders: tuple[Example, ...] = ()
    canaries: tuple[Example, ...] = ()
    references: tuple[Example, ...] = ()


def add_probes(
    data: Dataset,
    rows: Sequence[Row],
    tokens: ModelTokenizer,
    sections: tuple[PrivacySection, DataSection],
    *,
    random: Random | None = None,
) -> tuple[Dataset, Probes]:
    """Choose what to look at, and add the canaries to the training rows.

    Args:
        data: the dataset without canaries.
        rows: its rows; the first shows what a canary must look like.
        tokens: tokenizer and chat template.
        sections: what is asked for, and how rows become examples.
        random: chooses rows and canaries' digits; must be secret.

    Returns:
        The dataset to train on, and the probes.

    Raises:
        DataError: `DATASET_INVALID`: nothing is held out to compare with; `DATASET_NOT_TRAINABLE`: canaries do not
            fit in.
    """
    privacy, section = sections
    random = random or SystemRandom()
    probes = Probes()
    if privacy.audit:
        probes = Probes(*(_sample(part, privacy.audit_rows, random) for part in (data.train, data.evaluation)))
        _require_two_sides(probes)
    if not privacy.canaries:
        return data, probes
    canaries, references = canary_examples(rows[0], privacy.canaries, tokens, section, random)
    added = canaries * privacy.canary_repetitions
    told = f"{len(added)} rows with random numbers were added to the training rows (privacy.canaries)"
    data = dataclasses.replace(data, train=(*data.train, *added), warnings=(*data.warnings, told))
    return data, dataclasses.replace(probes, canaries=canaries, references=references)


def _sample(examples: tuple[Example, ...], count: int, random: Random) -> tuple[Example, ...]:
    return tuple(random.sample(examples, min(count, len(examples))))


def _require_two_sides(probes: Probes) -> None:
    fewest = min(len(probes.members), len(probes.outsiders))
    if fewest <= 1:
        raise DataError(
            ErrorCode.DATASET_INVALID,
            "privacy.audit compares training rows with held-out ones",
            expected="at least 2 of each",
            found=f"{len(probes.members)} and {len(probes.outsiders)}",
            hint="raise data.test_split_size, or send files for evaluation (data.eval_files)",
        )


class MemorisationAudit:
    """Measures the probes' losses, before training and after it.

    Args:
        loss: the model's; the adapter as it is when a method is called.
        probes: what to look at.
        repetitions: how often each canary is trained on.
        device: where.
    """

    def __init__(self, loss: CausalLoss, probes: Probes, *, repetitions: int, device: torch.device) -> None:
        self._loss = loss
        self._probes = probes
        self._repetitions = repetitions
        self._device = device
        self._before: tuple[list[float], list[float]] = ([], [])
        self.losses: dict[str, list[float]] = {}

    def before(self) -> None:
        """Measure the rows while the adapter does nothing yet."""
        self._before = self._of(self._probes.members), self._of(self._probes.outsiders)

    def membership(self) -> Membership | None:
        """The membership test with the adapter as it is now; None where it was not asked for."""
        if not self._probes.members:
            return None
        after = self._of(self._probes.members), self._of(self._probes.outsiders)
        self.losses = {
            "members_before": self._before[0],
            "members_after": after[0],
            "outsiders_before": self._before[1],
            "outsiders_after": after[1],
        }
        return membership((self._before[0], after[0]), (self._before[1], after[1]))

    def exposure(self) -> Exposure | None:
        """What is known of the canaries with the adapter as it is now; None where there are none."""
        if not self._probes.canaries:
            return None
        probed = self._probes.canaries, self._probes.references
        canaries, references = (
            [mean * example.targets for mean, example in zip(self._of(some), some, strict=True)] for some in probed
        )
        return Exposure(
            canaries=len(canaries),
            repetitions=self._repetitions,
            candidates=len(references) + 1,
            bits=exposures(canaries, references),
        )

    def _of(self, examples: Sequence[Example]) -> list[float]:
        """Nats per trained token of each example, in their order."""
        return row_losses(examples, self._loss, self._device)


def row_losses(examples: Sequence[Example], loss: CausalLoss, device: torch.device) -> list[float]:
    """Loss of each example, in nats per trained token, in their order."""
    if not examples:
        return []
    order = sorted(range(len(examples)), key=lambda index: examples[index].length)
    ordered = TokenStore(examples, device).reorder(order)
    budget = max(EVALUATED_TOKENS, *ordered.lengths)
    with loss.evaluating():
        parts = [
            row_means(loss, ordered.batch(part))[1]
            for part in split_micro_batches(ordered.lengths, budget, loss.cost)
        ]
    found = dict(zip(order, torch.cat(parts).tolist(), strict=True))
    return [found[index] for index in range(len(examples))]
