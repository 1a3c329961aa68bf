"""The first stage: rows become examples, some of them held out."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain

from trainer.data.examples.choices import longest_choice
from trainer.data.examples.example_set import Dataset, build_dataset
from trainer.data.examples.held_out import seed_split_key
from trainer.data.examples.model_config import check_architecture, context_length, read_config
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.privacy_rows import require_rows_for_delta
from trainer.data.examples.row_outcomes import require_evaluation_rows
from trainer.data.examples.task_draw import TaskDraw
from trainer.data.examples.task_rows import TaskRows, read_tasks
from trainer.data.rows import Row
from trainer.errors import DataError
from trainer.model_files.model_check import ModelFiles
from trainer.model_files.start_adapter import CheckedAdapter, check_start_adapter
from trainer.spec import check_schedule
from trainer.training.checkpoint import read_probe_seed
from trainer.training.compilation import require_compiler
from trainer.training.engines.base_model_loading import check_model_dir
from trainer.training.privacy.memorisation_audit import Probes, add_probes
from trainer.training.privacy.row_coupling import require_float_weights
from trainer.training.run_inputs import RunInputs
from trainer.training.stages.run_context import RunContext
from trainer.training.step_count import count_steps
from trainer.training.tokenizer import load_tokens


@dataclass(frozen=True)
class PreparedData:
    """The dataset as token ids.

    Attributes:
        tokenizer: tokenizer of the base model.
        dataset: the training examples, canaries included, and the held-out examples.
        probes: examples that the memorisation audit measures.
        start_adapter: the adapter that training starts from, judged; None for a fresh one.
        probe_seed: secret seed with which the probes were drawn, in hex; None where nothing was drawn.
        tasks: the held-out rows that `evaluation.metrics` judge; none without.
        longest: tokens of the longest row that the loss is computed of.
    """

    tokenizer: ModelTokenizer
    dataset: Dataset
    probes: Probes
    start_adapter: CheckedAdapter | None
    probe_seed: str | None
    tasks: TaskRows
    longest: int


def prepare(
    inputs: RunInputs, rows: Iterable[Row | DataError], context: RunContext
) -> PreparedData:
    """Turns rows into examples, holds some out, and chooses the probes of the memorisation audit.

    Raises:
        JobError: no compiler where one is needed; the model's files or the rows cannot be used.
    """
    spec, watch = inputs.spec, context.watch
    if spec.train.torch_compile:
        # First of all: a machine without a compiler should not cost the time to load a model.
        with watch.part("compile"):
            require_compiler()
    with watch.part("tokenize"):
        if spec.privacy.differential:
            require_float_weights(read_config(inputs.model_dir))  # also what is supported otherwise
        base = check_model_dir(inputs.model_dir, spec)
        start_adapter = _check_start_adapter(inputs, base)
        config = base.config
        check_architecture(config, spec)
        tokenizer = load_tokens(inputs.model_dir, spec.data)
        # Where privacy is asked for, the key is secret: whoever chooses a row must not choose its side.
        split_key = inputs.split_key if spec.privacy.enabled else seed_split_key(spec.train.seed)
        rows = iter(rows)
        first = next(rows, None)
        draw = (
            TaskDraw(spec.evaluation.max_rows, seed=spec.train.seed)
            if spec.evaluation.metrics
            else None
        )
        dataset = build_dataset(
            rows if first is None else chain([first], rows),
            tokenizer,
            spec.data,
            split_key=split_key,
            method=spec.train.method,
            context_length=context_length(config),
            draw=draw,
        )
        require_evaluation_rows(dataset.rows.eval, spec.train)
        # The canaries' texts follow from this seed. Drawn from the public `train.seed` they would be known to
        # everybody, and whoever sees the adapter could look for them.
        probe_seed = None
        if spec.privacy.audit or spec.privacy.canaries:
            probe_seed = (
                read_probe_seed(inputs.resume_dir) if inputs.resume_dir else secrets.token_hex(32)
            )
        generator = random.Random(probe_seed)  # noqa: S311 -- of 256 secret bits; a resumed run draws the same
        assert isinstance(first, Row)  # noqa: S101 -- there is a dataset, so the first row could be read
        dataset, probes = add_probes(
            dataset, first, tokenizer, (spec.privacy, spec.data), random=generator
        )
        if spec.privacy.target_delta is not None:
            require_rows_for_delta(len(dataset.train), spec.privacy.target_delta)
        lengths = [example.length for example in dataset.train]
        warnings = check_schedule(spec.train, count_steps(spec, lengths, context.ranks.size))
        dataset = replace(dataset, warnings=(*dataset.warnings, *warnings))
        tasks = (
            read_tasks(draw, tokenizer, spec, context_length=context_length(config))
            if draw
            else TaskRows()
        )
        longest = max(example.length for example in (*dataset.train, *dataset.evaluation))
        longest = max(longest, longest_choice(tasks, tokenizer))
    return PreparedData(tokenizer, dataset, probes, start_adapter, probe_seed, tasks, longest)


def _check_start_adapter(inputs: RunInputs, base: ModelFiles) -> CheckedAdapter | None:
    if (inputs.start_adapter is None) != (inputs.spec.lora.start_from is None):
        raise AssertionError("a start adapter and lora.start_from go together")
    return (
        check_start_adapter(inputs.start_adapter, inputs.spec, base)
        if inputs.start_adapter
        else None
    )
