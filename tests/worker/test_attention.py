"""Attention over rows behind one another is attention over each row, in both of the CPU's forms."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from trainer.worker import attention_cpu
from trainer.worker.attention import attend
from trainer.worker.attention_cpu import Heads
from trainer.worker.segments import Segments


def segments(*lengths: int) -> Segments:
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return Segments(lengths, bounds)


def each_row(qkv: torch.Tensor, heads: Heads, rows: Segments) -> torch.Tensor:
    out = []
    for row in torch.split(qkv, list(rows.lengths)):
        parts = torch.split(row.transpose(0, 1), [heads.query, heads.key, heads.key])
        query, key, value = (part.repeat_interleave(heads.query // part.shape[0], 0) for part in parts)
        out.append(functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=heads.scale))
    return torch.cat([row.transpose(0, 1).flatten(1) for row in out])


@pytest.mark.parametrize("short", [512, 6, 0])
@pytest.mark.parametrize("heads", [Heads(4, 2, 8, 0.3), Heads(2, 2, 8, 8**-0.5), Heads(3, 1, 16, 0.25)])
def test_attention_is_the_one_of_each_row(heads: Heads, short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_cpu, "SHORT", short)
    torch.manual_seed(0)
    rows = segments(1, 5, 5, 9, 9, 9, 2)
    results = []
    start = torch.randn(40, heads.total, heads.width)
    for way in (attend, each_row):
        qkv = start.clone().requires_grad_()
        result = way(qkv, heads, rows)
        result.square().sum().backward()  # type: ignore[no-untyped-call]
        results.append((result.detach(), qkv.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_no_row_sees_another() -> None:
    torch.manual_seed(0)
    heads, rows = Heads(2, 1, 8, 0.35), segments(6, 6, 3)
    qkv = torch.randn(15, heads.total, heads.width)
    before = attend(qkv, heads, rows)
    qkv[:6] += 100.0
    after = attend(qkv, heads, rows)
    assert torch.equal(before[6:], after[6:])
    assert not torch.equal(before[:6], after[:6])


def test_rows_of_like_length_go_together() -> None:
    runs = segments(3, 3, 50, 55, 3).runs
    assert [(run.tokens, run.rows, run.index is None) for run in runs] == [
        (slice(0, 6), 2, True),
        (slice(6, 111), 2, False),
        (slice(111, 114), 1, True),
    ]
    assert runs[1].index is not None
    assert len(runs[1].index) == 110


def test_a_shared_beginning_is_as_if_every_row_had_it() -> None:
    torch.manual_seed(0)
    heads, alone = Heads(4, 2, 8, 0.3), segments(7, 7, 9, 5)
    front, rests = (
        torch.randn(3, heads.total, heads.width),
        [torch.randn(n, heads.total, heads.width) for n in (4, 4, 6, 2)],
    )
    bounds = torch.tensor([3, 7, 11, 17, 19], dtype=torch.int32)
    together = Segments((4, 4, 6, 2), bounds, shared=3)
    front.requires_grad_()
    one = attend(torch.cat([front, *rests]), heads, together)
    weight = torch.randn(one.shape)
    (got,) = torch.autograd.grad((one * weight)[3:].sum(), front)
    many = attend(torch.cat([part for rest in rests for part in (front, rest)]), heads, alone)
    kept = torch.cat([row[3:] for row in torch.split(many, [7, 7, 9, 5])])
    torch.testing.assert_close(one[3:], kept)
    torch.testing.assert_close(one[:3], many[:3])
    (wanted,) = torch.autograd.grad((kept * weight[3:]).sum(), front)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
