"""Every way to the loss gives what the model itself gives, row by row; and which way is taken when."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trainer.data.examples.example import Example
from trainer.spec import LoraSection
from trainer.training.adapter import attach_adapter
from trainer.training.engines.base import Precision
from trainer.training.evaluation import Evaluation
from trainer.training.fused import decoder as decoder_module
from trainer.training.fused import fused_pass as fused_pass_module
from trainer.training.fused.prefix_sharing import common_prefix_length, share_prefix
from trainer.training.loss import CausalLoss
from trainer.training.token_store import single_batch

CPU = Precision(torch.device("cpu"), torch.float32, autocast=False)
SIZES: dict[str, Any] = {
    "vocab_size": 600, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip


def example(length: int, seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 500, (length,), generator=generator).tolist()
    return Example(
        array("i", ids), bytes([0] * (length // 2) + [1] * (length - length // 2)), stops=True
    )


EXAMPLES = tuple(example(6 + 3 * number, number) for number in range(6))
BATCH = single_batch(EXAMPLES, torch.device("cpu"))


def adapted(base: Any, **lora: Any) -> Any:
    """With an adapter that does something: a fresh one is zero."""
    torch.manual_seed(4)
    model = attach_adapter(base, LoraSection(**{"lora_r": 4, **lora}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model.eval()


def reference(model: Any) -> torch.Tensor:
    """Row by row, all logits, no padding, nothing of ours."""
    losses = []
    for item in EXAMPLES:
        ids = torch.tensor([list(item.ids)])
        logits = model(input_ids=ids).logits[0, :-1]
        every = functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        losses += [every[position - 1] for position in range(item.length) if item.trained[position]]
    return torch.stack(losses)


def gradients(loss: torch.Tensor, model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def make_loss(model: Any, **options: Any) -> CausalLoss:
    return CausalLoss(model, CPU, **{"pad_id": 0, "longest": 64, **options})


def compare(model: Any, way: str, **options: Any) -> None:
    expected = reference(model).sum()
    wanted = gradients(expected, model)
    loss = make_loss(model, **options)
    assert loss.forward_mode == way
    found = loss.total_loss(BATCH)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-4)
    got = gradients(found, model)
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        assert (
            float((gradient - wanted[name]).norm()) <= 1e-4 * float(wanted[name].norm()) + 1e-4
        ), name


KNOWN: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),  # type: ignore[no-untyped-call]
    "llama, tied, with biases": lambda: LlamaForCausalLM(  # type: ignore[no-untyped-call]
        LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)
    ),
    "llama, scaled positions": lambda: LlamaForCausalLM(  # type: ignore[no-untyped-call]
        LlamaConfig(
            **SIZES, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e3}
        )
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, head_dim=16, sliding_window=64)),  # type: ignore[no-untyped-call]
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),  # type: ignore[no-untyped-call]
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),  # type: ignore[no-untyped-call]
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_quick_way_is_the_models_own_loss_and_gradient(name: str) -> None:
    torch.manual_seed(0)
    compare(adapted(KNOWN[name]()), "fused")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "lora",
    [
        {"lora_target_modules": ("q_proj", "down_proj")},
        {"lora_target_modules": ("v_proj",), "use_rslora": True},
        {"lora_alpha": 7},
        {"lora_dropout": 0.3},
    ],
    ids=str,
)
def test_adapters_on_some_modules_only(lora: dict[str, Any], checkpointing: bool) -> None:
    torch.manual_seed(0)
    model = adapted(KNOWN["llama"](), **lora)
    compare(model, "fused", checkpointing=checkpointing)


def test_dropout_leaves_out_what_it_should() -> None:
    """The mean of many noisy gradients of B is the one without noise: what is kept is scaled up."""
    torch.manual_seed(0)
    model = adapted(KNOWN["llama"](), lora_dropout=0.2, lora_target_modules=("down_proj",))
    with torch.no_grad():  # so small that the noise hardly changes what it is measured on
        for parameter in model.parameters():
            parameter.mul_(0.05 if parameter.requires_grad else 1.0)
    loss = make_loss(model)
    quiet = gradients(loss.total_loss(BATCH), model)
    model.train()
    seen = [gradients(loss.total_loss(BATCH), model) for _ in range(200)]
    name = next(name for name in quiet if "layers.2" in name and "lora_B" in name)
    assert not torch.equal(seen[0][name], seen[1][name])
    mean = torch.stack([one[name] for one in seen]).mean(0)
    assert float((mean - quiet[name]).norm() / quiet[name].norm()) < 0.15


@pytest.mark.parametrize("size", [1, 5])
def test_a_beginning_that_rows_share_goes_through_once_and_changes_nothing(size: int) -> None:
    torch.manual_seed(0)
    model = adapted(KNOWN["llama"]())
    front = [11, 12, 13, 14, 15][:size]
    rows = [
        Example(array("i", [*front, *item.ids]), bytes(size - 1) + b"\1" + item.trained, stops=True)
        for item in EXAMPLES
    ]
    rows = [Example(row.ids, b"\0" + row.trained[1:], stops=True) for row in rows]
    batch = single_batch(rows, torch.device("cpu"))
    assert common_prefix_length(batch) == size
    assert len(share_prefix(batch, size).input_ids) == len(batch.input_ids) - size * (len(rows) - 1)
    loss = make_loss(model)
    once = gradients(total := loss.total_loss(batch), model)
    parts = [loss.total_loss(single_batch([row], torch.device("cpu"))) for row in rows]
    separate = torch.stack(parts).sum()
    torch.testing.assert_close(total.detach(), separate.detach())
    for name, gradient in gradients(separate, model).items():
        assert float((gradient - once[name]).norm()) <= 1e-4 * float(gradient.norm()) + 1e-4, name


def test_the_model_itself_still_works_after_it_was_taken_over() -> None:
    torch.manual_seed(0)
    model = adapted(KNOWN["qwen2"]())
    expected = reference(model)
    assert make_loss(model).forward_mode == "fused"
    torch.testing.assert_close(reference(model), expected)


UNKNOWN: dict[str, tuple[Any, dict[str, Any], str]] = {
    "another family": (
        lambda: Phi3ForCausalLM(Phi3Config(**SIZES, bos_token_id=1, eos_token_id=2)), {}, "selected",  # type: ignore[no-untyped-call]
    ),
    "capped logits": (
        lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0)), {}, "whole",  # type: ignore[no-untyped-call]
    ),
    "dora": (KNOWN["llama"], {"use_dora": True}, "selected"),
    "a narrow window": (lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)), {}, "selected"),  # type: ignore[no-untyped-call]
    "another activation": (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu")), {}, "selected"),  # type: ignore[no-untyped-call]
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_takes_the_plain_way(name: str) -> None:
    make, lora, way = UNKNOWN[name]
    torch.manual_seed(0)
    compare(adapted(make(), **lora), way)


def test_a_quick_way_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proof by sabotage: attention twice as sharp as the model's."""
    torch.manual_seed(0)
    read_heads = decoder_module.read_heads

    class Wrong(decoder_module.FusedDecoder):
        def __init__(self, causal: Any, *args: Any, **named: Any) -> None:
            for layer in causal.base_model.layers:
                layer.self_attn.scaling *= 2
            super().__init__(causal, *args, **named)

    monkeypatch.setattr(fused_pass_module, "FusedDecoder", Wrong)
    model = adapted(KNOWN["llama"]())
    before = read_heads(model.get_base_model())
    compare(model, "selected")
    assert read_heads(model.get_base_model()) == before


