"""Measures what the weights memorised: the losses of rows before and after training, and the ranks of canaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random, SystemRandom
from typing import Final

import torch

from trainer.data.examples.example import Example
from trainer.data.examples.example_set import Dataset
from trainer.data.examples.held_out import row_digest
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.privacy_rows import canaries_added, require_audit_rows
from trainer.data.rows import Row
from trainer.spec import DataSection, PrivacySection
from trainer.training.batches import split_micro_batches
from trainer.training.loss import CausalLoss
from trainer.training.privacy.canaries import canary_examples, exposures
from trainer.training.privacy.membership import membership
from trainer.training.privacy.per_example_gradients import row_means
from trainer.training.privacy.privacy_findings import Exposure, Membership
from trainer.training.token_store import TokenStore

EVALUATED_TOKENS: Final = 1 << 14
"""Number of tokens in a forward pass without gradients."""


@dataclasses.dataclass(frozen=True)
class Probes:
    """The examples whose losses are measured.

    Attributes:
        members: sample of the training rows.
        outsiders: sample of the held-out rows.
        canaries: texts that were added to the training rows; each once, whatever the number of repetitions.
        references: texts like the canaries that are not trained on.
    """

    members: tuple[Example, ...] = ()
    outsiders: tuple[Example, ...] = ()
    canaries: tuple[Example, ...] = ()
    references: tuple[Example, ...] = ()


def add_probes(
    data: Dataset,
    first: Row,
    tokens: ModelTokenizer,
    sections: tuple[PrivacySection, DataSection],
    *,
    random: Random | None = None,
) -> tuple[Dataset, Probes]:
    """Chooses the probes and adds the canaries to the training rows.

    Args:
        data: the dataset without canaries.
        first: its first row, whose row kind the canaries get; with differential privacy they are texts.
        tokens: tokenizer and chat template.
        sections: what the audit measures, and how rows become examples.
        random: chooses the rows and the digits of the canaries; must be secret.

    Returns:
        The dataset to train on, and the probes.

    Raises:
        DataError: `DATASET_INVALID`: too few training or held-out rows to compare; `DATASET_NOT_TRAINABLE`: the
            canaries do not fit into `data.max_length`.
    """
    privacy, section = sections
    random = random or SystemRandom()
    probes = Probes()
    if privacy.audit:
        # Drawn before the canaries are added: the attack is measured on the provider's own rows.
        # Copies of training rows are members, whichever file they are in: counted as outsiders they would make
        # the attack look weaker than it is.
        trained = {row_digest([example]) for example in data.train}
        outsiders = [example for example in data.evaluation if row_digest([example]) not in trained]
        require_audit_rows(len(data.train), len(outsiders), privacy)
        samples = (
            tuple(random.sample(part, min(privacy.audit_rows, len(part))))
            for part in (data.train, outsiders)
        )
        probes = Probes(*samples)
    if not privacy.canaries:
        return data, probes
    canaries, references = canary_examples(first, privacy, tokens, section, random)
    added = canaries * privacy.canary_repetitions
    warnings = (*data.warnings, canaries_added(privacy))
    data = dataclasses.replace(data, train=(*data.train, *added), warnings=warnings)
    return data, dataclasses.replace(probes, canaries=canaries, references=references)


class MemorisationAudit:
    """Measures the losses of the probes before and after training.

    Args:
        loss: loss of the model, with the adapter as it is when a method is called.
        probes: the examples to measure.
        repetitions: how often each canary occurs in the training rows.
        device: device of the model.

    Attributes:
        losses: losses of the members and outsiders, in nats per token, for the report; set by `membership`.
    """

    def __init__(
        self, loss: CausalLoss, probes: Probes, *, repetitions: int, device: torch.device
    ) -> None:
        self._loss = loss
        self._probes = probes
        self._repetitions = repetitions
        self._device = device
        self._before: tuple[list[float], list[float]] = ([], [])
        self.losses: dict[str, list[float]] = {}

    def before(self) -> None:
        """Measures the rows before training, while the adapter is fresh and the model is the base model."""
        self._before = (
            self._losses_of(self._probes.members),
            self._losses_of(self._probes.outsiders),
        )

    def membership(self) -> Membership | None:
        """Runs the membership test with the present adapter and sets `losses`; None without `privacy.audit`."""
        if not self._probes.members:
            return None
        after = self._losses_of(self._probes.members), self._losses_of(self._probes.outsiders)
        self.losses = {
            "members_before": self._before[0],
            "members_after": after[0],
            "outsiders_before": self._before[1],
            "outsiders_after": after[1],
        }
        return membership((self._before[0], after[0]), (self._before[1], after[1]))

    def exposure(self) -> Exposure | None:
        """Measures the exposure of the canaries with the present adapter; returns None without canaries."""
        if not self._probes.canaries:
            return None
        # The paper ranks by log-perplexity, the negative log-probability of the text: the sum over tokens, not the
        # mean.
        canaries, references = (
            [
                mean * example.targets
                for mean, example in zip(self._losses_of(texts), texts, strict=True)
            ]
            for texts in (self._probes.canaries, self._probes.references)
        )
        return Exposure(
            canaries=len(canaries),
            repetitions=self._repetitions,
            candidates=len(references) + 1,
            bits=exposures(canaries, references),
        )

    def _losses_of(self, examples: Sequence[Example]) -> list[float]:
        return row_losses(examples, self._loss, self._device)


def row_losses(examples: Sequence[Example], loss: CausalLoss, device: torch.device) -> list[float]:
    """Computes the loss of each example, in nats per trained token, in the order of the examples."""
    if not examples:
        return []
    # By length, so that the rows of a micro-batch need little padding.
    order = sorted(range(len(examples)), key=lambda index: examples[index].length)
    ordered = TokenStore(examples, device).reorder(order)
    budget = max(EVALUATED_TOKENS, *ordered.lengths)
    with loss.evaluating():
        parts = [
            row_means(loss, ordered.batch(part))[1]
            for part in split_micro_batches(ordered.lengths, budget, loss.cost)
        ]
    losses = dict(zip(order, torch.cat(parts).tolist(), strict=True))
    return [losses[index] for index in range(len(examples))]
