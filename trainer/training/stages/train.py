"""The third stage: samples and an audit, training, then both again, and the adapter on disk."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from trainer.data.examples.held_out import choose_evaluated
from trainer.data.examples.tokenizer_files import chosen_template
from trainer.errors import JobError
from trainer.model_files.companion_files import copy_companions
from trainer.models import Activity
from trainer.spec import JobSpec
from trainer.training.adapter import save_adapter
from trainer.training.checkpoint import CheckpointWriter, ResumedState, SavedState
from trainer.training.events import MetricsMeasured, PreparationAdvanced
from trainer.training.interruption import Interruption
from trainer.training.loop import Trainer
from trainer.training.merged import save_merged
from trainer.training.methods.method import MethodInputs
from trainer.training.methods.registry import METHODS
from trainer.training.privacy.memorisation_audit import MemorisationAudit
from trainer.training.privacy.privacy_findings import Privacy
from trainer.training.privacy.stages import judge_privacy, private_step_policy
from trainer.training.progress import TrainingOutcome
from trainer.training.report.metrics_recorder import MetricsRecorder
from trainer.training.report.samples import Sample, Sampler
from trainer.training.report.summary import shared_metrics
from trainer.training.run_inputs import RunInputs
from trainer.training.stages.load import LoadedModel, trained_parameters
from trainer.training.stages.prepare import PreparedData
from trainer.training.stages.run_context import RunContext
from trainer.training.step_policy import PlainStepPolicy, StepPolicy
from trainer.training.task_evaluation import TaskComparison, TaskEvaluation
from trainer.training.task_summary import TaskFigures


@dataclass(frozen=True)
class TrainedModel:
    """The result of training; the adapter is on disk unless it is withheld.

    Attributes:
        outcome: the numbers of the training.
        metrics: all logged metrics.
        samples: answers before and after training.
        privacy: the findings on the privacy of the weights; None where the spec asks for none.
        withheld: the reason why the adapter must not be released; None if it may be.
        probe_losses: losses of the audited rows, by group.
        task: the task metrics before and after training; None without `evaluation.metrics`.
    """

    outcome: TrainingOutcome
    metrics: Sequence[MetricsMeasured]
    samples: tuple[Sample, ...]
    privacy: Privacy | None
    withheld: JobError | None
    probe_losses: dict[str, list[float]]
    task: TaskComparison | None


def train(
    inputs: RunInputs, data: PreparedData, loaded: LoadedModel, context: RunContext
) -> TrainedModel:
    """Trains, samples, audits, and saves the adapter unless the audit withholds it.

    A signal anywhere from the first step to the saved adapter leaves a checkpoint.

    Raises:
        JobError: `TRAINING_DIVERGED` (the last finite adapter is saved), a privacy code, or `OUT_OF_MEMORY`.
        Interruption: a signal came.
    """
    spec, resumed = inputs.spec, loaded.resumed
    comparisons = _Comparisons(spec, data, loaded, context)
    comparisons.before(resumed)
    shared = shared_metrics(METHODS[spec.train.method]) if spec.exchange.joint else None
    earlier_metrics = resumed.metrics if resumed else ()
    with MetricsRecorder(
        inputs.output_dir / "report", context.report, earlier_metrics, shared=shared
    ) as recorder:
        saved = SavedState(
            recorder.metrics,
            comparisons.samples,
            resumed.resumed_at if resumed else (),
            data.probe_seed,
            comparisons.task_before,
        )
        checkpoints = CheckpointWriter(
            inputs.output_dir,
            tuple(trained_parameters(loaded.model)),
            saved,
            report=context.report,
            interrupts=context.interrupts,
        )
        # The method computes a reference with the initial adapter, so the checkpoint is restored only after it.
        trainer = _make_trainer(data, loaded, spec, context, recorder, checkpoints)
        if resumed:
            trainer.restore(resumed.state)
        try:
            outcome = _run_trainer(trainer, inputs, loaded, context)
            comparisons.after()
            # The judgement comes before the first byte of the adapter is written: an adapter that is withheld
            # never reaches the disk. An error of `judge_privacy` has the same effect.
            with comparisons.timed_audit():
                privacy, withheld = judge_privacy(spec.privacy, trainer, comparisons.audit)
            if withheld is None and context.ranks.rank == 0:
                _save_adapter(inputs, loaded, context)
        except Interruption:
            # The state after the last complete step: what follows it is repeated by the resumed run.
            if (state := trainer.resumable_state()) is not None:
                checkpoints.save(state, True)
            raise
    return TrainedModel(
        outcome,
        recorder.metrics,
        tuple(comparisons.samples),
        privacy,
        withheld,
        comparisons.audit.losses,
        comparisons.task,
    )


class _Comparisons:
    """What is measured before and after training: samples, task metrics, and losses of audited rows.

    Attributes:
        samples: answers before, and from `after` on also after training.
        task_before: the task metrics before training; None without `evaluation.metrics`.
        task: the task metrics before and after training; None until `after`, or without such metrics.
        audit: the audit of memorisation.
    """

    def __init__(
        self, spec: JobSpec, data: PreparedData, loaded: LoadedModel, context: RunContext
    ) -> None:
        self._as_base, self._context = spec.lora.starts_as_base, context
        # The first row of a unit has the desired answer; its prompt is the sample's.
        rows_per_unit = METHODS[spec.train.method].rows_per_unit
        self._sampler = Sampler(
            loaded.model,
            data.tokenizer,
            loaded.precision,
            data.dataset.evaluation[::rows_per_unit],
            count=spec.output.samples,
            max_new_tokens=spec.output.sample_max_new_tokens,
            starts_as_base=spec.lora.starts_as_base,
        )
        self._evaluation = _make_task_evaluation(data, loaded, spec, context)
        self.audit = MemorisationAudit(
            loaded.loss,
            data.probes,
            repetitions=spec.privacy.canary_repetitions,
            device=loaded.precision.device,
        )
        # A report without task metrics, or without an audit, does not mention these parts.
        part = context.watch.part
        self._timed_task = partial(part, "task") if self._evaluation else nullcontext
        self.timed_audit = partial(part, "audit") if spec.privacy.enabled else nullcontext
        self.samples: Sequence[Sample] = ()
        self.task_before: TaskFigures | None = None
        self.task: TaskComparison | None = None

    def before(self, resumed: ResumedState | None) -> None:
        """Measures with the fresh adapter. A resumed run takes samples and task metrics from its checkpoint."""
        self._context.report(PreparationAdvanced(activity=Activity.EVALUATING))
        with self._context.watch.part("sample"):
            self.samples = resumed.samples if resumed else self._sampler.sample_before_training()
        with self._timed_task():
            self.task_before = resumed.task if resumed else None
            if self._evaluation and self.task_before is None:
                self.task_before = self._evaluation.measure(as_base=self._as_base).figures
        # The adapter is fresh also in a resumed run: these are the losses of the base model. Section `privacy`
        # excludes an earlier adapter.
        with self.timed_audit():
            self.audit.before()

    def after(self) -> None:
        """Measures samples and task metrics with the trained adapter."""
        with self._context.watch.part("sample"):
            self.samples = self._sampler.sample_after_training(self.samples)
        with self._timed_task():
            if self._evaluation and self.task_before:
                self.task = self._evaluation.compare(self.task_before)


def _make_task_evaluation(
    data: PreparedData, loaded: LoadedModel, spec: JobSpec, context: RunContext
) -> TaskEvaluation | None:
    """Returns what measures the task metrics of a spec; None if it names none."""
    if not spec.evaluation.metrics:
        return None
    return TaskEvaluation(
        data.tasks,
        spec.evaluation,
        model=loaded.model,
        tokens=data.tokenizer,
        loss=loaded.loss,
        precision=loaded.precision,
        batch_rows=spec.train.per_device_eval_batch_size,
        ranks=context.ranks,
    )


def _make_trainer(
    data: PreparedData,
    loaded: LoadedModel,
    spec: JobSpec,
    context: RunContext,
    recorder: MetricsRecorder,
    checkpoints: CheckpointWriter,
) -> Trainer:
    """Returns a trainer with the method and the step policy of a spec."""
    method_class = METHODS[spec.train.method]
    evaluated = choose_evaluated(
        data.dataset.evaluation,
        spec.train.max_eval_rows,
        seed=spec.train.seed,
        rows_per_unit=method_class.rows_per_unit,
    )
    method_inputs = MethodInputs(
        replace(data.dataset, evaluation=evaluated),
        loaded.loss,
        spec.train,
        loaded.precision.device,
        data=spec.data,
        # What training starts from. Where the adapter's initialisation changed the base weights, only both
        # together compute what the base model computes by itself; and an earlier adapter is part of the start.
        reference=loaded.loss.adapter_disabled
        if spec.lora.is_fresh_on_base
        else loaded.loss.evaluating,
        ranks=context.ranks,
    )
    with context.watch.part("reference") if method_class.uses_reference else nullcontext():
        method = method_class(method_inputs)
    policy: StepPolicy
    if spec.privacy.differential:
        policy = private_step_policy(loaded.model, loaded.loss, data.dataset.train, spec)
    else:
        policy = PlainStepPolicy(
            loaded.model, method, data.dataset.train, spec.train, ranks=context.ranks
        )
    return Trainer(
        loaded.model,
        method,
        policy,
        spec.train,
        report=recorder,
        # Rank 0 saves the state, which is the same on all ranks.
        save=checkpoints.save if context.ranks.rank == 0 else lambda _state, _is_last: None,
        interrupts=context.interrupts,
    )


def _run_trainer(
    trainer: Trainer, inputs: RunInputs, loaded: LoadedModel, context: RunContext
) -> TrainingOutcome:
    """Trains. After a divergence it saves the last finite adapter, unless the spec limits what weights may reveal.

    Raises:
        JobError: `TRAINING_DIVERGED`, or the error of another part of the run.
    """
    privacy = inputs.spec.privacy
    try:
        outcome = trainer.run()
    except JobError:
        # A limit is compared with an audit after training, and no audit follows an error. As in the release gate,
        # a limit without a measurement withholds the weights.
        has_limit = privacy.max_exposure is not None or privacy.max_membership_auc is not None
        # Step 0 means that there is nothing to release: no update was finite, or the policy forbids it.
        if trainer.last_finite_step and not has_limit:
            _write_adapter(inputs, loaded)
        raise
    context.watch.put("train", outcome.train_seconds)
    context.watch.put("eval", outcome.eval_seconds)
    return outcome


def _write_adapter(inputs: RunInputs, loaded: LoadedModel) -> Path:
    """Writes the adapter with tokenizer and chat template as trained with; returns its directory."""
    adapter_dir = inputs.output_dir / "adapter"
    save_adapter(loaded.model, inputs.spec.model, adapter_dir, initial=loaded.initial_adapter)
    copy_companions(
        inputs.model_dir, adapter_dir, chosen_template(inputs.model_dir, inputs.spec.data)
    )
    return adapter_dir


def _save_adapter(inputs: RunInputs, loaded: LoadedModel, context: RunContext) -> None:
    """Writes the adapter, and the merged model if the spec asks for it."""
    with context.watch.part("save"):
        adapter_dir = _write_adapter(inputs, loaded)
    if inputs.spec.output.merged_16bit:
        with context.watch.part("merge"):
            template = chosen_template(inputs.model_dir, inputs.spec.data)
            save_merged(inputs.model_dir, adapter_dir, inputs.output_dir / "merged", template)
