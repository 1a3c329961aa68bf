"""The base model with a LoRA adapter on it, through one of two engines.

An engine loads a local directory of safetensors and attaches the adapter; everything after that is the same for
all engines. `transformers` runs on CPU and GPU. `unsloth` needs a GPU and is optional; `auto` takes it where both
are there.
"""

from __future__ import annotations

import importlib.util
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from trainer.errors import ErrorCode, JobError
from trainer.spec import Dtype, Engine, JobSpec, LoraSection

_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".so")
_DTYPES: Final = {Dtype.FLOAT32: torch.float32, Dtype.BFLOAT16: torch.bfloat16, Dtype.FLOAT16: torch.float16}


@dataclass(frozen=True)
class Precision:
    """In what numbers the model computes.

    Attributes:
        device: where.
        weights: type of the frozen base weights in memory; the adapter's own are always float32.
        autocast: whether matrix products run in bfloat16.
    """

    device: torch.device
    weights: torch.dtype
    autocast: bool

    def context(self) -> AbstractContextManager[Any]:
        """Surrounds every forward pass."""
        if not self.autocast:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


class Loader(Protocol):
    """What an engine does."""

    name: str

    def load(self, model_dir: Path, spec: JobSpec, precision: Precision) -> Any:
        """Load the base model and attach a fresh adapter; returns a PEFT model on `precision.device`."""


def choose_precision(spec: JobSpec) -> tuple[Precision, tuple[str, ...]]:
    """The numbers this machine computes this spec in, and what the provider should know about them."""
    if torch.cuda.is_available():
        return Precision(torch.device("cuda"), _DTYPES[spec.model.dtype], spec.train.bf16), ()
    wanted = _DTYPES[spec.model.dtype]
    quick = _cpu_has_bfloat16()
    weights = wanted if wanted is torch.bfloat16 and quick else torch.float32
    autocast = spec.train.bf16 and quick
    warnings = []
    if weights is not wanted:
        warnings.append(f"model.dtype {spec.model.dtype} is computed as float32 on this CPU")
    if spec.train.bf16 and not autocast:
        warnings.append("train.bf16 is off: this CPU has no bfloat16 instructions")
    if spec.train.torch_compile_mode == "reduce-overhead":
        warnings.append("train.torch_compile_mode reduce-overhead is default here: no GPU replays graphs")
    return Precision(torch.device("cpu"), weights, autocast), tuple(warnings)


def _cpu_has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # noqa: SLF001


def choose_engine(spec: JobSpec, *, processes: int = 1) -> Loader:
    """The engine that a spec asks for. Call it before anything imports transformers: unsloth must come first.

    Args:
        spec: names it, or leaves it open.
        processes: how many train together; unsloth is for one.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`.
    """
    quantized = spec.model.load_in_4bit or spec.model.load_in_8bit
    if quantized:
        require_gpu("model.load_in_4bit and load_in_8bit", "bitsandbytes")
    if spec.train.engine is Engine.UNSLOTH:
        require_gpu("train.engine unsloth", "unsloth")
    may_be_unsloth = spec.train.engine is Engine.AUTO and processes == 1 and not spec.train.torch_compile
    found = may_be_unsloth and torch.cuda.is_available() and _installed("unsloth")
    if spec.train.engine is Engine.UNSLOTH or found:
        from trainer.training.engines.unsloth_engine import UnslothLoader  # noqa: PLC0415 -- an optional dependency

        return UnslothLoader()
    return TransformersLoader()


def require_gpu(what: str, package: str) -> None:
    """Refuse what cannot run here.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`, naming what is missing.
    """
    missing = [] if torch.cuda.is_available() else ["a CUDA GPU"]
    missing += [] if _installed(package) else [f"the package {package}"]
    if missing:
        raise JobError(
            ErrorCode.ENGINE_UNAVAILABLE,
            f"{what} cannot run here",
            expected=f"a CUDA GPU and the package {package}",
            found=f"a machine without {' and '.join(missing)}",
        )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def check_model_dir(model_dir: Path) -> None:
    """Refuse anything but safetensors, JSON and text before a library opens it.

    Raises:
        JobError: `MODEL_INVALID`.
    """
    names = [path.relative_to(model_dir).as_posix() for path in model_dir.rglob("*") if path.is_file()]
    unsafe = sorted(name for name in names if name.endswith(_PICKLES))
    if unsafe or not any(name.endswith(".safetensors") for name in names):
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the base model's files",
            expected="safetensors weights, and neither pickles nor code",
            found=unsafe[0] if unsafe else "no .safetensors file",
        )
    if "auto_map" in _read_config(model_dir):
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the base model's config.json names code of its own",
            expected="an architecture that transformers knows",
            found="auto_map",
        )


def _read_config(model_dir: Path) -> dict[str, Any]:
    try:
        config = json.loads((model_dir / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise JobError(ErrorCode.MODEL_INVALID, "the base model's config.json cannot be read") from error
    if not isinstance(config, dict):
        raise JobError(ErrorCode.MODEL_INVALID, "the base model's config.json is not an object")
    return config


class TransformersLoader:
    """transformers and PEFT, on CPU or GPU."""

    name = "transformers"

    def load(self, model_dir: Path, spec: JobSpec, precision: Precision) -> Any:
        """See `Loader.load`.

        Raises:
            JobError: `MODEL_INVALID`.
        """
        model = self._load_base(model_dir, spec, precision)
        model.config.use_cache = False
        if spec.train.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return attach_adapter(model, spec.lora)

    def _load_base(self, model_dir: Path, spec: JobSpec, precision: Precision) -> Any:
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 -- after the choice of the engine

        try:
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
        except Exception as error:  # whatever a damaged file makes the libraries raise
            raise_if_out_of_memory(error)
            raise JobError(
                ErrorCode.MODEL_INVALID, f"the base model cannot be loaded ({type(error).__name__})"
            ) from error
        return model


def _quantization(spec: JobSpec, precision: Precision) -> Any:
    if not (spec.model.load_in_4bit or spec.model.load_in_8bit):
        return None
    from transformers import BitsAndBytesConfig  # noqa: PLC0415 -- only with a GPU

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=spec.model.load_in_4bit,
        load_in_8bit=spec.model.load_in_8bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=precision.weights,
    )


def attach_adapter(model: Any, lora: LoraSection) -> Any:
    """A PEFT model: `model` frozen, with fresh LoRA weights drawn from torch's seeded generator.

    Raises:
        JobError: `MODEL_INVALID`: the model has no such modules.
    """
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 -- after the choice of the engine

    targets = lora.lora_target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=lora.init_lora_weights,  # type: ignore[arg-type]  # a pattern, not a list
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the adapter does not fit the base model",
            expected="lora.lora_target_modules that the model has",
            found="none of them" if targets != "all-linear" else "no linear layers",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory does not suffice; on a CPU, torch says so in words only."""
    worded = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return worded or isinstance(error, MemoryError | torch.OutOfMemoryError)


def raise_if_out_of_memory(error: BaseException) -> None:
    """Tell running out of memory from other failures.

    Raises:
        JobError: `OUT_OF_MEMORY`, if that is what `error` means.
    """
    if is_out_of_memory(error):
        raise JobError(
            ErrorCode.OUT_OF_MEMORY,
            "the memory does not suffice, not even for one row at once",
            hint="lower data.max_length, or set train.gradient_checkpointing to true",
        ) from error
