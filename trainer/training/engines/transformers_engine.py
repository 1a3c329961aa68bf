"""The engine `transformers`: transformers and PEFT, on CPU or GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.errors import ErrorCode, JobError
from trainer.spec import JobSpec
from trainer.training.adapter import attach_adapter
from trainer.training.engines.base import Loader, Precision
from trainer.training.out_of_memory import raise_if_out_of_memory


class TransformersLoader(Loader):
    """Loads with `AutoModelForCausalLM` and attaches the adapter with PEFT."""

    name = "transformers"
    allows_fused = True
    allows_processes = True
    allows_compilation = True

    @classmethod
    def is_available(cls) -> bool:
        """Returns True: it runs on every machine."""
        return True

    def load(self, model_dir: Path, spec: JobSpec, precision: Precision) -> Any:
        """Loads the base model and attaches a fresh adapter; the interface is `Loader.load`.

        Raises:
            JobError: `MODEL_INVALID` or `OUT_OF_MEMORY`.
        """
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 -- after the choice of the engine

        try:
            # No network, no code from the model's author, no pickle.
            model: Any = AutoModelForCausalLM.from_pretrained(
                model_dir,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=precision.weights,
                attn_implementation=spec.model.attn_implementation,
                quantization_config=_quantization(spec, precision),
                device_map={"": precision.device} if precision.device.type == "cuda" else None,
            )
        except Exception as error:  # a damaged file can make the libraries raise anything
            raise_if_out_of_memory(error)
            raise JobError(
                ErrorCode.MODEL_INVALID, f"the base model cannot be loaded ({type(error).__name__})"
            ) from error
        # Keys and values of earlier tokens are for generation; in training they would only take memory.
        model.config.use_cache = False
        if spec.train.gradient_checkpointing:
            # The reentrant form needs an input that requires gradients, and the embedding is frozen.
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return attach_adapter(model, spec.lora)


def _quantization(spec: JobSpec, precision: Precision) -> Any:
    """Returns the quantization of the base weights; None without."""
    if not (spec.model.load_in_4bit or spec.model.load_in_8bit):
        return None
    from transformers import BitsAndBytesConfig  # noqa: PLC0415 -- only with a GPU

    # QLoRA's settings (arXiv 2305.14314): NormalFloat 4, with the scales of its blocks quantized as well.
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=spec.model.load_in_4bit,
        load_in_8bit=spec.model.load_in_8bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=precision.weights,
    )
