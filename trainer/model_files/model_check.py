"""Judges the files of a base model before a library opens them: kinds of files, configuration, weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainer.data.examples.model_config import read_config
from trainer.errors import ErrorCode, JobError
from trainer.model_files.completeness import require_whole, text_config
from trainer.model_files.known_layers import LAYER_MODULES
from trainer.model_files.lora_targets import check_lora_names, language_modules
from trainer.model_files.tensor_listing import TensorListing, list_tensors
from trainer.spec import JobSpec

_EXECUTABLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".so")
"""Pickles and code: opening such a file can run what its author wrote, in the process that sees the dataset."""

_ADAPTER_CONFIG: Final = "adapter_config.json"
_QUANTIZATION_KEYS: Final = ("quantization_config", "compression_config")


@dataclass(frozen=True)
class ModelFiles:
    """What the files of a base model say.

    Attributes:
        config: config.json.
        tensors: names and shapes of its tensors; None where neither an index nor a weight file is here.
    """

    config: Mapping[str, Any]
    tensors: TensorListing | None


def check_model_files(model_dir: Path, names: Collection[str], spec: JobSpec) -> ModelFiles:
    """Refuses a base model that cannot be loaded safely and completely, or lacks modules of section `lora`.

    Args:
        model_dir: the base model's directory; on a provider's machine weight files may be missing from it.
        names: the files that the base model has.
        spec: the job spec.

    Raises:
        JobError: `MODEL_INVALID`.
    """
    # The spec pins the files' hashes, but a provider may pin what a stranger published. Pickles and code would run
    # in the process that sees the dataset.
    executable = sorted(name for name in names if name.endswith(_EXECUTABLE_SUFFIXES))
    if executable or not any(name.endswith(".safetensors") for name in names):
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the base model's files",
            expected="safetensors weights, and neither pickles nor code",
            found=executable[0] if executable else "no .safetensors file",
        )
    config = read_config(model_dir)
    _require_own_weights(config, names)
    _require_known_quantization(config, spec)
    tensors = list_tensors(model_dir, names)
    if tensors is not None:
        require_whole(config, tensors)
        # Of others, modules may have other names.
        if text_config(config).get("model_type") in LAYER_MODULES:
            check_lora_names(spec.lora, language_modules(tensors))
    return ModelFiles(config, tensors)


def _require_own_weights(config: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuses what leads transformers to other weights than those that are judged."""
    if "transformers_weights" in config:
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the base model's config.json names its weights",
            expected="weights under the usual names",
            found="transformers_weights",
        )
    if _ADAPTER_CONFIG in names:  # transformers would load the model that it names, and the adapter
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the base model's files",
            expected="a complete model",
            found=f"an adapter ({_ADAPTER_CONFIG})",
            hint="merge the adapter into its base model first",
        )


def quantizations(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields scheme and settings of each quantization that a config.json declares."""
    for part in (config, text_config(config)):
        for key in _QUANTIZATION_KEYS:
            settings = part.get(key)
            if settings:
                declared = settings if isinstance(settings, dict) else {}
                bits = declared.get("load_in_4bit") or declared.get("load_in_8bit")
                yield (
                    str(declared.get("quant_method", "bitsandbytes" if bits else "unknown")),
                    declared,
                )


def _require_known_quantization(config: Mapping[str, Any], spec: JobSpec) -> None:
    """Requires weights that are not quantized, or quantized by bitsandbytes as the job spec says."""
    for scheme, settings in quantizations(config):
        if scheme != "bitsandbytes":
            raise JobError(
                ErrorCode.MODEL_INVALID,
                "the base model is quantized by a scheme that is not supported",
                expected="16 or 32 bits, or bitsandbytes",
                found=scheme,
                hint="choose the base model that it was quantized from; model.load_in_4bit quantizes it",
            )
        bits = "load_in_4bit" if settings.get("load_in_4bit") else "load_in_8bit"
        if not getattr(spec.model, bits):
            raise JobError(
                ErrorCode.MODEL_INVALID,
                "the base model is quantized already",
                expected=f"model.{bits}: true",
                found="false",
                hint=f"set model.{bits}, or choose the base model that it was quantized from",
            )
        if spec.output.merged_16bit:
            raise JobError(
                ErrorCode.MODEL_INVALID,
                "output.merged_16bit needs the base model in 16 bits",
                expected="weights that are not quantized",
                found=scheme,
            )
