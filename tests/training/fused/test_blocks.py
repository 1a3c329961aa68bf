"""A layer's parts leave what they are given as it is, and the residual in its own numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.training.fused.blocks import GatedMlp, NormLinear, ResidualLinear, RmsNorm
from trainer.training.fused.lora_linear import LoraGroup, LoraUpdate

WIDTH, INNER, TOKENS, RANK = 12, 20, 7, 2


def group(inputs: int, outputs: list[int], dtype: torch.dtype) -> LoraGroup:
    bases = [nn.Linear(inputs, width, bias=False).requires_grad_(False) for width in outputs]
    updates = [
        LoraUpdate(
            nn.Parameter(torch.randn(RANK, inputs)),
            nn.Parameter(torch.randn(width, RANK)),
            1.5,
            0.0,
        )
        for width in outputs
    ]
    made = LoraGroup(bases, updates, dtype)
    for target, source in zip(*made.parameter_copies, strict=True):
        target.copy_(source)
    made.scale_copies()
    return made


@pytest.mark.parametrize(
    ("residual", "dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_parts_of_a_layer(residual: torch.dtype, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = RmsNorm(torch.rand(WIDTH), 1e-5)
    x = torch.randn(TOKENS, WIDTH).to(residual).requires_grad_()
    mixed = torch.randn(TOKENS, WIDTH).to(dtype).requires_grad_()
    qkv, out = group(WIDTH, [8, 4], dtype), group(WIDTH, [WIDTH], dtype)
    gate_up, down = group(WIDTH, [INNER, INNER], dtype), group(INNER, [WIDTH], dtype)
    before = x.detach().clone(), mixed.detach().clone()
    found = [
        NormLinear.apply(x, norm, qkv, True, *qkv.parameters),  # type: ignore[no-untyped-call]
        ResidualLinear.apply(x, mixed, out, True, *out.parameters),  # type: ignore[no-untyped-call]
        GatedMlp.apply(x, norm, gate_up, down, True, *gate_up.parameters, *down.parameters),  # type: ignore[no-untyped-call]
    ]
    weights = [torch.randn_like(one) for one in found]
    kept = [weight.clone() for weight in weights]
    torch.autograd.backward(found, weights)
    assert [one.dtype for one in found] == [dtype, residual, residual]
    assert (x.grad is not None and x.grad.dtype) == residual
    assert torch.equal(x, before[0])
    assert torch.equal(mixed, before[1])
    assert all(torch.equal(one, two) for one, two in zip(weights, kept, strict=True))
