"""The engine `transformers`: transformers and PEFT, on CPU or GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.spec import JobSpec
from trainer.training.adapter import attach_adapter
from trainer.training.engines.base import Loader, Precision
from trainer.training.engines.base_model_loading import load_base_model


class TransformersLoader(Loader):
    """Loads with `AutoModelForCausalLM` and attaches the adapter with PEFT."""

    name = "transformers"
    allows_fused = True

    def load(self, model_dir: Path, spec: JobSpec, precision: Precision) -> Any:
        """Loads the base model and attaches a fresh adapter; the interface is `Loader.load`.

        Raises:
            JobError: `MODEL_INVALID` or `OUT_OF_MEMORY`.
        """
        options: dict[str, Any] = {}
        # Left out where nothing is to be quantized: given None, transformers would also forget what config.json
        # says about quantized weights.
        if (quantization := _quantization(spec, precision)) is not None:
            options["quantization_config"] = quantization
        model = load_base_model(
            model_dir,
            dtype=precision.weights,
            attn_implementation=spec.model.attn_implementation,
            device_map={"": precision.device} if precision.device.type == "cuda" else None,
            **options,
        )
        # Keys and values of earlier tokens are for generation; in training they would only take memory.
        model.config.use_cache = False
        if spec.train.gradient_checkpointing:
            # The reentrant form needs an input that requires gradients, and the embedding is frozen.
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
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
