"""One training run: prepare the data, load the model, train, write the result.

Each stage is a function in a file of its own, and returns a small frozen dataclass that the later stages take.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from trainer.data.rows import Row
from trainer.spec import JobSpec
from trainer.training.compilation import report_compile_errors
from trainer.training.engines.base import Loader
from trainer.training.out_of_memory import raise_if_out_of_memory
from trainer.training.privacy.stages import require_privacy_package
from trainer.training.report.summary import Summary
from trainer.training.run_inputs import RunInputs
from trainer.training.stages.load import load
from trainer.training.stages.prepare import prepare
from trainer.training.stages.run_context import RunContext
from trainer.training.stages.train import train
from trainer.training.stages.write import write


def run(inputs: RunInputs, rows: list[Row], loader: Loader, context: RunContext) -> Summary:
    """Train an adapter and write it with its report into `inputs.output_dir`.

    Args:
        inputs: the job spec and the directories.
        rows: the dataset, parsed.
        loader: engine that loads the base model.
        context: what the process provides.

    Returns:
        What `report/summary.json` holds.

    Raises:
        JobError: the model, the data or the training failed, each with its code.
        Interruption: a signal came; the state after the last complete step is in a checkpoint.
    """
    require_privacy_package(inputs.spec.privacy)
    seed(inputs.spec.train.seed)
    data = prepare(inputs, rows, context)
    with _translated_errors(inputs.spec):
        model = load(inputs, data, loader, context)
        trained = train(inputs, data, model, context)
        return write(inputs, data, model, trained, context)


def seed(number: int) -> None:
    """Seed all random generators, and demand deterministic algorithms of torch."""
    random.seed(number)
    torch.manual_seed(number)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it
    # On a CPU every operation used here has a deterministic form. On a GPU some have none; torch warns in the log.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())


@contextmanager
def _translated_errors(spec: JobSpec) -> Iterator[None]:
    try:
        with report_compile_errors() if spec.train.torch_compile else nullcontext():
            yield
    except (RuntimeError, MemoryError) as error:
        raise_if_out_of_memory(error)
        raise
