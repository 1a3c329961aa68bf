"""The optional unsloth engine: everything that is particular to unsloth is in this one module.

What is closed here, each for a reason:

- a *local* directory with `use_exact_model_name`: unsloth otherwise maps names to a mirror and drops the revision;
- its statistics and hub look-ups, and where its generated code goes, are settled by `environment.QUIET` before the
  import;
- `use_gradient_checkpointing` is never "unsloth": that moves activations over PCIe, slow where it is encrypted;
- unsloth must be imported before transformers and peft; `choose_engine` imports this module first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.errors import ErrorCode, JobError
from trainer.spec import JobSpec
from trainer.training.engines.transformers_engine import Precision, raise_if_out_of_memory, require_gpu

require_gpu("train.engine unsloth", "unsloth")
try:
    from unsloth import FastLanguageModel
except Exception as error:
    raise JobError(
        ErrorCode.ENGINE_UNAVAILABLE, f"unsloth is installed but does not start ({type(error).__name__})"
    ) from error


class UnslothLoader:
    """unsloth's kernels on a CUDA GPU."""

    name = "unsloth"

    def load(self, model_dir: Path, spec: JobSpec, precision: Precision) -> Any:
        """See `trainer.training.engines.transformers_engine.Loader.load`.

        Raises:
            JobError: `MODEL_INVALID` or `OUT_OF_MEMORY`.
        """
        try:
            model = self._load_base(model_dir, spec, precision)
            return self._attach(model, spec)
        except Exception as error:  # whatever a damaged file makes the libraries raise
            raise_if_out_of_memory(error)
            raise JobError(
                ErrorCode.MODEL_INVALID, f"unsloth cannot load the base model ({type(error).__name__})"
            ) from error

    def _load_base(self, model_dir: Path, spec: JobSpec, precision: Precision) -> Any:
        model, _ = FastLanguageModel.from_pretrained(
            model_name=str(model_dir.resolve()),
            use_exact_model_name=True,
            max_seq_length=spec.data.max_length,
            dtype=torch.bfloat16 if precision.autocast else precision.weights,
            load_in_4bit=spec.model.load_in_4bit,
            load_in_8bit=spec.model.load_in_8bit,
            trust_remote_code=False,
            local_files_only=True,
            use_gradient_checkpointing=spec.train.gradient_checkpointing,
        )
        return model

    def _attach(self, model: Any, spec: JobSpec) -> Any:
        lora = spec.lora
        targets = lora.lora_target_modules
        return FastLanguageModel.get_peft_model(
            model,
            r=lora.lora_r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            use_rslora=lora.use_rslora,
            use_dora=lora.use_dora,
            init_lora_weights=lora.init_lora_weights,
            bias="none",
            use_gradient_checkpointing=spec.train.gradient_checkpointing,
            random_state=spec.train.seed,
            max_seq_length=spec.data.max_length,
            **({} if targets == "all-linear" else {"target_modules": list(targets)}),
        )
