"""One order from beginning to end: rows → examples → trained adapter and report."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.data.examples.example_set import Dataset, build_dataset
from trainer.data.rows import Row
from trainer.errors import ErrorCode, JobError
from trainer.spec import DataSection, JobSpec
from trainer.training.adapter import save_adapter, save_initial_adapter
from trainer.training.bin_packing import best_fit_decreasing
from trainer.training.checkpoint import CheckpointWriter, ResumedState, SavedState, read_draw, read_state
from trainer.training.compilation import Compilation, report_compile_errors, require_compiler
from trainer.training.distributed import ALONE, RankGroup
from trainer.training.engines.base import Loader, Precision, choose_precision
from trainer.training.engines.base_model_files import check_model_dir
from trainer.training.events import TrainingEvent
from trainer.training.interruption import Interruption, Interrupts
from trainer.training.loop import Trainer
from trainer.training.loss import CausalLoss
from trainer.training.merged import save_merged
from trainer.training.methods.dpo import DirectPreferenceOptimization, pairs_of
from trainer.training.out_of_memory import raise_if_out_of_memory
from trainer.training.privacy.memorisation_audit import MemorisationAudit, Probes, prepare
from trainer.training.privacy.stages import conclude, private_training, require_engine
from trainer.training.progress import TrainingOutcome, TrainState
from trainer.training.report.html_report import MetricsRecorder, write_report
from trainer.training.report.model_card import model_card
from trainer.training.report.samples import Sampler
from trainer.training.report.summary import Summary, describe_environment, summarize
from trainer.training.run_inputs import RunInputs
from trainer.training.sharding import describe_ranks, loading_precision, shard_base_model
from trainer.training.stopwatch import Stopwatch
from trainer.training.tokenizer import ModelTokenizer, load_tokens


@dataclass(frozen=True)
class _Run:
    """What the stages of one run have in common."""

    order: RunInputs
    loader: Loader
    tokens: ModelTokenizer
    data: Dataset
    probes: Probes
    draw: str | None
    watch: Stopwatch
    report: Callable[[TrainingEvent], None]
    interrupts: Interrupts
    ranks: RankGroup
    allocator: str

    @property
    def spec(self) -> JobSpec:
        """The order's."""
        return self.order.spec


def run(
    order: RunInputs,
    rows: list[Row],
    loader: Loader,
    *,
    report: Callable[[TrainingEvent], None],
    watch: Stopwatch,
    interrupts: Interrupts | None = None,
    ranks: RankGroup = ALONE,
    allocator: str = "system",
) -> Summary:
    """Carry out an order.

    Args:
        order: what to do, and where everything is.
        rows: the dataset, parsed.
        loader: engine that loads the base model.
        report: gets progress and metrics.
        watch: runs since the order arrived.
        interrupts: what breaks the run off; its state is saved then.
        ranks: which of several processes this is; the first one writes the result.
        allocator: name of this process's memory allocator, for the report.

    Returns:
        What `report/summary.json` holds.

    Raises:
        JobError: the model, the data or the training failed, each with its code.
    """
    spec = order.spec
    require_engine(spec.privacy)
    seed(spec.train.seed)
    if spec.train.torch_compile:
        with watch.part("compile"):
            require_compiler()
    with watch.part("tokenize"):
        check_model_dir(order.model_dir)
        tokens = load_tokens(order.model_dir, spec.data.chat_template)
        data = build_dataset(rows, tokens, spec.data, seed=spec.train.seed, method=spec.train.method)
        draw = _draw(order)
        drawn = random.Random(draw)  # noqa: S311 -- of 256 secret bits, and can be drawn again
        data, probes = prepare(data, rows, tokens, (spec.privacy, spec.data), random=drawn)
    stages = _Run(
        order, loader, tokens, data, probes, draw, watch, report, interrupts or Interrupts(), ranks, allocator
    )
    try:
        with report_compile_errors() if spec.train.torch_compile else nullcontext():
            return _train(stages)
    except (RuntimeError, MemoryError) as error:
        raise_if_out_of_memory(error)
        raise


