"""Makes this process take the CPU for one CUDA GPU: unsloth's CUDA path runs. Call `install` before anything else.

Triton's kernels run in its interpreter, and what is sent to `cuda` stays where it is. Numbers are those of the
kernels' own code, computed on a CPU; speed, memory and copies are not those of a GPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

VARIABLES = {"UNSLOTH_ALLOW_CPU": "1", "TRITON_INTERPRET": "1", "HF_DEACTIVATE_ASYNC_LOAD": "1"}
"""Otherwise unsloth asks the driver, Triton compiles, and transformers copies weights in threads out of reach."""

_PROPERTIES = SimpleNamespace(
    name="NVIDIA H200",
    total_memory=150_000_000_000,
    major=9,
    minor=0,
    multi_processor_count=132,
    warp_size=32,
    gcnArchName="",
    is_integrated=0,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    L2_cache_size=62914560,
)


class _Idle:
    """A stream or an event: nothing ever runs beside this thread."""

    cuda_stream = stream_id = 0
    device = torch.device("cpu")

    def __init__(self, *_arguments: object, **_named: object) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _other: object) -> float:
        return 1.0

    def record_event(self, *_arguments: object) -> _Idle:
        return self

    def wait(self, *_arguments: object) -> None: ...

    synchronize = wait_stream = wait_event = record = wait


class _Device(contextlib.nullcontext[None]):
    def __init__(self, index: object = 0) -> None:
        super().__init__()
        self.idx = index


def _returning(value: object) -> Any:
    return lambda *_arguments, **_named: value


_STATE = torch.zeros(16, dtype=torch.uint8)
_VALUES: dict[str, object] = {
    **dict.fromkeys(["is_available", "is_initialized", "is_bf16_supported"], True),
    **dict.fromkeys(
        [
            "current_device",
            "memory_allocated",
            "max_memory_allocated",
            "memory_reserved",
            "max_memory_reserved",
        ],
        0,
    ),
    **dict.fromkeys(
        [
            "set_device",
            "synchronize",
            "empty_cache",
            "reset_peak_memory_stats",
            "init",
            "_lazy_init",
            "ipc_collect",
            "manual_seed",
            "manual_seed_all",
            "seed",
            "seed_all",
            "set_rng_state",
            "set_rng_state_all",
        ]
    ),
    "device_count": 1,
    "get_device_capability": (9, 0),
    "get_device_properties": _PROPERTIES,
    "get_device_name": _PROPERTIES.name,
    "mem_get_info": (140_000_000_000, _PROPERTIES.total_memory),
    "memory_stats": {},
    "get_arch_list": ["sm_90"],
    "get_rng_state": _STATE,
    "get_rng_state_all": [_STATE],
    "is_current_stream_capturing": False,
}
"""What the functions of `torch.cuda` return."""

_CLASSES: dict[str, object] = {
    "current_stream": _Idle,
    "default_stream": _Idle,
    "Stream": _Idle,
    "Event": _Idle,
    "stream": lambda _stream: contextlib.nullcontext(),
    "device": _Device,
}


def _on_cpu(value: Any) -> Any:
    """Returns the CPU for a CUDA device, and everything else as it is."""
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    return "cpu" if isinstance(value, str) and value.split(":")[0] == "cuda" else value


class _CpuForCuda(TorchFunctionMode):
    """Replaces the device in the arguments of every torch function."""

    def __torch_function__(
        self, function: Any, _types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        named, name = dict(named or {}), getattr(function, "__name__", "")
        if function is torch.device:  # `torch.device(0)` is a GPU
            if arguments and isinstance(arguments[0], int):
                return function("cuda", arguments[0])
            return function(*arguments, **named)
        if name in {"cuda", "pin_memory"}:
            return arguments[0]
        number_is_device = name == "to"

        def moved(value: Any) -> Any:
            is_number = number_is_device and isinstance(value, int) and not isinstance(value, bool)
            return torch.device("cpu") if is_number else _on_cpu(value)

        if isinstance(named.get("device"), int):
            named["device"] = torch.device("cpu")
        named = {key: _on_cpu(value) if key == "device" else value for key, value in named.items()}
        return function(*(arguments[:1] if number_is_device else ()),
                        *map(moved, arguments[1:] if number_is_device else arguments), **named)  # fmt: skip


def install() -> None:
    """Installs the pretended GPU in this process, for good."""
    os.environ.update(VARIABLES)
    os.system = _returning(1)  # as root unsloth would have ldconfig look for CUDA on this machine
    for name, value in _VALUES.items():
        setattr(torch.cuda, name, _returning(value))  # a function each: dynamo has a rule for each
    for name, value in _CLASSES.items():
        setattr(torch.cuda, name, value)
    torch.version.cuda = "13.0"
    torch._C._cuda_getCurrentRawStream = _returning(0)
    _CpuForCuda().__enter__()  # type: ignore[no-untyped-call]
    _autocast_on_cpu()
    _compute_bfloat16_in_float32()
    import triton

    triton.knobs.runtime.interpret = (
        True  # also after the worker has replaced its environment variables
    )


def _autocast_on_cpu() -> None:
    def replaced(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **named: original(
            *map(_on_cpu, arguments), **{key: _on_cpu(value) for key, value in named.items()}
        )

    module: Any = torch.amp.autocast_mode
    for name in (
        "is_autocast_enabled",
        "get_autocast_dtype",
        "set_autocast_enabled",
        "set_autocast_dtype",
    ):
        setattr(torch, name, replaced(getattr(torch, name)))
    module.autocast.__init__ = replaced(module.autocast.__init__)
    for name in ("custom_fwd", "custom_bwd"):
        wrapper = replaced(getattr(module, name))
        for place in (torch.amp, module):
            setattr(place, name, wrapper)


def _compute_bfloat16_in_float32() -> None:
    """Triton's interpreter has bfloat16 as the 16 bits of an integer, and would compute with that integer."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    handle: Any = interpreter.TensorHandle
    binary, unary, fma = builder.binary_op, builder.unary_op, builder.create_fma

    def is_short(value: Any) -> bool:
        return bool(value.dtype.scalar == tl.bfloat16)

    def widened(value: Any) -> Any:
        return (
            (value.data.astype(np.uint32) << 16).view(np.float32) if is_short(value) else value.data
        )

    def rounded(values: Any) -> Any:
        # To the nearest, ties to even: add just below one half of the last place that stays, and its own last bit.
        bits = (
            np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).reshape(np.shape(values))
        )
        short = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FC0), short)

    def binary_op(self: Any, left: Any, right: Any, operation: Any) -> Any:
        if not (is_short(left) and is_short(right)):
            return binary(self, left, right, operation)
        result = operation(widened(left), widened(right))
        return (
            handle(result, tl.int1)
            if result.dtype == bool
            else handle(rounded(result), tl.bfloat16)
        )

    def unary_op(self: Any, value: Any, operation: Any) -> Any:
        if not is_short(value):
            return unary(self, value, operation)
        return handle(rounded(operation(widened(value))), tl.bfloat16)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if not is_short(z):
            return fma(self, x, y, z)
        return handle(rounded(widened(x) * widened(y) + widened(z)), tl.bfloat16)

    builder.binary_op, builder.unary_op, builder.create_fma = binary_op, unary_op, create_fma
