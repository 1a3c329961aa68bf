"""The last stage: writes the report and the model card."""

from __future__ import annotations

from trainer.data.examples.held_out import evaluated_warnings
from trainer.encoding import without_controls
from trainer.training.methods.registry import METHODS
from trainer.training.report.html_report import write_report, write_shown_json
from trainer.training.report.model_card import render_model_card
from trainer.training.report.summary import (
    Summary,
    describe_environment,
    shared_by_providers,
    summarize,
)
from trainer.training.run_inputs import RunInputs
from trainer.training.stages.load import LoadedModel
from trainer.training.stages.prepare import PreparedData
from trainer.training.stages.run_context import RunContext
from trainer.training.stages.train import TrainedModel


def write(
    inputs: RunInputs,
    data: PreparedData,
    loaded: LoadedModel,
    trained: TrainedModel,
    context: RunContext,
) -> Summary:
    """Writes the report and the model card on rank 0, and returns the summary on every rank.

    Raises:
        JobError: `RELEASE_WITHHELD`, after the report is written.
    """
    environment = describe_environment(
        loaded.engine, loaded.precision, loaded.loss, context.allocator
    )
    if context.ranks.size > 1:
        environment |= {
            "processes": str(context.ranks.size),
            "base": "spread over all" if context.ranks.sharded else "whole in each",
        }
    units = len(data.dataset.evaluation) // METHODS[inputs.spec.train.method].rows_per_unit
    evaluated = evaluated_warnings(units, inputs.spec.train.max_eval_rows)
    summary = summarize(
        trained.outcome,
        data.dataset,
        context.watch.read(),
        environment,
        loaded.placement.describe() | (data.start_adapter.describe() if data.start_adapter else {}),
        (*data.dataset.warnings, *evaluated, *loaded.warnings, *trained.outcome.warnings),
        trained.privacy,
        loaded.resumed.resumed_at if loaded.resumed else (),
        trained.task.summary if trained.task else None,
    )
    if inputs.spec.exchange.joint:
        summary = shared_by_providers(summary, METHODS[inputs.spec.train.method])
    if context.ranks.rank:
        return summary
    report_dir = inputs.output_dir / "report"
    write_report(
        report_dir, summary, trained.metrics, inputs.spec, trained.samples, trained.probe_losses
    )
    if trained.task is not None:
        write_shown_json(report_dir / "task.json", trained.task.answers)
    # After the report, which says why: it is sealed with the failure. There is no adapter for a model card.
    if trained.withheld is not None:
        raise trained.withheld
    card = without_controls(render_model_card(summary, inputs.spec))
    (inputs.output_dir / "adapter" / "README.md").write_text(card, encoding="utf-8")
    return summary
