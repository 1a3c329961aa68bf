"""Training that starts from an earlier adapter: what is loaded, what it is compared with, and what comes of it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.training.local_runs import Runs, same
from trainer.encoding import sha256_hex
from trainer.errors import DataError
from trainer.model_files.safetensors_header import add_metadata
from trainer.model_files.start_adapter import (
    StartAdapter,
    base_metadata,
    check_start_adapter,
    take_start_adapter,
)
from trainer.provider import find_data_files
from trainer.spec import JobSpec
from trainer.training.adapter import attach_adapter, save_adapter
from trainer.training.adapter_loading import load_start_adapter
from trainer.training.engines.base_model_loading import check_model_dir

IDS = torch.tensor([[5, 17, 9, 23, 4, 60]])

MakeSpec = Callable[..., JobSpec]


def files(adapter: Path) -> StartAdapter:
    return StartAdapter(adapter / "adapter_config.json", adapter / "adapter_model.safetensors")


def attach(base: Any, spec: JobSpec, number: int) -> Any:
    """A PEFT model with an adapter that does something, another one for each number."""
    torch.manual_seed(number)
    model = attach_adapter(base, spec.lora).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def qwen_moe(_model_dir: Path) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "moe_intermediate_size": 8,
    }
    layers: dict[str, Any] = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    return cast("Any", Qwen3MoeForCausalLM)(
        Qwen3MoeConfig(**sizes, **layers, num_experts=4, num_experts_per_tok=2)
    )


def gpt2(_model_dir: Path) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 32,
    }
    return cast("Any", GPT2LMHeadModel)(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def llama(model_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_dir)


ROUND_TRIPS: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "linear modules": (llama, {}),
    "rsLoRA": (llama, {"use_rslora": True}),
    "DoRA": (llama, {"use_dora": True, "lora_target_modules": ["q_proj", "v_proj"]}),
    "a tied embedding": (llama, {"lora_target_modules": ["embed_tokens", "q_proj"]}),
    "embedding and head": (llama, {"lora_target_modules": ["embed_tokens", "lm_head"]}),
    "an embedding in full": (llama, {"modules_to_save": ["embed_tokens"]}),
    "a head in full": (llama, {"modules_to_save": ["lm_head"]}),
    "excluded modules": (llama, {"exclude_modules": ["down_proj"]}),
    "experts": (qwen_moe, {}),
    "transposed weights": (gpt2, {}),
}


@pytest.mark.parametrize("case", ROUND_TRIPS)
@pytest.mark.filterwarnings("ignore")
def test_a_saved_adapter_is_accepted_as_it_lies_and_comes_back_bit_by_bit(
    case: str, tiny_model: Path, tmp_path: Path, make_spec: MakeSpec
) -> None:
    make, lora = ROUND_TRIPS[case]
    spec = make_spec(lora={**lora, "start_from": "adapter"})
    made = attach(make(tiny_model), spec, 1)
    save_adapter(made, spec.model, tmp_path / "first")
    base = check_model_dir(tiny_model, spec) if make is llama else None
    torch.manual_seed(0)
    started = attach(make(tiny_model), spec, 2)
    if make is not llama:  # the same base model
        for name, parameter in started.named_parameters():
            parameter.data.copy_(
                made.get_parameter(name).data if "lora" not in name else parameter.data
            )
    assert not torch.equal(started(IDS).logits, made(IDS).logits)
    load_start_adapter(started, check_start_adapter(files(tmp_path / "first"), spec, base))
    assert torch.equal(started(IDS).logits, made(IDS).logits)
    save_adapter(started, spec.model, tmp_path / "second")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert all(
        value.dtype is torch.float32 for value in started.parameters() if value.requires_grad
    )


def rewritten(
    adapter: Path, spec: JobSpec, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")
    add_metadata(adapter / "adapter_model.safetensors", base_metadata(spec.model))


@pytest.mark.filterwarnings("ignore")
def test_sixteen_bits_become_thirty_two(
    tiny_model: Path, tmp_path: Path, make_spec: MakeSpec
) -> None:
    spec = make_spec(lora={"start_from": "adapter"})
    save_adapter(attach(llama(tiny_model), spec, 1), spec.model, tmp_path / "first")
    rewritten(
        tmp_path / "first",
        spec,
        lambda found: found.update({k: v.bfloat16() for k, v in found.items()}),
    )
    started = attach(llama(tiny_model), spec, 2)
    load_start_adapter(started, check_start_adapter(files(tmp_path / "first"), spec, None))
    assert all(
        value.dtype is torch.float32 for value in started.parameters() if value.requires_grad
    )


def two_matrices(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.lm_head.weight"] = tensors["base_model.model.lm_head.weight"] + 1


def another_layer(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update(
        {name.replace("layers.0.", "layers.77."): value + 0 for name, value in tensors.items()}
    )


def one_layer_less(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "layers.1." in name]:
        del tensors[name]


def a_wider_layer(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if name.endswith("q_proj.lora_A.weight"))
    tensors[name] = torch.zeros(tensors[name].shape[0], tensors[name].shape[1] + 1)


@pytest.mark.parametrize("change", [two_matrices, another_layer, one_layer_less, a_wider_layer])
@pytest.mark.filterwarnings("ignore")
def test_what_no_header_shows_is_compared_with_the_model_in_memory(
    change: Callable[[dict[str, torch.Tensor]], None],
    tiny_model: Path,
    tmp_path: Path,
    make_spec: MakeSpec,
) -> None:
    """Here without the base model's files, as for an architecture whose names of tensors are not known."""
    spec = make_spec(lora={"modules_to_save": ["embed_tokens"], "start_from": "adapter"})
    save_adapter(attach(llama(tiny_model), spec, 1), spec.model, tmp_path / "first")
    rewritten(tmp_path / "first", spec, change)
    checked = check_start_adapter(files(tmp_path / "first"), spec, None)
    started = attach(llama(tiny_model), spec, 2)
    with pytest.raises(DataError, match=r"adapter_model\.safetensors"):
        load_start_adapter(started, checked)


