"""One training run: prepare the data, load the model, train, write the result.

Each stage is a function in a file of its own, and returns a small frozen dataclass that the later stages take.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from contextlib import nullcontext

import torch

from trainer.data.rows import Row
from trainer.errors import DataError
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


def run(
    inputs: RunInputs, rows: Iterable[Row | DataError], loader: Loader, context: RunContext
) -> Summary:
    """Trains an adapter and writes it with its report into `inputs.output_dir`.

    Args:
        inputs: the job spec and the directories.
        rows: the rows of the dataset, read as they are needed, or the errors that refuse them.
        loader: engine that loads the base model.
        context: the services of the process around the run.

    Returns:
        The content of `report/summary.json`.

    Raises:
        JobError: the model, the data or the training failed, each with its code.
        Interruption: a signal came; the state after the last complete step is in a checkpoint.
    """
    require_privacy_package(inputs.spec.privacy)
    seed(inputs.spec.train.seed)
    data = prepare(inputs, rows, context)
    try:
        # A model is compiled when it is first called, so an error of the compiler may come from any later stage.
        with report_compile_errors() if inputs.spec.train.torch_compile else nullcontext():
            model = load(inputs, data, loader, context)
            trained = train(inputs, data, model, context)
            return write(inputs, data, model, trained, context)
    except (RuntimeError, MemoryError) as error:
        raise_if_out_of_memory(error)
        raise


def seed(number: int) -> None:
    """Seeds all random generators, and demands deterministic algorithms of torch."""
    # The adapter's initial A, dropout and noise are drawn from them; the order of the rows has its own generator.
    random.seed(number)
    torch.manual_seed(number)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it
    # On a CPU every operation used here has a deterministic form. On a GPU some have none; torch warns in the log.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
