"""The interface of an engine, which loads a local directory of safetensors and attaches a fresh LoRA adapter.

Everything after that is the same for all engines. An engine is one file with a subclass of `Loader`;
`trainer.training.engines.choice` lists them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch

from trainer.errors import ErrorCode, JobError
from trainer.spec import Dtype, JobSpec

_TORCH_TYPES: Final = {
    Dtype.FLOAT32: torch.float32,
    Dtype.BFLOAT16: torch.bfloat16,
    Dtype.FLOAT16: torch.float16,
}


@dataclass(frozen=True)
class Precision:
    """The device and the number types that a model computes with.

    Attributes:
        device: holds the model.
        weights: type of the frozen base weights in memory; the adapter's weights are always float32.
        autocast: whether matrix products run in bfloat16.
    """

    device: torch.device
    weights: torch.dtype
    autocast: bool

    def context(self) -> AbstractContextManager[Any]:
        """Returns the context that every forward pass runs in."""
        if not self.autocast:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


class Loader(ABC):
    """An engine.

    Attributes:
        name: the engine's name in `train.engine`.
        allows_fused: whether the fused pass may replace the model's forward pass. It reads the weights and calls
            no module, so an engine that puts kernels of its own into the modules does not allow it.
    """

    name: str
    allows_fused: bool

    @abstractmethod
    def load(self, model_dir: Path, spec: JobSpec, precision: Precision) -> Any:
        """Loads the base model and attaches a fresh adapter.

        Args:
            model_dir: directory with safetensors, JSON and text only: see `check_model_dir`.
            spec: the job spec; its sections `model`, `lora`, `train` and `data` apply here.
            precision: the device and the types.

        Returns:
            A PEFT model on `precision.device`; of its parameters only the adapter's require gradients.

        Raises:
            JobError: `MODEL_INVALID`, `ENGINE_UNAVAILABLE` or `OUT_OF_MEMORY`.
        """


def choose_precision(spec: JobSpec) -> tuple[Precision, tuple[str, ...]]:
    """Returns the precision that this machine computes a spec in, and warnings where it is not the spec's."""
    wanted = _TORCH_TYPES[spec.model.dtype]
    if torch.cuda.is_available():
        return Precision(torch.device("cuda"), wanted, spec.train.bf16), ()
    weights = _choose_cpu_type(wanted)
    autocast = spec.train.bf16 and _has_bfloat16()
    warnings = []
    if weights is not wanted:
        warnings.append(f"model.dtype {spec.model.dtype} is computed as float32 on this CPU")
    if spec.train.bf16 and not autocast:
        warnings.append("train.bf16 is off: this CPU has no bfloat16 instructions")
    if spec.train.torch_compile_mode == "reduce-overhead":
        warnings.append(
            "train.torch_compile_mode reduce-overhead is default here: no GPU replays graphs"
        )
    return Precision(torch.device("cpu"), weights, autocast), tuple(warnings)


def choose_inference_precision(dtype: Dtype) -> Precision:
    """Returns the precision that this machine answers prompts in, with weights of `model.dtype` where it can."""
    wanted = _TORCH_TYPES[dtype]
    if torch.cuda.is_available():
        return Precision(torch.device("cuda"), wanted, autocast=False)
    return Precision(torch.device("cpu"), _choose_cpu_type(wanted), autocast=False)


def _choose_cpu_type(wanted: torch.dtype) -> torch.dtype:
    # float16 becomes float32 on every CPU: its small range would need loss scaling.
    return wanted if wanted is torch.bfloat16 and _has_bfloat16() else torch.float32


def _has_bfloat16() -> bool:
    # Without these instructions (AVX512_BF16 or AMX) a CPU emulates bfloat16, several times slower than float32.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001


def require_gpu(feature: str, package: str) -> None:
    """Refuses a feature that needs a CUDA GPU and a package.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`, naming what is missing.
    """
    missing = [] if torch.cuda.is_available() else ["a CUDA GPU"]
    # `find_spec` looks for the package without importing it: an import would patch transformers (unsloth).
    if find_spec(package) is None:
        missing.append(f"the package {package}")
    if missing:
        raise JobError(
            ErrorCode.ENGINE_UNAVAILABLE,
            f"{feature} cannot run here",
            expected=f"a CUDA GPU and the package {package}",
            found=f"a machine without {' and '.join(missing)}",
        )
