"""The rows of the method `kto`: answers with labels, each with a mismatched answer, and their reference."""

from __future__ import annotations

import dataclasses
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.examples.example import Example
from trainer.training.methods.method import MethodInputs
from trainer.training.methods.reference import log_probabilities
from trainer.training.token_store import TokenStore


@dataclass(frozen=True)
class JudgedRows:
    """Some rows with their labels, and the values of them that do not change in training; on the device.

    Attributes:
        desirable: bool [rows]: the labels.
        reference: float32 [rows]: log-probability of each answer under the reference, in nats.
        mismatched: tokens of each row's prompt with a mismatched answer.
        mismatched_reference: float32 [rows]: log-probability of these answers under the reference.
    """

    desirable: Tensor
    reference: Tensor
    mismatched: TokenStore
    mismatched_reference: Tensor

    @classmethod
    def of_examples(
        cls, examples: Sequence[Example], inputs: MethodInputs, longest: int
    ) -> JudgedRows:
        """Chooses mismatched answers and computes the log-probabilities; the model must be the reference.

        Args:
            examples: the rows; at least one.
            inputs: the model's loss and its device.
            longest: tokens of the longest row that the model is given.
        """
        mismatched = mismatch_answers(examples, seed=inputs.train.seed, longest=longest)
        reference, mismatched_reference = (
            log_probabilities(
                rows,
                inputs.loss,
                units=inputs.train.per_device_eval_batch_size,
                rows_per_unit=1,
                device=inputs.device,
                ranks=inputs.ranks,
            )
            for rows in (examples, mismatched)
        )
        desirable = torch.tensor(
            [example.label is True for example in examples], device=inputs.device
        )
        return cls(
            desirable, reference, TokenStore(mismatched, inputs.device), mismatched_reference
        )


def mismatch_answers(examples: Sequence[Example], *, seed: int, longest: int) -> list[Example]:
    """Returns each example's prompt with the answer of another one: to another prompt, as far as there are any.

    Args:
        examples: rows; each answer is used once.
        seed: decides the order of the prompts.
        longest: tokens to which a longer result is cut; at least the length of each example.
    """
    starts = [example.trained.index(1) for example in examples]
    prompts = [
        example.ids[:start].tobytes() for example, start in zip(examples, starts, strict=True)
    ]
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)  # noqa: S311 -- nothing secret: it must be the same in a resumed run
    groups: dict[bytes, list[int]] = {}
    for row in order:
        groups.setdefault(prompts[row], []).append(row)
    # Rows with one prompt are neighbours here. Whatever follows the largest group's size later has another prompt,
    # unless that group has more than half of all rows.
    sorted_rows = [row for group in groups.values() for row in group]
    distance = max(map(len, groups.values()))
    if distance == len(sorted_rows):  # one prompt only: another answer to it
        distance = 1
    mismatched = list(examples)
    for place, row in enumerate(sorted_rows):
        other = sorted_rows[(place + distance) % len(sorted_rows)]
        answer, first = examples[other], starts[other]
        ids = examples[row].ids[: starts[row]] + answer.ids[first:]
        trained = bytes(starts[row]) + answer.trained[first:]
        mismatched[row] = dataclasses.replace(
            answer, ids=array("i", ids[:longest]), trained=trained[:longest], label=None
        )
    return mismatched
