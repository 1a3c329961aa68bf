"""The model's own forward pass, compiled at run time with torch.compile: `train.torch_compile`.

The layers of a model are alike, so one of them is compiled and its code serves all, in a fraction of the time that
compiling the model in one piece takes. Only with CUDA graphs is the model compiled in one piece, because one
graph is to hold the complete pass. Sizes are symbolic: with fixed ones each shape would be compiled anew, and no
step would be faster for it (docs/decisions/0003-training-loop.md).

A model that torch can compile only in pieces is refused (`fullgraph`): nobody would learn how much of it is
compiled.
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
from torch import nn

from trainer.errors import ErrorCode, JobError
from trainer.spec import TrainSection
from trainer.training.out_of_memory import raise_if_out_of_memory

WIDTH_MULTIPLE: Final = 64
"""With CUDA graphs, each of which has one shape, rows are padded to a multiple of this many tokens.

Measured on 2000 synthetic rows (24 to 400 tokens, or 24 to 2048; steps of 4 or 16 rows): 176 to 552 shapes become
8 to 44, for up to 23 % more tokens. With 32 there are up to 72 shapes; 128 costs up to 42 % more tokens. That the
number of rows is a power of two costs nothing, because micro-batches are split accordingly, and halves the shapes.
"""

_RECOMPILE_LIMIT: Final = 64
"""How often a layer is compiled at most: training and not, with and without adapter, one row and several, the
first layer (whose input has no gradient); times the kinds of layers that a model has."""


@dataclass(frozen=True)
class Compilation:
    """How a model is compiled.

    Attributes:
        mode: the mode of `torch.compile`.
        graphs: whether CUDA graphs are recorded and replayed.
    """

    mode: str
    graphs: bool

    @classmethod
    def from_section(cls, train: TrainSection, device: torch.device) -> Compilation | None:
        """Returns the compilation that a job spec asks for; None where the model is not compiled."""
        if not train.torch_compile:
            return None
        # torch's other modes, `reduce-overhead` and `max-autotune`, record CUDA graphs; a CPU has none.
        return cls(
            train.torch_compile_mode,
            device.type == "cuda" and train.torch_compile_mode != "default",
        )

    def compile(self, model: Any) -> None:
        """Arranges that a PEFT model is compiled, in place, when it is first called."""
        from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: PLC0415 -- after the engine

        decoder: nn.Module = model.get_base_model().base_model
        # transformers marks the layers that a decoder repeats with this base class. Where it marks none, and for
        # CUDA graphs, the complete decoder is compiled.
        layers = [
            module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)
        ]
        for module in layers if layers and not self.graphs else [decoder]:
            # `dynamic`: row count and width are symbols, so rows of other lengths need no other code.
            module.compile(
                fullgraph=True, dynamic=True, mode=self.mode, recompile_limit=_RECOMPILE_LIMIT
            )
        # A graph's gradients lie in its own memory, which the next replay overwrites; a gradient that is
        # accumulated over micro-batches must be a copy.
        for parameter in model.parameters() if self.graphs else ():
            if parameter.requires_grad:
                parameter.register_hook(torch.clone)

    def padded_shape(self, rows: int, width: int) -> tuple[int, int]:
        """Returns the (rows, width) of the rectangle that the model is given for rows of up to `width` tokens."""
        if not self.graphs:
            return rows, width
        # The next power of two: 5 rows become 8. The width is rounded up to the next multiple.
        power_of_two = 1 << (rows - 1).bit_length()
        return power_of_two, -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE

    def cost(self, lengths: Sequence[int]) -> int:
        """Returns how many tokens the model computes for rows of these lengths, padding included."""
        rows, width = self.padded_shape(len(lengths), max(lengths))
        return rows * width

    def mark_step_begin(self) -> None:
        """Signals to torch that the last forward pass is no longer needed: a graph may overwrite its results."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def require_compiler() -> None:
    """Compiles a small function before anything is loaded, to fail early on a machine that cannot compile.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`, naming what is missing.
    """
    from torch._inductor import config  # noqa: PLC0415 -- slow, and only for this

    config.compile_threads = (
        1  # in this process; then the only children that it starts are compilers
    )
    try:
        # Two element-wise operations: enough that code is generated, compiled and loaded from the workspace.
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.compile(lambda x: (x * 2 + 1).tanh(), fullgraph=True)(torch.ones(64, device=device))
    except Exception as error:  # without a compiler the library raises errors of many types
        missing = [] if shutil.which("g++") else ["no g++"]
        if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
            missing.append("no Python.h")
        raise JobError(
            ErrorCode.ENGINE_UNAVAILABLE,
            "train.torch_compile does not work on this machine",
            expected="a C++ compiler (g++), Python's header files, and a workspace that code can be loaded from",
            found=" and ".join(missing) or f"{type(error).__name__} (see job.log)",
            hint="set train.torch_compile to false, or run the job in an image with a compiler",
        ) from error


@contextmanager
def report_compile_errors() -> Iterator[None]:
    """Turns errors of torch.compile within the block into job errors.

    A model is compiled in the first optimizer step, its forward and its backward pass.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`: the model cannot be compiled. The reason quotes the model's code and may
            quote data, so it goes into the private log only.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # noqa: PLC0415 -- see above

    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        # The text of the error that torch wraps is in its own text, also that of an exhausted memory.
        raise_if_out_of_memory(error)
        raise JobError(
            ErrorCode.ENGINE_UNAVAILABLE,
            f"the base model cannot be compiled ({type(error).__name__})",
            hint="set train.torch_compile to false; job.log has the reason",
        ) from error
