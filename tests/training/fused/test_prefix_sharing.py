"""What rows begin with in common goes through the model once, and changes neither loss nor gradient."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from trainer.data.examples.example import Example
from trainer.spec import LoraSection
from trainer.training.adapter import attach_adapter
from trainer.training.engines.base import Precision
from trainer.training.fused import attention_cpu
from trainer.training.fused.decoder import FusedDecoder
from trainer.training.fused.prefix_sharing import FlatBatch, share_prefixes
from trainer.training.loss import CausalLoss
from trainer.training.token_store import Batch, single_batch

CPU = Precision(torch.device("cpu"), torch.float32, autocast=False)
SYSTEM = list(range(20, 32))


def row(ids: list[int], trained: int) -> Example:
    return Example(array("i", ids), bytes([0] * (len(ids) - trained) + [1] * trained), stops=True)


def batch_of(prompts: list[list[int]]) -> Batch:
    """Two answers to each prompt; some begin alike too."""
    rows = []
    for number, prompt in enumerate(prompts):
        same = [300] * (number % 3)
        rows += [row([*prompt, *same, 100 + number, 7, 8], 3 + number % 3)]
        rows += [
            row([*prompt, *same, 200 + number, *range(40, 40 + number)], 1 + number + number % 3)
        ]
    return single_batch(rows, CPU.device)


OWN = [[10 * number + place for place in range(4 + number)] for number in range(1, 5)]
ALIKE = [[*SYSTEM, number] for number in range(5)]


@pytest.fixture
def model(tiny_model: Path) -> Any:
    torch.manual_seed(3)
    model = attach_adapter(AutoModelForCausalLM.from_pretrained(tiny_model), LoraSection(lora_r=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def test_each_pair_shares_its_prompt_where_that_saves_more() -> None:
    batch = batch_of(OWN)
    shared = share_prefixes(batch, 2)
    assert len(shared.segments.groups) == 4
    # An answer of one token is not read, as nothing is predicted from it: that row keeps a token of the prompt.
    prompts = [5 - 1, 6 + 1, 7 + 2, 8]
    assert [group.prefix_length for group in shared.segments.groups] == prompts
    assert len(shared.input_ids) == len(batch.input_ids) - sum(prompts)
    assert torch.equal(
        shared.input_ids[shared.logit_positions], batch.input_ids[batch.logit_positions]
    )
    assert torch.equal(
        shared.position_ids[shared.logit_positions], batch.position_ids[batch.logit_positions]
    )


def test_all_rows_share_their_beginning_where_that_saves_more() -> None:
    shared = share_prefixes(batch_of(ALIKE), 2)
    (group,) = shared.segments.groups
    assert group.prefix_length == len(SYSTEM)


def test_without_groups_nothing_but_the_common_beginning_is_shared() -> None:
    batch = batch_of(OWN)
    shared = share_prefixes(batch, 1)
    assert shared.input_ids is batch.input_ids
    assert [group.prefix_length for group in shared.segments.groups] == [0]


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("prompts", [OWN, ALIKE, OWN[:1]], ids=["own", "alike", "one pair"])
def test_loss_and_gradient_stay_what_they_are(
    model: Any, prompts: list[list[int]], long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if long:
        monkeypatch.setattr(attention_cpu, "MAX_BATCH_TOKENS", 8)
        monkeypatch.setattr(attention_cpu, "QUERY_BLOCK", 4)
    batch = batch_of(prompts)
    loss = CausalLoss(model, CPU, pad_id=0, longest=64)
    assert loss.forward_mode == "fused"
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = torch.linspace(-1, 2, len(batch.lengths))
    results = []
    for rows_per_unit in (2, None):
        if rows_per_unit is None:
            loss._fused.share_prefixes = False  # type: ignore[union-attr]
        rows = loss.row_losses(batch, rows_per_unit=rows_per_unit or 1)
        gradients = torch.autograd.grad((rows * weights).sum(), parameters)
        results.append((rows.detach(), torch.cat([gradient.flatten() for gradient in gradients])))
    (rows, gradient), (expected, wanted) = results
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)
    assert float((gradient - wanted).norm()) <= 1e-5 * float(wanted.norm())


def test_long_rows_share_their_prompt_too(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [10 + place % 500 for place in range(600)]
    batch = batch_of([prompt])
    loss = CausalLoss(model, CPU, pad_id=0, longest=1024)
    computed: list[int] = []
    run_layers = FusedDecoder.hidden_states

    def count(decoder: FusedDecoder, flat: FlatBatch) -> torch.Tensor:
        computed.append(len(flat.input_ids))
        return run_layers(decoder, flat)

    monkeypatch.setattr(FusedDecoder, "hidden_states", count)
    with torch.no_grad():
        loss.row_losses(batch, rows_per_unit=2)
    assert computed == [len(batch.input_ids) - len(prompt) + 1]
