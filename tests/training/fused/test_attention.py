"""Attention over rows behind one another is attention over each row, in both of the CPU's forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from trainer.training.fused import attention_cpu
from trainer.training.fused.attention import attend
from trainer.training.fused.attention_layout import Heads, PrefixGroup, RotaryTables
from trainer.training.fused.blocks import RotaryEmbedding
from trainer.training.fused.segments import Segments


def segments(*lengths: int) -> Segments:
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return Segments.without_prefix(lengths, bounds)


def sharing(*lengths: int, prefix: int) -> Segments:
    return Segments((PrefixGroup(0, lengths, prefix),))


def angles(rows: Segments, heads: Heads) -> torch.Tensor:
    """Of every token: (tokens, 1, half a head's width); those of a row's beginning are the same in each."""
    (group,) = rows.groups
    prefix = group.prefix_length
    place = torch.cat([torch.arange(prefix), *(prefix + torch.arange(n) for n in group.lengths)])
    return place.view(-1, 1, 1) * 0.9 ** torch.arange(1, heads.head_dim // 2 + 1)


def tables(rows: Segments, heads: Heads) -> RotaryTables:
    return angles(rows, heads).cos(), angles(rows, heads).sin()


def turned(qkv: torch.Tensor, rows: Segments, heads: Heads) -> torch.Tensor:
    """Queries and keys as complex numbers, turned by their angles."""
    keyed, values = torch.split(qkv, [heads.query + heads.key, heads.key], dim=1)
    numbers = torch.complex(*keyed.chunk(2, dim=2)) * torch.exp(1j * angles(rows, heads))
    return torch.cat([torch.cat([numbers.real, numbers.imag], dim=2), values], dim=1)


def each_row(
    qkv: torch.Tensor,
    heads: Heads,
    rows: Segments,
    _tables: RotaryTables,
    *,
    rounded: torch.dtype = torch.float32,
) -> torch.Tensor:
    out = []
    for row in torch.split(
        turned(qkv.float(), rows, heads).to(rounded), list(rows.groups[0].lengths)
    ):
        parts = torch.split(row.transpose(0, 1), [heads.query, heads.key, heads.key])
        query, key, value = (
            part.repeat_interleave(heads.query // part.shape[0], 0) for part in parts
        )
        out.append(
            functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=heads.scale
            )
        )
    return torch.cat([row.transpose(0, 1).flatten(1) for row in out])


def in_blocks(monkeypatch: pytest.MonkeyPatch, queries: int, *, kept: bool = False) -> None:
    """Treats every row as a long one, whose weights are computed for so many queries at a time."""
    monkeypatch.setattr(attention_cpu, "MAX_BATCH_TOKENS", 0)
    monkeypatch.setattr(attention_cpu, "MAX_KEPT_TOKENS", 64 if kept else 0)
    monkeypatch.setattr(attention_cpu, "QUERY_BLOCK", queries)
    # So that nine blocks of one token see 2, 4, 6, 8 or 9.
    monkeypatch.setattr(attention_cpu, "MAX_KEY_COUNTS", 5)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("block", [None, 1, 4, 64])
@pytest.mark.parametrize(
    "heads", [Heads(4, 2, 8, 0.3), Heads(2, 2, 8, 8**-0.5), Heads(3, 1, 16, 0.25)]
)
def test_attention_is_the_one_of_each_row(
    heads: Heads, block: int | None, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block:
        in_blocks(monkeypatch, block, kept=kept)
    torch.manual_seed(0)
    rows = segments(1, 5, 5, 9, 9, 9, 2)
    results = []
    start = torch.randn(40, heads.total, heads.head_dim)
    for way in (attend, each_row):
        qkv = start.clone().requires_grad_()
        result = way(qkv, heads, rows, tables(rows, heads))
        result.square().sum().backward()  # type: ignore[no-untyped-call]
        results.append((result.detach(), qkv.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_a_very_long_row_takes_neither_many_kernels_nor_much_memory() -> None:
    heads = Heads(2, 1, 8, 0.3)
    layout = segments(20_000).attention_layout(heads)
    blocks = list(attention_cpu._query_blocks(layout))
    assert len({block.end for block in blocks}) <= attention_cpu.MAX_KEY_COUNTS
    assert attention_cpu._score_buffer(layout).numel() == attention_cpu.QUERY_BLOCK * 2 * 20_000
    assert [block.tokens.stop for block in blocks][-1] == blocks[-1].end == 20_000
    assert all(block.tokens.stop <= block.end for block in blocks)


def gradient_and_saved(
    rows: Segments, heads: Heads, start: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """The gradient of q, k and v, and how many attention weights were saved for it."""
    vectors = start.shape[0] * heads.total * heads.head_dim
    sizes: list[int] = []

    def count(saved: torch.Tensor) -> torch.Tensor:
        sizes.append(saved.numel())
        return saved

    qkv = start.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
        result = attend(qkv, heads, rows, tables(rows, heads))
    result.square().sum().backward()  # type: ignore[no-untyped-call]
    assert qkv.grad is not None
    return qkv.grad, sum(sizes) - vectors


@pytest.mark.parametrize(
    "rows", [segments(40), segments(21, 40), sharing(30, 34, prefix=6)], ids=["1", "2", "prefix"]
)
def test_the_early_queries_of_a_very_long_row_keep_their_weights(
    rows: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient is bitwise the same wherever keeping ends."""
    torch.manual_seed(0)
    heads = Heads(4, 2, 8, 0.3)
    (group,) = rows.groups
    start = torch.randn(group.prefix_length + sum(group.lengths), heads.total, heads.head_dim)
    in_blocks(monkeypatch, 4)
    results = []
    for limit in (0, 17, 64):
        monkeypatch.setattr(attention_cpu, "MAX_KEPT_TOKENS", limit)
        results.append(gradient_and_saved(rows, heads, start))
    gradients, counts = zip(*results, strict=True)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    nothing, early, everything = (count - counts[0] for count in counts)
    assert nothing < early < everything


def test_a_longer_row_keeps_no_more_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks(monkeypatch, 4)
    monkeypatch.setattr(attention_cpu, "MAX_KEPT_TOKENS", 16)
    heads, counts = Heads(4, 2, 8, 0.3), []
    for length in (16, 80, 160):
        start = torch.randn(length, heads.total, heads.head_dim)
        counts.append(gradient_and_saved(segments(length), heads, start)[1])
    assert 0 < counts[0] <= 4 * 16 * 16
    # Blocks of a longer row end at rounder numbers of keys, but see no more than the limit and one step.
    assert all(counts[0] <= count <= 4 * 16 * (16 + 32) for count in counts)


def test_in_bfloat16_blocks_are_no_less_exact_than_other_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    heads, rows = Heads(4, 2, 64, 0.125), segments(90, 150)
    # Sharp: scores of up to a hundred.
    start = 3 * torch.randn(240, heads.total, heads.head_dim).bfloat16()
    weight = torch.randn(240, heads.query * heads.head_dim).bfloat16()

    def gradient(dtype: torch.dtype, way: Any = attend) -> torch.Tensor:
        qkv = start.to(dtype, copy=True).requires_grad_()
        (way(qkv, heads, rows, tables(rows, heads)) * weight).sum().backward()
        return torch.Tensor(qkv.grad).float()

    def flash(qkv: torch.Tensor, *arguments: Any) -> torch.Tensor:
        return each_row(qkv, *arguments, rounded=torch.bfloat16)

    truth = gradient(torch.float32)
    batched, torch_own = ((gradient(torch.bfloat16, way) - truth).norm() for way in (attend, flash))
    for kept, expected in ((True, batched), (False, torch_own)):
        in_blocks(monkeypatch, 32, kept=kept)
        monkeypatch.setattr(attention_cpu, "MAX_KEPT_TOKENS", 512 if kept else 0)
        assert (gradient(torch.bfloat16) - truth).norm() <= 1.05 * expected
        torch.testing.assert_close(gradient(torch.float32), truth, rtol=1e-4, atol=1e-4)


def test_a_gpu_rotates_as_a_cpu_does() -> None:
    torch.manual_seed(0)
    heads, rows = Heads(4, 2, 8, 0.3), segments(3, 5)
    start = torch.randn(8, heads.total, heads.head_dim)
    weight = torch.randn_like(start)
    results = []
    for way in ("in place", "complex"):
        qkv = start.clone().requires_grad_()
        if way == "in place":
            found = RotaryEmbedding.apply(qkv.clone(), heads.query + heads.key, tables(rows, heads))  # type: ignore[no-untyped-call]
        else:
            found = turned(qkv, rows, heads)
        (gradient,) = torch.autograd.grad((found * weight).sum(), qkv)
        results.append((found.detach(), gradient))
    torch.testing.assert_close(results[0], results[1])


def test_no_row_sees_another() -> None:
    torch.manual_seed(0)
    heads, rows = Heads(2, 1, 8, 0.35), segments(6, 6, 3)
    qkv = torch.randn(15, heads.total, heads.head_dim)
    before = attend(qkv, heads, rows, tables(rows, heads))
    qkv[:6] += 100.0
    after = attend(qkv, heads, rows, tables(rows, heads))
    assert torch.equal(before[6:], after[6:])
    assert not torch.equal(before[:6], after[:6])


def test_rows_of_like_length_go_together() -> None:
    layout = segments(3, 3, 50, 55, 3).attention_layout(Heads(4, 2, 8, 0.3))
    assert [(part.rows, part.length, part.key_length) for part in layout.rectangles] == [
        (2, 3, 3),
        (2, 55, 55),
        (1, 3, 3),
    ]
    assert len(layout.padding) == 4 * 5
    assert (layout.num_queries, layout.num_keys) == ((6 + 110 + 3) * 4, (6 + 110 + 3) * 2)


def test_a_layout_brings_every_vector_back() -> None:
    heads, rows = Heads(4, 2, 8, 0.3), sharing(4, 4, 6, 2, prefix=3)
    layout = rows.attention_layout(heads)
    vectors = torch.arange((3 + 16) * heads.total)
    assert torch.equal(vectors[layout.gather][layout.scatter], vectors)
    assert rows.attention_layout(heads) is layout
    results = torch.arange((3 + 16) * heads.query)
    assert torch.equal(results[layout.result_gradients][layout.results], results)


@pytest.mark.parametrize("block", [None, 4])
def test_groups_share_a_beginning_each(block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if block:
        in_blocks(monkeypatch, block)
    torch.manual_seed(0)
    heads = Heads(4, 2, 8, 0.3)
    parts = [sharing(4, 3, prefix=2), sharing(1, 1, 9, prefix=6)]
    places = [slice(0, 9), slice(9, 26)]
    groups = Segments((PrefixGroup(0, (4, 3), 2), PrefixGroup(9, (1, 1, 9), 6)))
    assert groups.max_seqlen == 15
    qkv = torch.randn(26, heads.total, heads.head_dim, requires_grad=True)
    weight = torch.randn(26, heads.query * heads.head_dim)
    turns = [tables(part, heads) for part in parts]
    both = torch.cat([turn[0] for turn in turns]), torch.cat([turn[1] for turn in turns])
    together = attend(qkv, heads, groups, both)
    alone = torch.cat(
        [
            attend(qkv[place], heads, part, turn)
            for place, part, turn in zip(places, parts, turns, strict=True)
        ]
    )
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(
        torch.autograd.grad((together * weight).sum(), qkv),
        torch.autograd.grad((alone * weight).sum(), qkv),
    )


@pytest.mark.parametrize("block", [None, 4])
def test_a_shared_beginning_is_as_if_every_row_had_it(
    block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block:
        in_blocks(monkeypatch, block)
    torch.manual_seed(0)
    heads, alone = Heads(4, 2, 8, 0.3), segments(7, 7, 9, 5)
    front, rests = (
        torch.randn(3, heads.total, heads.head_dim),
        [torch.randn(n, heads.total, heads.head_dim) for n in (4, 4, 6, 2)],
    )
    together = sharing(4, 4, 6, 2, prefix=3)
    front.requires_grad_()
    one = attend(torch.cat([front, *rests]), heads, together, tables(together, heads))
    weight = torch.randn(one.shape)
    (got,) = torch.autograd.grad((one * weight)[3:].sum(), front)
    many = attend(
        torch.cat([part for rest in rests for part in (front, rest)]),
        heads,
        alone,
        tables(alone, heads),
    )
    kept = torch.cat([row[3:] for row in torch.split(many, [7, 7, 9, 5])])
    torch.testing.assert_close(one[3:], kept)
    torch.testing.assert_close(one[:3], many[:3])
    (wanted,) = torch.autograd.grad((kept * weight[3:]).sum(), front)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