@pytest.mark.parametrize("fused", [True, False])
def test_what_stands_in_the_padding_changes_nothing(tiny_model: Path, fused: bool) -> None:
    model = adapted(AutoModelForCausalLM.from_pretrained(tiny_model))
    sums = [make_loss(model, pad_id=pad, fused=fused).total_loss(BATCH).item() for pad in (0, 77)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)


def test_mean_loss_weighs_every_token_alike(tiny_model: Path) -> None:
    model = adapted(AutoModelForCausalLM.from_pretrained(tiny_model))
    expected = reference(model).mean().item()
    for rows in (1, 3, 10):
        evaluation = Evaluation(EXAMPLES, make_loss(model), rows=rows, device=CPU.device)
        assert evaluation.loss() == pytest.approx(expected, rel=1e-5)
    assert Evaluation((), make_loss(model), rows=1, device=CPU.device).loss() is None


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_in_bfloat16_it_is_as_near_to_the_truth_as_the_plain_way(weights: torch.dtype) -> None:
    precision = Precision(torch.device("cpu"), weights, autocast=True)

    def made(dtype: torch.dtype) -> Any:
        torch.manual_seed(0)
        base = KNOWN["llama"]().to(torch.bfloat16)  # values that both can hold
        return adapted(base.to(dtype))

    truth_model = made(torch.float32)
    truth = gradients(reference(truth_model).sum(), truth_model)
    off = {}
    for fused in (True, False):
        model = made(weights)
        loss = CausalLoss(model, precision, pad_id=0, longest=64, fused=fused)
        assert (loss.forward_mode == "fused") is fused
        found = gradients(loss.total_loss(BATCH), model)
        off[fused] = sum(float((found[name] - truth[name]).square().sum()) for name in truth) ** 0.5
    assert off[True] <= 1.2 * off[False]


def test_an_error_during_an_evaluation_leaves_the_model_in_training() -> None:
    model = adapted(KNOWN["llama"]()).train()
    loss = make_loss(model, fused=False)
    with pytest.raises(RuntimeError, match="on purpose"), loss.evaluating():
        raise RuntimeError("on purpose")
    assert model.training


@pytest.mark.parametrize("fused", [True, False])
def test_noise_on_embeddings_while_training_only(tiny_model: Path, fused: bool) -> None:
    model = adapted(AutoModelForCausalLM.from_pretrained(tiny_model))
    quiet = make_loss(model, fused=fused).total_loss(BATCH)
    noisy = make_loss(model, fused=fused, neftune_alpha=5.0)
    assert noisy.total_loss(BATCH).item() == pytest.approx(quiet.item(), rel=1e-6)
    model.train()
    assert noisy.total_loss(BATCH).item() != pytest.approx(quiet.item(), rel=1e-4)
