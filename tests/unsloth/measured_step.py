"""One optimizer step by an engine: its losses and its gradients.

As a program, `python -m tests.unsloth.measured_step models FOLDER`, then `reference FOLDER`, it makes the models
and measures the engine `transformers` in a process that unsloth has not patched.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import torch

from trainer.spec import JobSpec

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-two-layers": {"num_hidden_layers": 2, "tie_word_embeddings": False},
    "llama-biases": {"attention_bias": True, "mlp_bias": True},
    "llama-llama3": {
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    },
    "mistral": {},
    "mistral-window": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {},
}  # fmt: skip
"""Name of a tiny model, which begins with its architecture → what its configuration has besides."""

CASES: dict[str, dict[str, Any]] = {
    "sft": {},
    "checkpointing": {"train": {"gradient_checkpointing": True}},
    "packing": {"data": {"packing": True, "max_length": 64}},
    "rslora": {"lora": {"use_rslora": True}},
    "dora": {"lora": {"use_dora": True}},
    "some-modules": {"lora": {"lora_target_modules": ["q_proj", "v_proj", "down_proj"]}},
    "pissa": {"lora": {"init_lora_weights": "pissa"}},
    "dropout": {"lora": {"lora_dropout": 0.3}, "train": {"gradient_checkpointing": True}},
    "noise": {"train": {"neftune_noise_alpha": 5.0}},
    "dpo": {"train": {"method": "dpo"}},
    "orpo": {"train": {"method": "orpo"}},
    "kto": {"train": {"method": "kto"}},
    **{name: {"architecture": name} for name in MODELS if name != "llama"},
}
"""Name → sections of the job spec, and the model where it is not `llama`."""

ROUNDED: dict[str, dict[str, Any]] = {
    **{name: CASES[name] for name in ("sft", "dropout", "dpo", "orpo", "kto")},
    "float32-weights": {"model": {"dtype": "float32"}},
    "no-autocast": {"train": {"bf16": False}},
}
"""Cases that are computed in bfloat16 as well."""

DATA: dict[str, dict[str, Any]] = {
    "sft": {"format": "prompt_completion"},
    "dpo": {"format": "preference"},
    "orpo": {"format": "preference"},
    "kto": {"format": "unpaired_preference"},
}


def rows(method: str) -> list[dict[str, Any]]:
    """Six short rows of the kind that a method takes: the interpreter's time grows with tokens, not widths."""
    texts = [(f"What is {n}?" + "!" * n, f"It is {n}" + "." * (n % 3)) for n in range(6)]
    if method == "sft":
        return [{"prompt": prompt, "completion": answer} for prompt, answer in texts]
    if method == "kto":
        return [
            {"prompt": prompt, "completion": answer, "label": n % 2 > 0}
            for n, (prompt, answer) in enumerate(texts)
        ]
    return [
        {"prompt": prompt, "chosen": answer, "rejected": answer[::-1]} for prompt, answer in texts
    ]


def make_spec(case: str, engine: str, *, exact: bool = False) -> JobSpec:
    """The job spec of a case; `exact` has it computed in float32."""
    sections = {
        name: leaves for name, leaves in (CASES | ROUNDED)[case].items() if name != "architecture"
    }
    method = sections.get("train", {}).get("method", "sft")
    document: dict[str, dict[str, Any]] = {
        "model": {
            "model_name_or_path": "./models/tiny",
            "model_file_sha256": {"config.json": "0" * 64, "model.safetensors": "0" * 64},
            "dtype": "bfloat16",
        },
        "lora": {"lora_r": 4, "lora_alpha": 8},
        "data": {"max_length": 128, "test_split_size": 0.5, **DATA[method]},
        "train": {
            "learning_rate": 0.01,
            "max_steps": 1,
            "per_device_train_batch_size": 2,
            "engine": engine,
        },
    }
    for name, leaves in sections.items():
        document[name] |= leaves
    if exact:
        document["model"]["dtype"], document["train"]["bf16"] = "float32", False
    return JobSpec.model_validate_json(json.dumps({"version": 1, **document}))