def _draw(order: RunInputs) -> str | None:
    """Secret seed of what the privacy audit draws: of a run that goes on, the one it began with."""
    if not (order.spec.privacy.audit or order.spec.privacy.canaries):
        return None
    return secrets.token_hex(32) if order.resume_dir is None else read_draw(order.resume_dir)


def _train(at: _Run) -> Summary:
    order, spec, data, watch, ranks = at.order, at.spec, at.data, at.watch, at.ranks
    precision, warnings = choose_precision(spec)
    with watch.part("load"):
        model = at.loader.load(order.model_dir, spec, loading_precision(precision, ranks))
        shard_base_model(model, precision, ranks)
        _check_vocabulary(model, data)
        start = _start(model, order)
        loss = _loss(model, precision, data, at.tokens, spec, fused=_may_fuse(at))
    sampler = _sampler(model, at.tokens, precision, data, spec)
    earlier = _earlier(model, order)
    with watch.part("sample"):
        samples = earlier.samples if earlier else sampler.sample_before_training()
    audit = MemorisationAudit(
        loss, at.probes, repetitions=spec.privacy.canary_repetitions, device=precision.device
    )
    with _audited(spec, watch):
        audit.before()
    resumed_at = earlier.resumed_at if earlier else ()
    with MetricsRecorder(order.output_dir / "report", at.report, earlier.metrics if earlier else ()) as recorder:
        kept = SavedState(recorder.metrics, samples, resumed_at, at.draw)
        saver = CheckpointWriter(
            order.output_dir, tuple(_trained(model)), kept, tell=at.report, interrupts=at.interrupts
        )
        training = _training(at, model, loss, precision, recorder, saver)
        if earlier:
            training.restore(earlier.state)
        with _saved_if_interrupted(training, saver):
            outcome = _outcome(training, model, at, start)
            with watch.part("sample"):
                samples = sampler.sample_after_training(samples)
            with _audited(spec, watch):
                privacy, withheld = conclude(spec.privacy, training, audit)
            if withheld is None and ranks.rank == 0:
                _save(model, order, start, watch)
    environment = describe_environment(at.loader.name, precision, loss, at.allocator) | describe_ranks(ranks)
    told = (*data.warnings, *warnings, *outcome.warnings)
    summary = summarize(outcome, data, watch.read(), environment, told, privacy, resumed_at)
    if ranks.rank:
        return summary
    write_report(order.output_dir / "report", summary, recorder.metrics, spec, samples, audit.losses)
    if withheld is not None:
        raise withheld
    (order.output_dir / "adapter" / "README.md").write_text(model_card(summary, spec), encoding="utf-8")
    return summary


def _training(
    at: _Run,
    model: Any,
    loss: CausalLoss,
    precision: Precision,
    recorder: MetricsRecorder,
    saver: CheckpointWriter,
) -> Trainer:
    spec, data = at.spec, at.data
    if spec.privacy.differential:
        return private_training(model, loss, data, spec, report=recorder, interrupts=at.interrupts)
    preference = _preference(data, loss, spec, precision, at.watch, at.ranks)
    return Trainer(
        model,
        loss,
        data,
        spec.train,
        report=recorder,
        bins=pairs_of(len(data.train)) if preference else _bins(data, spec.data),
        method=preference,
        ranks=at.ranks,
        save=saver.save if at.ranks.rank == 0 else _leave,
        interrupts=at.interrupts,
    )


def _outcome(training: Trainer, model: Any, at: _Run, start: Path | None) -> TrainingOutcome:
    """Train; of a run that diverges, the last sound adapter is kept."""
    try:
        outcome = training.run()
    except JobError:
        if training.sound_step:
            save_adapter(model, at.spec.model, at.order.output_dir / "adapter", initial=start)
        raise
    at.watch.put("train", outcome.train_seconds)
    at.watch.put("eval", outcome.eval_seconds)
    return outcome


def _audited(spec: JobSpec, watch: Stopwatch) -> AbstractContextManager[None]:
    return watch.part("audit") if spec.privacy.asked else nullcontext()


