"""The model's own forward pass, compiled at run time: `train.torch_compile`.

A model's layers are alike, so one of them is compiled and the code serves all, in a fraction of the time that the
whole model takes. Only where CUDA graphs are replayed, one graph is to hold the whole pass. Sizes are symbolic:
with fixed ones every shape is compiled anew, and no step is quicker for it (docs/decisions/0003-training-loop.md).

What can be compiled in pieces only is refused (`fullgraph`): nobody would be told how much of it is.
"""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainer.errors import ErrorCode, JobError
from trainer.spec import TrainSection
from trainer.training.out_of_memory import raise_if_out_of_memory

MULTIPLE: Final = 64
"""Where graphs are replayed, each of which has one shape, rows are padded to a multiple of so many tokens.

Of 2000 made-up rows (24 to 400 tokens, or 24 to 2048; steps of 4 or 16 rows), 176 to 552 shapes become 8 to 44,
for up to 23 % more tokens. With 32 up to 72 shapes are left; 128 adds up to 42 %. That rows are a power of two in
number adds nothing: micro-batches are cut accordingly, and up to half of the shapes are gone.
"""

_VARIANTS: Final = 64
"""So often a layer is compiled, at most: training and not, with and without adapter, one row and several, and the
layer that stands first; times the kinds of layers that a model has."""


@dataclass(frozen=True)
class Compilation:
    """How a model is compiled.

    Attributes:
        mode: what `torch.compile` calls it.
        graphs: whether CUDA graphs are recorded and replayed.
    """

    mode: str
    graphs: bool

    @classmethod
    def from_section(cls, train: TrainSection, device: torch.device) -> Compilation | None:
        """What a job spec asks for; None where the model is left as it is."""
        if not train.torch_compile:
            return None
        return cls(train.torch_compile_mode, device.type == "cuda" and train.torch_compile_mode != "default")

    def compile(self, model: Any) -> None:
        """Have a PEFT model compiled, in place, when it is first called."""
        decoder: nn.Module = model.get_base_model().base_model
        for part in (decoder,) if self.graphs else _layers(decoder):
            part.compile(fullgraph=True, dynamic=True, mode=self.mode, recompile_limit=_VARIANTS)
        for parameter in model.parameters() if self.graphs else ():
            if parameter.requires_grad:  # a gradient that is kept would lie where the next replay writes
                parameter.register_hook(torch.clone)

    def padded_shape(self, rows: int, width: int) -> tuple[int, int]:
        """What rectangle the model is given for so many rows of so many tokens."""
        if not self.graphs:
            return rows, width
        return 1 << (rows - 1).bit_length(), -(-width // MULTIPLE) * MULTIPLE

    def cost(self, lengths: Sequence[int]) -> int:
        """How many tokens the model is given for rows of these lengths."""
        rows, width = self.padded_shape(len(lengths), max(lengths))
        return rows * width

    def mark_step_begin(self) -> None:
        """Say that nothing of the pass before is needed any more."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def _layers(decoder: nn.Module) -> list[nn.Module]:
    """The layers that a decoder repeats, or itself."""
    from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: PLC0415 -- after the engine

    return [part for part in decoder.modules() if isinstance(part, GradientCheckpointingLayer)] or [decoder]


def require_compiler() -> None:
    """Compile something small, before anything is loaded: what a machine lacks is to be found now.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`, naming what is missing.
    """
    from torch._inductor import config  # noqa: PLC0415 -- slow, and not for those who do not compile

    config.compile_threads = 1  # in this process, whose children are then compilers and nothing else
    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.compile(_trial, fullgraph=True)(torch.ones(64, device=device))
    except Exception as error:  # whatever a compiler that is not there makes the library raise
        raise JobError(
            ErrorCode.ENGINE_UNAVAILABLE,
            "train.torch_compile cannot be done here",
            expected="a C++ compiler (g++), Python's header files, and a workspace that code can be loaded from",
            found=" and ".join(_missing()) or f"{type(error).__name__} (see job.log)",
            hint="set train.torch_compile to false, or have the job run in an image with a compiler",
        ) from error


def _trial(x: Tensor) -> Tensor:
    return (x * 2 + 1).tanh()


def _missing() -> Iterator[str]:
    if shutil.which("g++") is None:
        yield "no g++"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        yield "no Python.h"


@contextmanager
def report_compile_errors() -> Iterator[None]:
    """The model's own pass is compiled in the first step, forward and backward.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`: it cannot be; why stands in the private log.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # noqa: PLC0415 -- see above

    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        raise_if_out_of_memory(error)
        raise JobError(
            ErrorCode.ENGINE_UNAVAILABLE,
            f"the base model cannot be compiled ({type(error).__name__})",
            hint="set train.torch_compile to false; job.log says what stood in the way",
        ) from error
