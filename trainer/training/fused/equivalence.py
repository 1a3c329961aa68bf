"""The equivalence check: the fused pass must give a model's own loss and gradients, at the start of every run.

It is a comparison within a tolerance on a few tokens, not a proof. In bfloat16 two correct computations of one
gradient may differ by as much as the gradient, so it compares in float32, where loss and gradients must agree to
three digits: on a copy of the model's first and last layer, with embedding and head. Attention is compared by
itself as well, in the dtype and on the device of the run, because it is another kernel there.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainer.training.fused.attention import attend
from trainer.training.fused.attention_layout import Heads, RotaryTables
from trainer.training.fused.segments import Segments
from trainer.training.token_store import Batch

LENGTHS: Final = (4, 7, 7)
"""Tokens of the compared rows: of different lengths, and two of the same."""

_LOGIT_POSITIONS: Final = (1, 2, 5, 8, 9, 12, 15, 16)
_TOLERANCE: Final = 1e-3
_ATTENTION_TOLERANCE: Final = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest difference relative to what is expected, as L2 norms."""

LossFunction = Callable[[Any, Batch], Tensor]
"""Loss of a model, summed over the targets of a batch."""


def loss_is_equivalent(model: Any, unfused_loss: LossFunction, fused_loss: LossFunction) -> bool:
    """Returns whether both functions give the same loss and the same gradients, within the tolerance.

    Args:
        model: PEFT model whose layers are in a list, as in the Llama family; it is not changed.
        unfused_loss: what the model itself computes.
        fused_loss: what is compared with it.
    """
    excerpt = _copy_two_layers(model)
    parameters = [parameter for parameter in excerpt.parameters() if parameter.requires_grad]
    # In a fresh adapter B is zero, and a wrong A would go unnoticed.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    batch = _make_batch()
    # The reference comes first: the fused pass then turns the copy's weights into views of its own.
    expected_loss, expected_gradient = _loss_and_gradient(unfused_loss(excerpt, batch), parameters)
    loss, gradient = _loss_and_gradient(fused_loss(excerpt, batch), parameters)
    return _is_near(loss, expected_loss, _TOLERANCE) and _is_near(
        gradient, expected_gradient, _TOLERANCE
    )


def attention_is_equivalent(heads: Heads, dtype: torch.dtype, device: torch.device) -> bool:
    """Returns whether attention over concatenated rows is attention over each row, forward and backward."""
    generator = torch.Generator(device).manual_seed(1)
    qkv = torch.randn(
        sum(LENGTHS), heads.total, heads.head_dim, generator=generator, device=device
    ).to(dtype)
    qkv.requires_grad_(True)
    # Another angle for each token and pair of numbers, so that no two of them could be swapped unnoticed.
    count = len(qkv) * heads.head_dim // 2
    angles = torch.arange(count, device=device).view(len(qkv), 1, -1)
    tables = angles.cos().to(dtype), angles.sin().to(dtype)
    segments = Segments.without_prefix(LENGTHS, _make_cu_seqlens(device))
    results = []
    for attention in (attend, _attend_row_by_row):
        # A copy, because on a GPU `attend` rotates in place.
        output = attention(qkv.clone(), heads, segments, tables)
        (gradient,) = torch.autograd.grad(output.float().square().sum(), qkv)
        results.append((output, gradient))
    return all(
        _is_near(one, other, _ATTENTION_TOLERANCE[dtype])
        for one, other in zip(*results, strict=True)
    )


def _attend_row_by_row(
    qkv: Tensor, heads: Heads, _segments: Segments, tables: RotaryTables
) -> Tensor:
    """Computes attention by its definition, one row at a time; the reference of the comparison."""
    rows = []
    to_rotate, values = torch.split(qkv, [heads.query + heads.key, heads.key], dim=1)
    (first, second), (cos, sin) = to_rotate.chunk(2, dim=2), tables
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=2)
    for row in torch.split(torch.cat([rotated, values], dim=1), list(LENGTHS)):
        query, key, value = torch.split(row.transpose(0, 1), [heads.query, heads.key, heads.key])
        key, value = (part.repeat_interleave(heads.queries_per_key, 0) for part in (key, value))
        scores = (query @ key.transpose(1, 2)).float() * heads.scale
        is_later = torch.ones_like(scores, dtype=torch.bool).triu_(1)
        weights = torch.softmax(scores.masked_fill(is_later, -torch.inf), -1).to(value.dtype)
        rows.append((weights @ value).transpose(0, 1).flatten(1))
    return torch.cat(rows)


def _copy_two_layers(model: Any) -> Any:
    """Copies the first and the last layer with everything around them, to the CPU, in float32."""
    decoder = model.get_base_model().base_model
    layers = decoder.layers
    # The other layers are left out before the copy, so that they are never in memory twice.
    decoder.layers = nn.ModuleList([layers[0], layers[-1]] if len(layers) > 1 else list(layers))
    try:
        excerpt = copy.deepcopy(model)
    finally:
        decoder.layers = layers
    return excerpt.to(device="cpu", dtype=torch.float32).eval()


def _make_cu_seqlens(device: torch.device) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32, device=device)


def _make_batch() -> Batch:
    input_ids = torch.arange(1, sum(LENGTHS) + 1, dtype=torch.int32)
    position_ids = torch.cat([torch.arange(length, dtype=torch.int32) for length in LENGTHS])
    logit_positions = torch.tensor(_LOGIT_POSITIONS, dtype=torch.int32)
    targets = input_ids[logit_positions + 1].to(torch.int64)
    return Batch(
        input_ids,
        position_ids,
        LENGTHS,
        _make_cu_seqlens(input_ids.device),
        logit_positions,
        targets,
    )


def _loss_and_gradient(loss: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    gradients = torch.autograd.grad(loss, parameters)
    return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def _is_near(value: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Returns whether the L2 norm of the difference is within the tolerance; a NaN is not."""
    return bool((value.float() - expected.float()).norm() <= tolerance * expected.float().norm())