MakeRuns = Callable[..., Runs]


def test_a_later_job_goes_on_where_the_earlier_one_ended(tmp_path: Path, runs: MakeRuns) -> None:
    train = {"max_steps": 2}
    first = runs(train=train)()
    later = runs(
        lora={"start_from": "adapter"},
        train=train,
        output={"samples": 1, "sample_max_new_tokens": 4, "merged_16bit": True},
    )
    # As `open` leaves it: with model card, tokenizer and template beside the two files.
    (tmp_path / "rows.csv").touch()
    sent = find_data_files([tmp_path / "rows.csv"], first.output / "adapter")
    assert take_start_adapter(sent, later.spec)[1] == files(first.output / "adapter")
    later.adapter = first.output / "adapter"
    second = later()
    assert first.summary is not None
    assert second.summary is not None
    assert second.summary.eval_loss_before == first.summary.eval_loss_after
    assert second.adapter != first.adapter
    answers = [
        json.loads((went.output / "report" / "samples.json").read_text())
        for went in (first, second)
    ]
    assert answers[0][0]["after"] == answers[1][0]["before"]
    digest = sha256_hex(first.adapter)
    assert second.summary.adapter["start adapter (SHA-256)"] == digest
    for name in ("adapter/README.md", "report/report.html"):
        assert digest in (second.output / name).read_text()
    merged = AutoModelForCausalLM.from_pretrained(second.output / "merged", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(llama(later.model), second.output / "adapter")
    trained = adapted.eval()(IDS).logits
    with adapted.disable_adapter():
        untrained = adapted(IDS).logits
    assert (merged(IDS).logits - trained).abs().mean() < 0.05 * (
        untrained - trained
    ).abs().mean()  # 16 bits
    # A third one, from the second: its metadata name the base model again.
    check_start_adapter(files(second.output / "adapter"), later.spec, None)


def start_from(later: Runs, folder: Path) -> None:
    """Makes an earlier adapter and has the runs start from it."""
    with warnings.catch_warnings(action="ignore"):
        save_adapter(attach(llama(later.model), later.spec, 1), later.spec.model, folder)
    later.adapter = folder


@pytest.mark.parametrize("lora", [{}, {"modules_to_save": ["embed_tokens"]}])
def test_a_resumed_run_goes_on_from_its_checkpoint_and_not_from_the_adapter(
    lora: dict[str, Any], tmp_path: Path, runs: MakeRuns
) -> None:
    later = runs(lora={**lora, "start_from": "adapter"}, train={"max_steps": 2})
    start_from(later, tmp_path / "earlier")
    same(later(later.stopped_after(1)), later())


def preference_lines(count: int) -> str:
    rows = [
        {"prompt": f"What is {n}?", "chosen": f"The number {n}.", "rejected": f"I don't know {n}."}
        for n in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def label_lines(count: int) -> str:
    rows = [
        {"prompt": f"What is {n}?", "completion": f"The number {n}.", "label": n % 3 > 0}
        for n in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(("method", "lines"), [("dpo", preference_lines), ("kto", label_lines)])
def test_the_reference_is_the_model_that_training_starts_from(
    method: str, lines: Callable[[int], str], tmp_path: Path, runs: MakeRuns
) -> None:
    """Every reward is zero before the first step: under the bare base model as reference it would not be."""
    path = tmp_path / "answers.jsonl"
    path.write_text(lines(24))
    later = runs(path, lora={"start_from": "adapter"}, train={"max_steps": 2, "method": method})
    start_from(later, tmp_path / "earlier")
    resumed = later(later.stopped_after(1))
    assert resumed.summary is not None
    # DPO: -log sigmoid(0). KTO: 1 - sigmoid(0), of desirable and undesirable answers alike.
    expected = math.log(2) if method == "dpo" else 0.5
    assert resumed.summary.eval_loss_before == pytest.approx(expected, abs=1e-6)
    if method == "dpo":
        same(resumed, later())


def test_a_run_whose_spec_names_an_adapter_does_not_begin_without_it(runs: MakeRuns) -> None:
    with pytest.raises(AssertionError, match="go together"):
        runs(lora={"start_from": "adapter"})()
