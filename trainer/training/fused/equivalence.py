"""Whether the quick forward pass computes what a model itself computes: asked at the start of every run.

In bfloat16 two right computations of one gradient may differ by as much as the gradient. So a copy of the model's
first and last layer, with embedding and head, computes loss and gradients both ways in float32, where they must
agree to three digits. The kernel for attention, another one on a GPU, is compared for itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainer.training.fused.attention import attend
from trainer.training.fused.attention_layout import Heads, RotaryTables
from trainer.training.fused.segments import Segments
from trainer.training.token_store import Batch

LENGTHS: Final = (4, 7, 7)
_PREDICTING: Final = (1, 2, 5, 8, 9, 12, 15, 16)
_TOLERANCE: Final = 1e-3
_ATTENTION_TOLERANCE: Final = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}

Way = Callable[[Any, Batch], Tensor]
"""Loss of a model on a batch."""


def agrees(model: Any, plain: Way, quick: Way) -> bool:
    """Whether both ways give the same loss and the same gradients.

    Args:
        model: PEFT model with layers in a list, as the Llama family has them; it stays as it is.
        plain: what the model itself computes.
        quick: what is to be proved.
    """
    small = _excerpt(model)
    parameters = [parameter for parameter in small.parameters() if parameter.requires_grad]
    _make_updates_matter(parameters)
    batch = _batch()
    expected = _with_gradient(plain(small, batch), parameters)
    found = _with_gradient(quick(small, batch), parameters)
    return _near(found[0], expected[0], _TOLERANCE) and _near(found[1], expected[1], _TOLERANCE)


def attention_agrees(heads: Heads, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether attention over rows behind one another is attention over each row, going forward and backward."""
    generator = torch.Generator(device).manual_seed(1)
    qkv = torch.randn(sum(LENGTHS), heads.total, heads.width, generator=generator, device=device).to(dtype)
    qkv.requires_grad_(True)
    tables = _tables(qkv)
    results = []
    for way in (attend, _row_by_row):
        result = way(qkv.clone(), heads, _segments(device), tables)
        (gradient,) = torch.autograd.grad(result.float().square().sum(), qkv)
        results.append((result, gradient))
    return all(_near(one, other, _ATTENTION_TOLERANCE[dtype]) for one, other in zip(*results, strict=True))


def _tables(qkv: Tensor) -> RotaryTables:
    """Some angle for each token and pair of numbers."""
    count = len(qkv) * qkv.shape[2] // 2
    angles = torch.arange(count, device=qkv.device).view(len(qkv), 1, -1)
    return angles.cos().to(qkv.dtype), angles.sin().to(qkv.dtype)


def _row_by_row(qkv: Tensor, heads: Heads, segments: Segments, tables: RotaryTables) -> Tensor:
    rows = []
    turned, values = torch.split(qkv, [heads.query + heads.key, heads.key], dim=1)
    (first, second), (cos, sin) = turned.chunk(2, dim=2), tables
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=2)
    for row in torch.split(torch.cat([turned, values], dim=1), list(segments.lengths)):
        query, key, value = torch.split(row.transpose(0, 1), [heads.query, heads.key, heads.key])
        key, value = (part.repeat_interleave(heads.query // heads.key, 0) for part in (key, value))
        scores = (query @ key.transpose(1, 2)).float() * heads.scale
        future = torch.ones_like(scores, dtype=torch.bool).triu_(1)
        weights = torch.softmax(scores.masked_fill(future, -torch.inf), -1).to(value.dtype)
        rows.append((weights @ value).transpose(0, 1).flatten(1))
    return torch.cat(rows)


def _excerpt(model: Any) -> Any:
    """A copy on the CPU, in float32, of the first and the last layer with all that is around them."""
    decoder = model.get_base_model().base_model
    layers = decoder.layers
    decoder.layers = nn.ModuleList([layers[0], layers[-1]] if len(layers) > 1 else list(layers))
    try:
        small = copy.deepcopy(model)
    finally:
        decoder.layers = layers
    return small.to(device="cpu", dtype=torch.float32).eval()


@torch.no_grad()
def _make_updates_matter(parameters: list[nn.Parameter]) -> None:
    """A fresh adapter does nothing: B is zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def _segments(device: torch.device) -> Segments:
    bounds = [sum(LENGTHS[:number]) for number in range(len(LENGTHS) + 1)]
    return Segments(LENGTHS, torch.tensor(bounds, dtype=torch.int32, device=device))


def _batch() -> Batch:
    ids = torch.arange(1, sum(LENGTHS) + 1, dtype=torch.int32)
    positions = torch.cat([torch.arange(length, dtype=torch.int32) for length in LENGTHS])
    predicting = torch.tensor(_PREDICTING, dtype=torch.int32)
    targets = ids[predicting + 1].to(torch.int64)
    return Batch(ids, positions, _segments(ids.device), predicting, targets)


def _with_gradient(loss: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    gradients = torch.autograd.grad(loss, parameters)
    return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def _near(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((found.float() - expected.float()).norm() <= tolerance * expected.float().norm())