def _save(model: Any, order: RunInputs, start: Path | None, watch: Stopwatch) -> None:
    with watch.part("save"):
        save_adapter(model, order.spec.model, order.output_dir / "adapter", initial=start)
    if order.spec.output.merged_16bit:
        with watch.part("merge"):
            save_merged(order.model_dir, order.output_dir / "adapter", order.output_dir / "merged")


def _leave(_state: TrainState) -> None:
    """The first process saves the state: it is that of all."""


def _trained(model: Any) -> dict[str, Any]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _earlier(model: Any, order: RunInputs) -> ResumedState | None:
    """What the run was when it was interrupted."""
    return None if order.resume_dir is None else read_state(order.resume_dir, _trained(model))


@contextmanager
def _saved_if_interrupted(training: Trainer, saver: CheckpointWriter) -> Iterator[None]:
    """Whenever a signal comes: what was trained up to the last whole step is kept."""
    try:
        yield
    except Interruption:
        if (state := training.sound_state()) is not None:
            saver.save(state)
        raise


def _sampler(model: Any, tokens: ModelTokenizer, precision: Precision, data: Dataset, spec: JobSpec) -> Sampler:
    output = spec.output
    return Sampler(
        model,
        tokens,
        precision,
        data.evaluation[:: 2 if spec.train.method == "dpo" else 1],  # the chosen answers
        count=output.samples,
        max_new_tokens=output.sample_max_new_tokens,
        starts_as_base=spec.lora.starts_as_base,
    )


def seed(number: int) -> None:
    """Begin all generators anew, and have torch compute the same from the same."""
    random.seed(number)
    torch.manual_seed(number)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it
    # On CPU every operation used here has a deterministic form; on a GPU some have none, and say so in the log.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())


def _start(model: Any, order: RunInputs) -> Path | None:
    if not order.spec.lora.changes_base:
        return None
    start = order.output_dir / ".scratch" / "start"
    save_initial_adapter(model, start)
    return start


def _loss(
    model: Any, precision: Precision, data: Dataset, tokens: ModelTokenizer, spec: JobSpec, *, fused: bool
) -> CausalLoss:
    """`fused` is false where the engine has brought kernels of its own."""
    return CausalLoss(
        model,
        precision,
        pad_id=tokens.pad_id,
        longest=max(example.length for example in (*data.train, *data.evaluation)),
        checkpointing=spec.train.gradient_checkpointing,
        neftune_alpha=spec.train.neftune_noise_alpha,
        fused=fused,
        compilation=Compilation.from_section(spec.train, precision.device),
    )


def _preference(
    data: Dataset, loss: CausalLoss, spec: JobSpec, precision: Precision, watch: Stopwatch, ranks: RankGroup
) -> DirectPreferenceOptimization | None:
    """The method `dpo`; made while the adapter is fresh. Its reference is the base model."""
    if spec.train.method != "dpo":
        return None
    reference = loss.evaluating if spec.lora.changes_base else loss.adapter_disabled
    with watch.part("reference"):
        return DirectPreferenceOptimization(
            data, loss, spec.train, reference=reference, device=precision.device, ranks=ranks
        )


def _may_fuse(at: _Run) -> bool:
    """Whether the quick forward pass may be taken: it reads weights and calls no modules of the model.

    An engine has kernels of its own in there, FSDP gathers layers, and gradients of single rows are taken there.
    """
    return at.loader.allows_fused and not at.ranks.sharded and not at.spec.privacy.differential


def _bins(data: Dataset, section: DataSection) -> list[list[int]] | None:
    if not section.packing:
        return None
    return best_fit_decreasing([example.length for example in data.train], section.max_length)


def _check_vocabulary(model: Any, data: Dataset) -> None:
    known = model.get_input_embeddings().num_embeddings
    largest = max(max(example.ids) for example in (*data.train, *data.evaluation))
    if largest >= known:
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "tokenizer and base model do not fit",
            expected=f"token ids below {known}",
            found=largest,
        )
