"""On a GPU: a step copies nothing to the device, waits for nothing, and computes what a CPU computes."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.older_torch import accept_grouped_queries
from trainer.data.examples.example import Example
from trainer.data.examples.example_set import Dataset, RowCounts
from trainer.spec import DataSection, LoraSection, TrainSection
from trainer.training.adapter import attach_adapter
from trainer.training.engines.base import Precision
from trainer.training.fused.attention import attend
from trainer.training.fused.attention_layout import Heads
from trainer.training.fused.segments import Segments
from trainer.training.loop import Trainer
from trainer.training.loss import CausalLoss
from trainer.training.methods.method import MethodInputs, StepRows
from trainer.training.methods.registry import METHODS
from trainer.training.step_policy import PlainStepPolicy
from trainer.training.token_store import single_batch

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    # `set_sync_debug_mode` says this once; a wait is an error of its own.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

GPU = torch.device("cuda")
BF16 = Precision(GPU, torch.bfloat16, autocast=True)


@pytest.fixture(autouse=True, scope="module")
def _older_torch() -> None:
    accept_grouped_queries()


def example(length: int, seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 500, (length,), generator=generator).tolist()
    return Example(
        array("i", ids), bytes([0] * (length // 2) + [1] * (length - length // 2)), stops=True
    )


EXAMPLES = tuple(example(20 + 7 * (number % 9), number) for number in range(64))


def make_model(device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=600, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, pad_token_id=0,
    )  # fmt: skip
    base: Any = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    return attach_adapter(base.to(torch.bfloat16).to(device, dtype), LoraSection(lora_r=8))


def make_training(kind: str) -> Trainer:
    model = make_model(GPU, torch.bfloat16)
    loss = CausalLoss(model, BF16, pad_id=0, longest=100)
    assert loss.forward_mode == "fused"
    method: Any = "dpo" if kind == "pairs" else "sft"
    section = TrainSection(
        method=method, per_device_train_batch_size=4, max_steps=40, logging_steps=1000
    )
    data = Dataset(EXAMPLES, (), RowCounts(64, 0, 0, 0), ())
    packing = DataSection(packing=kind == "packed", max_length=128)
    inputs = MethodInputs(data, loss, section, GPU, data=packing, reference=loss.adapter_disabled)
    trained_by = METHODS[section.method](inputs)
    policy = PlainStepPolicy(model, trained_by, EXAMPLES, section)
    return Trainer(model, trained_by, policy, section, report=lambda _message: None)


def one_step(training: Trainer, step: StepRows) -> None:
    training.update(training.policy.compute_gradients(step, 1, ()), step)


@pytest.mark.parametrize("kind", ["rows", "packed", "pairs"])
def test_a_step_waits_for_nothing_and_copies_nothing(kind: str) -> None:
    training = make_training(kind)
    steps = training.policy.steps(0)
    for _, step in zip(range(3), steps, strict=False):  # first uses of kernels may copy
        one_step(training, step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            for _, step in zip(range(8), steps, strict=False):
                one_step(training, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    names = [event.key for event in recorded.key_averages()]
    assert any("_varlen" in name or "flash" in name.lower() for name in names)
    assert [name for name in names if "Memcpy HtoD" in name or "Memcpy DtoH" in name] == []


def test_attention_of_the_gpu_is_the_one_of_the_cpu() -> None:
    torch.manual_seed(0)
    heads = Heads(8, 2, 64, 0.125)
    lengths = (3, 70, 1, 129)
    qkv = torch.randn(sum(lengths), heads.total, heads.head_dim).to(torch.bfloat16)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    angles = torch.cat([torch.arange(length) for length in lengths]).view(-1, 1, 1) * torch.rand(32)
    tables = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
    expected = attend(qkv, heads, Segments.without_prefix(lengths, bounds), tables)
    on_gpu = tables[0].to(GPU), tables[1].to(GPU)
    found = attend(qkv.to(GPU), heads, Segments.without_prefix(lengths, bounds.to(GPU)), on_gpu)
    torch.testing.assert_close(found.cpu(), expected, rtol=3e-2, atol=3e-2)


def test_loss_is_the_one_of_the_cpu() -> None:
    found = CausalLoss(make_model(GPU, torch.bfloat16), BF16, pad_id=0, longest=100)
    exact = Precision(torch.device("cpu"), torch.float32, autocast=False)
    expected = CausalLoss(make_model(exact.device, torch.float32), exact, pad_id=0, longest=100)
    on_gpu = found.total_loss(single_batch(EXAMPLES, GPU)).item()
    assert on_gpu == pytest.approx(
        expected.total_loss(single_batch(EXAMPLES, exact.device)).item(), rel=1e-2
    )
