"""One order from beginning to end: rows → examples → trained adapter and report."""

from __future__ import annotations

import platform
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from trainer.errors import ErrorCode, JobError
from trainer.rows import Row
from trainer.spec import DataSection, JobSpec
from trainer.worker.adapter import save_adapter, save_start
from trainer.worker.card import model_card
from trainer.worker.dataset import Dataset, build_dataset
from trainer.worker.loss import CausalLoss
from trainer.worker.merged import save_merged
from trainer.worker.model import Loader, Precision, check_model_dir, choose_precision, raise_if_out_of_memory
from trainer.worker.packing import best_fit_decreasing
from trainer.worker.privacy.audit import Audit, Probes, prepare
from trainer.worker.privacy.findings import Privacy
from trainer.worker.privacy.stages import conclude, make_training, require_engine
from trainer.worker.progress import Outcome
from trainer.worker.protocol import Message, Order
from trainer.worker.report import Recorder, write_report
from trainer.worker.samples import Sampler
from trainer.worker.stopwatch import Stopwatch
from trainer.worker.summary import Summary, describe_lengths
from trainer.worker.tokens import Tokens, load_tokens


def run(
    order: Order,
    rows: list[Row],
    loader: Loader,
    *,
    report: Callable[[Message], None],
    watch: Stopwatch,
) -> Summary:
    """Carry out an order.

    Args:
        order: what to do, and where everything is.
        rows: the dataset, parsed.
        loader: engine that loads the base model.
        report: gets progress and metrics.
        watch: runs since the order arrived.

    Returns:
        What `report/summary.json` holds.

    Raises:
        JobError: the model, the data or the training failed, each with its code.
    """
    spec = order.spec
    require_engine(spec.privacy)
    _seed(spec.train.seed)
    with watch.part("tokenize"):
        check_model_dir(order.model_dir)
        tokens = load_tokens(order.model_dir, spec.data.chat_template)
        data = build_dataset(rows, tokens, spec.data, seed=spec.train.seed)
        data, probes = prepare(data, rows, tokens, (spec.privacy, spec.data))
    try:
        return _train(order, loader, tokens, data, probes, watch, report)
    except (RuntimeError, MemoryError) as error:
        raise_if_out_of_memory(error)
        raise


def _train(
    order: Order,
    loader: Loader,
    tokens: Tokens,
    data: Dataset,
    probes: Probes,
    watch: Stopwatch,
    report: Callable[[Message], None],
) -> Summary:
    spec = order.spec
    precision, warnings = choose_precision(spec)
    with watch.part("load"):
        model = loader.load(order.model_dir, spec, precision)
        _check_vocabulary(model, data)
        start = _start(model, order)
        loss = _loss(model, precision, data, tokens, spec, fused=_may_fuse(loader, spec))
    sampler = _sampler(model, tokens, precision, data, spec)
    with watch.part("sample"):
        samples = sampler.before()
    audit = Audit(loss, probes, repetitions=spec.privacy.canary_repetitions, device=precision.device)
    with _audited(spec, watch):
        audit.before()
    with Recorder(order.output_dir / "report", report) as recorder:
        training = make_training(model, loss, data, spec, recorder, _bins(data, spec.data))
        try:
            outcome = training.run()
        except JobError:
            if training.sound_step:
                save_adapter(model, spec.model, order.output_dir / "adapter", start=start)
            raise
    watch.put("train", outcome.train_seconds)
    watch.put("eval", outcome.eval_seconds)
    with watch.part("sample"):
        samples = sampler.after(samples)
    with _audited(spec, watch):
        privacy, withheld = conclude(spec.privacy, training, audit)
    if withheld is None:
        _save(model, order, start, watch)
    environment = _environment(loader, precision, loss)
    summary = _summary(outcome, data, watch, environment, (*data.warnings, *warnings, *outcome.warnings), privacy)
    write_report(order.output_dir / "report", summary, recorder.metrics, spec, samples, audit.losses)
    if withheld is not None:
        raise withheld
    (order.output_dir / "adapter" / "README.md").write_text(model_card(summary, spec), encoding="utf-8")
    return summary


def _audited(spec: JobSpec, watch: Stopwatch) -> AbstractContextManager[None]:
    return watch.part("audit") if spec.privacy.asked else nullcontext()


def _save(model: Any, order: Order, start: Path | None, watch: Stopwatch) -> None:
    with watch.part("save"):
        save_adapter(model, order.spec.model, order.output_dir / "adapter", start=start)
    if order.spec.output.merged_16bit:
        with watch.part("merge"):
            save_merged(order.model_dir, order.output_dir / "adapter", order.output_dir / "merged")


def _sampler(model: Any, tokens: Tokens, precision: Precision, data: Dataset, spec: JobSpec) -> Sampler:
    output = spec.output
    return Sampler(
        model,
        tokens,
        precision,
        data.evaluation,
        count=output.samples,
        max_new_tokens=output.sample_max_new_tokens,
    )


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it
    # On CPU every operation used here has a deterministic form; on a GPU some have none, and say so in the log.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())


def _start(model: Any, order: Order) -> Path | None:
    if not order.spec.lora.changes_base:
        return None
    start = order.output_dir / ".scratch" / "start"
    save_start(model, start)
    return start


def _loss(
    model: Any, precision: Precision, data: Dataset, tokens: Tokens, spec: JobSpec, *, fused: bool
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
    )


def _may_fuse(loader: Loader, spec: JobSpec) -> bool:
    """Gradients of single rows are taken at the model's own modules."""
    return loader.name != "unsloth" and not spec.privacy.differential


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


def _environment(loader: Loader, precision: Precision, loss: CausalLoss) -> dict[str, str]:
    gpu = precision.device.type == "cuda"
    return {
        "engine": loader.name,
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        "weights": str(precision.weights).removeprefix("torch."),
        "autocast": "bfloat16" if precision.autocast else "off",
        "forward": loss.way,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def _summary(
    outcome: Outcome,
    data: Dataset,
    watch: Stopwatch,
    environment: dict[str, str],
    warnings: tuple[str, ...],
    privacy: Privacy | None,
) -> Summary:
    return Summary(
        eval_loss_before=outcome.eval_loss_before,
        eval_loss_after=outcome.eval_loss_after,
        train_loss=outcome.train_loss,
        trained_tokens=outcome.trained_tokens,
        input_tokens=outcome.input_tokens,
        steps=outcome.steps,
        rows=data.rows.as_dict(),
        tokens=describe_lengths((*data.train, *data.evaluation)),
        seconds=watch.read(),
        environment=environment,
        warnings=warnings,
        privacy=privacy,
    )
