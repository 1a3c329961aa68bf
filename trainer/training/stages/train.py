"""The third stage: training, between samples and audits before and after it, up to the adapter on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from trainer.errors import JobError
from trainer.spec import JobSpec
from trainer.training.adapter import save_adapter
from trainer.training.checkpoint import CheckpointWriter, SavedState
from trainer.training.events import MetricsMeasured
from trainer.training.interruption import Interruption
from trainer.training.loop import Trainer
from trainer.training.merged import save_merged
from trainer.training.methods.method import Method, MethodInputs
from trainer.training.methods.registry import METHODS
from trainer.training.privacy.memorisation_audit import MemorisationAudit
from trainer.training.privacy.privacy_findings import Privacy
from trainer.training.privacy.stages import judge_privacy, private_step_policy
from trainer.training.progress import TrainingOutcome, TrainState
from trainer.training.report.html_report import MetricsRecorder
from trainer.training.report.samples import Sample, Sampler
from trainer.training.run_inputs import RunInputs
from trainer.training.stages.load import LoadedModel, trained_parameters
from trainer.training.stages.prepare import PreparedData
from trainer.training.stages.run_context import RunContext
from trainer.training.step_policy import PlainStepPolicy, StepPolicy


@dataclass(frozen=True)
class TrainedModel:
    """What training led to; the adapter is on disk unless it is withheld.

    Attributes:
        outcome: the numbers of the training.
        metrics: everything that was logged.
        samples: answers before and after training.
        privacy: what is known of the privacy of the weights.
        withheld: why the adapter must not be handed out.
        probe_losses: losses of the audited rows, by group.
    """

    outcome: TrainingOutcome
    metrics: Sequence[MetricsMeasured]
    samples: tuple[Sample, ...]
    privacy: Privacy | None
    withheld: JobError | None
    probe_losses: dict[str, list[float]]


def train(inputs: RunInputs, data: PreparedData, loaded: LoadedModel, context: RunContext) -> TrainedModel:
    """Train, sample, audit, and save the adapter unless the audit withholds it.

    A signal anywhere from the first step to the saved adapter leaves a checkpoint.

    Raises:
        JobError: `TRAINING_DIVERGED` (the last finite adapter is saved), a privacy code, or `OUT_OF_MEMORY`.
        Interruption: a signal came.
    """
    spec, resumed = inputs.spec, loaded.resumed
    sampler = _make_sampler(data, loaded, spec)
    with context.watch.part("sample"):
        samples = resumed.samples if resumed else sampler.sample_before_training()
    audit = MemorisationAudit(
        loaded.loss, data.probes, repetitions=spec.privacy.canary_repetitions, device=loaded.precision.device
    )
    with _timed_audit(spec, context):
        audit.before()
    earlier_metrics = resumed.metrics if resumed else ()
    with MetricsRecorder(inputs.output_dir / "report", context.report, earlier_metrics) as recorder:
        saved = SavedState(recorder.metrics, samples, resumed.resumed_at if resumed else (), data.probe_seed)
        parameters = tuple(trained_parameters(loaded.model))
        checkpoints = CheckpointWriter(
            inputs.output_dir, parameters, saved, report=context.report, interrupts=context.interrupts
        )
        trainer = _make_trainer(data, loaded, spec, context, recorder, checkpoints)
        if resumed:
            trainer.restore(resumed.state)
        with _checkpoint_if_interrupted(trainer, checkpoints):
            outcome = _run_trainer(trainer, inputs, loaded, context)
            with context.watch.part("sample"):
                samples = sampler.sample_after_training(samples)
            with _timed_audit(spec, context):
                privacy, withheld = judge_privacy(spec.privacy, trainer, audit)
            if withheld is None and context.ranks.rank == 0:
                _save_adapter(inputs, loaded, context)
    return TrainedModel(outcome, recorder.metrics, samples, privacy, withheld, audit.losses)


def _make_sampler(data: PreparedData, loaded: LoadedModel, spec: JobSpec) -> Sampler:
    rows_per_unit = METHODS[spec.train.method].rows_per_unit
    return Sampler(
        loaded.model,
        data.tokenizer,
        loaded.precision,
        data.dataset.evaluation[::rows_per_unit],
        count=spec.output.samples,
        max_new_tokens=spec.output.sample_max_new_tokens,
        starts_as_base=spec.lora.starts_as_base,
    )


def _timed_audit(spec: JobSpec, context: RunContext) -> AbstractContextManager[None]:
    return context.watch.part("audit") if spec.privacy.enabled else nullcontext()


def _make_trainer(
    data: PreparedData,
    loaded: LoadedModel,
    spec: JobSpec,
    context: RunContext,
    recorder: MetricsRecorder,
    checkpoints: CheckpointWriter,
) -> Trainer:
    method = _make_method(data, loaded, spec, context)
    policy: StepPolicy
    if spec.privacy.differential:
        policy = private_step_policy(loaded.model, loaded.loss, data.dataset.train, spec)
    else:
        policy = PlainStepPolicy(loaded.model, method, data.dataset.train, spec.train, ranks=context.ranks)
    return Trainer(
        loaded.model,
        method,
        policy,
        spec.train,
        report=recorder,
        save=checkpoints.save if context.ranks.rank == 0 else _drop_state,
        interrupts=context.interrupts,
    )


def _make_method(data: PreparedData, loaded: LoadedModel, spec: JobSpec, context: RunContext) -> Method:
    method = METHODS[spec.train.method]
    # Where the adapter's initialisation changed the base weights, both together compute what the base model did.
    reference = loaded.loss.evaluating if spec.lora.changes_base else loaded.loss.adapter_disabled
    inputs = MethodInputs(
        data.dataset,
        loaded.loss,
        spec.train,
        loaded.precision.device,
        data=spec.data,
        reference=reference,
        ranks=context.ranks,
    )
    with context.watch.part("reference") if method.uses_reference else nullcontext():
        return method(inputs)


def _drop_state(_state: TrainState) -> None:
    """Save nothing: rank 0 saves the state, which is the same on all."""


@contextmanager
def _checkpoint_if_interrupted(trainer: Trainer, checkpoints: CheckpointWriter) -> Iterator[None]:
    """Save the state after the last complete step where a signal ends the block."""
    try:
        yield
    except Interruption:
        if (state := trainer.resumable_state()) is not None:
            checkpoints.save(state)
        raise


def _run_trainer(trainer: Trainer, inputs: RunInputs, loaded: LoadedModel, context: RunContext) -> TrainingOutcome:
    adapter_dir = inputs.output_dir / "adapter"
    try:
        outcome = trainer.run()
    except JobError:
        if trainer.last_finite_step:
            save_adapter(loaded.model, inputs.spec.model, adapter_dir, initial=loaded.initial_adapter)
        raise
    context.watch.put("train", outcome.train_seconds)
    context.watch.put("eval", outcome.eval_seconds)
    return outcome


def _save_adapter(inputs: RunInputs, loaded: LoadedModel, context: RunContext) -> None:
    adapter_dir = inputs.output_dir / "adapter"
    with context.watch.part("save"):
        save_adapter(loaded.model, inputs.spec.model, adapter_dir, initial=loaded.initial_adapter)
    if inputs.spec.output.merged_16bit:
        with context.watch.part("merge"):
            save_merged(inputs.model_dir, adapter_dir, inputs.output_dir / "merged")
