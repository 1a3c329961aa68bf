"""The engine `unsloth`: optional, for one process with a CUDA GPU.

Environment variables switch off its statistics and its look-ups on a hub, and set the directory of its generated
code. They are set before the import: see `trainer.worker.environment`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.errors import ErrorCode, JobError
from trainer.model_files.lora_targets import check_lora_names
from trainer.spec import JobSpec
from trainer.training.engines.base import Loader, Precision, missing_for_gpu, require_gpu
from trainer.training.out_of_memory import raise_if_out_of_memory
from trainer.training.placement import language_modules


class UnslothLoader(Loader):
    """Loads and attaches with unsloth's kernels.

    unsloth patches transformers and PEFT, so make this object before either is imported.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`: no GPU, no package, or unsloth does not start.
    """

    name = "unsloth"
    allows_fused = False
    allows_processes = False
    allows_compilation = False
    allows_selection = False

    def __init__(self) -> None:
        require_gpu("train.engine unsloth", "unsloth")
        try:
            from unsloth import FastLanguageModel  # noqa: PLC0415 -- an optional dependency
        except Exception as error:
            raise JobError(
                ErrorCode.ENGINE_UNAVAILABLE, f"unsloth is installed but does not start ({type(error).__name__})"
            ) from error
        self._fast_model: Any = FastLanguageModel

    @classmethod
    def is_available(cls) -> bool:
        """Returns whether there are a GPU and the package."""
        return not missing_for_gpu("unsloth")

    def load(self, model_dir: Path, spec: JobSpec, precision: Precision) -> Any:
        """Loads the base model and attaches a fresh adapter; the interface is `Loader.load`.

        Raises:
            JobError: `MODEL_INVALID` or `OUT_OF_MEMORY`.
        """
        try:
            model, _ = self._fast_model.from_pretrained(
                # A local directory under its exact name: unsloth otherwise maps names of models to those of a
                # mirror and drops the revision.
                model_name=str(model_dir.resolve()),
                use_exact_model_name=True,
                max_seq_length=spec.data.max_length,
                dtype=torch.bfloat16 if precision.autocast else precision.weights,
                load_in_4bit=spec.model.load_in_4bit,
                load_in_8bit=spec.model.load_in_8bit,
                trust_remote_code=False,
                local_files_only=True,
                # A bool, never "unsloth": that moves activations over PCIe, which is slow where the link is
                # encrypted.
                use_gradient_checkpointing=spec.train.gradient_checkpointing,
            )
            check_lora_names(spec.lora, language_modules(model).keys())
            return self._attach_adapter(model, spec)
        except JobError:
            raise
        except Exception as error:  # a damaged file can make the libraries raise anything
            raise_if_out_of_memory(error)
            raise JobError(
                ErrorCode.MODEL_INVALID, f"unsloth cannot load the base model ({type(error).__name__})"
            ) from error

    def _attach_adapter(self, model: Any, spec: JobSpec) -> Any:
        """Returns a PEFT model with a fresh adapter, as `trainer.training.adapter.attach_adapter` does."""
        lora = spec.lora
        targets = lora.lora_target_modules
        return self._fast_model.get_peft_model(
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