def measure(loader: Any, spec: JobSpec, model_dir: Path, output: Path) -> dict[str, Any]:
    """Prepares, loads and makes one step as a run does; the adapter is not fresh, so all of it has gradients."""
    from trainer.data.examples.example_set import row_schema
    from trainer.data.rows import read_files
    from trainer.training.methods.method import MethodInputs
    from trainer.training.methods.registry import METHODS
    from trainer.training.run import seed
    from trainer.training.run_inputs import RunInputs
    from trainer.training.stages.load import load, trained_parameters
    from trainer.training.stages.prepare import prepare
    from trainer.training.stages.run_context import RunContext
    from trainer.training.step_policy import PlainStepPolicy
    from trainer.training.stopwatch import Stopwatch

    output.mkdir(exist_ok=True)
    data_file = output / "rows.jsonl"
    data_file.write_text("".join(json.dumps(row) + "\n" for row in rows(spec.train.method)))
    inputs, context = (
        RunInputs(spec, model_dir, output),
        RunContext(lambda _event: None, Stopwatch()),
    )
    seed(spec.train.seed)
    data = prepare(
        inputs,
        read_files({"rows.jsonl": data_file}, max_rows=100, schema=row_schema(spec.data)),
        context,
    )
    loaded = load(inputs, data, loader, context)
    disturb(loaded.model)
    method = METHODS[spec.train.method](
        MethodInputs(
            data.dataset, loaded.loss, spec.train, loaded.precision.device, data=spec.data,
            reference=loaded.loss.adapter_disabled,
        )
    )  # fmt: skip
    policy = PlainStepPolicy(loaded.model, method, data.dataset.train, spec.train)
    loaded.model.train()
    torch.manual_seed(3)  # dropout and noise
    sums = policy.compute_gradients(next(iter(policy.steps(0))), 1, ())
    return {
        "loss": float(sums[0]),
        "held_out": method.evaluation.loss(),
        "gradients": {name: p.grad.float() for name, p in trained_parameters(loaded.model).items()},
        "mode": loaded.loss.forward_mode,
    }


def disturb(model: Any) -> None:
    """Gives every trained parameter a value that depends on its name alone."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                noise = torch.empty(parameter.shape).normal_(generator=generator)
                parameter.copy_(
                    parameter * (1 + 0.1 * noise) if "magnitude" in name else 0.1 * noise
                )


def make_models(folder: Path) -> None:
    """Writes a tiny model of each architecture, with the tokenizer that is in `folder`."""
    import transformers

    configs: Any = transformers.CONFIG_MAPPING
    causal: Any = transformers.AutoModelForCausalLM
    for name, changes in MODELS.items():
        torch.manual_seed(1)
        config = configs[name.partition("-")[0]](**{
            "vocab_size": 600, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
            "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True, "initializer_range": 0.1,
            **changes,
        })  # fmt: skip
        model = causal.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # biases would be 0, weights of norms 1
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
        shutil.copytree(folder / "tokenizer", folder / name, dirs_exist_ok=True)


def model_name(case: str) -> str:
    """Returns the name of a case's model."""
    return str(CASES.get(case, {}).get("architecture", "llama"))


def measure_reference(folder: Path) -> None:
    """Measures every case in float32, and those of `ROUNDED` in bfloat16, with transformers' own forward pass."""
    from trainer.training.engines.transformers_engine import TransformersLoader

    torch.set_num_threads(1)
    loader = TransformersLoader()
    loader.allows_fused = False
    found = {}
    for case in CASES | ROUNDED:
        for exact in (True, False) if case in ROUNDED else (True,):
            spec = make_spec(case, "transformers", exact=exact)
            found[case, exact] = measure(loader, spec, folder / model_name(case), folder)
    torch.save(found, folder / "reference.pt")


if __name__ == "__main__":
    {"models": make_models, "reference": measure_reference}[sys.argv[1]](Path(sys.argv[2]))
