"""One order from beginning to end: rows → examples → trained adapter and report."""

from __future__ import annotations

import platform
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from trainer.worker.checkpoint import Kept, Resumption, Saver, read_state
from trainer.worker.dataset import Dataset, build_dataset
from trainer.worker.interruption import Interruption, Interrupts
from trainer.worker.loop import Training
from trainer.worker.loss import CausalLoss
from trainer.worker.merged import save_merged
from trainer.worker.model import Loader, Precision, check_model_dir, choose_precision, raise_if_out_of_memory
from trainer.worker.packing import best_fit_decreasing
from trainer.worker.preference import Preference, pairs_of
from trainer.worker.progress import Outcome, TrainState
from trainer.worker.protocol import Message, Order
from trainer.worker.ranks import ALONE, Ranks
from trainer.worker.report import Recorder, write_report
from trainer.worker.samples import Sampler
from trainer.worker.sharding import described, loading, shard
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
    interrupts: Interrupts | None = None,
    ranks: Ranks = ALONE,
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

    Returns:
        What `report/summary.json` holds.

    Raises:
        JobError: the model, the data or the training failed, each with its code.
    """
    spec = order.spec
    _seed(spec.train.seed)
    with watch.part("tokenize"):
        check_model_dir(order.model_dir)
        tokens = load_tokens(order.model_dir, spec.data.chat_template)
        data = build_dataset(rows, tokens, spec.data, seed=spec.train.seed, method=spec.train.method)
    try:
        return _train(order, loader, tokens, data, watch, report, interrupts or Interrupts(), ranks)
    except (RuntimeError, MemoryError) as error:
        raise_if_out_of_memory(error)
        raise


def _train(
    order: Order,
    loader: Loader,
    tokens: Tokens,
    data: Dataset,
    watch: Stopwatch,
    report: Callable[[Message], None],
    interrupts: Interrupts,
    ranks: Ranks,
) -> Summary:
    spec = order.spec
    precision, warnings = choose_precision(spec)
    with watch.part("load"):
        model = loader.load(order.model_dir, spec, loading(precision, ranks))
        shard(model, precision, ranks)
        _check_vocabulary(model, data)
        start = _start(model, order)
        loss = _loss(model, precision, data, tokens, spec, fused=loader.name != "unsloth" and not ranks.sharded)
    sampler = _sampler(model, tokens, precision, data, spec)
    earlier = _earlier(model, order)
    with watch.part("sample"):
        samples = earlier.samples if earlier else sampler.before()
    resumed_at = earlier.resumed_at if earlier else ()
    preference = _preference(data, loss, spec, precision, watch)
    bins = pairs_of(len(data.train)) if preference else _bins(data, spec.data)
    with Recorder(order.output_dir / "report", report, earlier.metrics if earlier else ()) as recorder:
        kept = Kept(recorder.metrics, samples, resumed_at)
        saver = Saver(order.output_dir, tuple(_trained(model)), kept, tell=report, interrupts=interrupts)
        training = Training(
            model,
            loss,
            data,
            spec.train,
            report=recorder,
            bins=bins,
            preference=preference,
            ranks=ranks,
            save=saver.save if ranks.rank == 0 else _leave,
            interrupts=interrupts,
        )
        if earlier:
            training.restore(earlier.state)
        with _saved_if_interrupted(training, saver):
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
            if ranks.rank == 0:
                _save(model, order, start, watch)
    environment = _environment(loader, precision, loss) | described(ranks)
    summary = _summary(
        outcome, data, watch, environment, (*data.warnings, *warnings, *outcome.warnings), resumed_at
    )
    if ranks.rank:
        return summary
    write_report(order.output_dir / "report", summary, recorder.metrics, spec, samples)
    (order.output_dir / "adapter" / "README.md").write_text(model_card(summary, spec), encoding="utf-8")
    return summary


def _save(model: Any, order: Order, start: Path | None, watch: Stopwatch) -> None:
    with watch.part("save"):
        save_adapter(model, order.spec.model, order.output_dir / "adapter", start=start)
    if order.spec.output.merged_16bit:
        with watch.part("merge"):
            save_merged(order.model_dir, order.output_dir / "adapter", order.output_dir / "merged")


def _leave(_state: TrainState) -> None:
    """The first process saves the state: it is that of all."""


def _trained(model: Any) -> dict[str, Any]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _earlier(model: Any, order: Order) -> Resumption | None:
    """What the run was when it was interrupted."""
    return None if order.resume_dir is None else read_state(order.resume_dir, _trained(model))


@contextmanager
def _saved_if_interrupted(training: Training, saver: Saver) -> Iterator[None]:
    """Whenever a signal comes: what was trained up to the last whole step is kept."""
    try:
        yield
    except Interruption:
        if (state := training.sound_state()) is not None:
            saver.save(state)
        raise


def _sampler(model: Any, tokens: Tokens, precision: Precision, data: Dataset, spec: JobSpec) -> Sampler:
    output = spec.output
    return Sampler(
        model,
        tokens,
        precision,
        data.evaluation[:: 2 if spec.train.method == "dpo" else 1],  # the chosen answers
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


def _preference(
    data: Dataset, loss: CausalLoss, spec: JobSpec, precision: Precision, watch: Stopwatch
) -> Preference | None:
    """The method `dpo`; made while the adapter is fresh. Its reference is the base model."""
    if spec.train.method != "dpo":
        return None
    reference = loss.evaluating if spec.lora.changes_base else loss.unadapted
    with watch.part("reference"):
        return Preference(data, loss, spec.train, reference=reference, device=precision.device)


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
    resumed_at: tuple[int, ...],
) -> Summary:
    return Summary(
        eval_loss_before=outcome.eval_loss_before,
        eval_loss_after=outcome.eval_loss_after,
        train_loss=outcome.train_loss,
        trained_tokens=outcome.trained_tokens,
        input_tokens=outcome.input_tokens,
        steps=outcome.steps,
        pairs=outcome.pairs,
        rows=data.rows.as_dict(),
        tokens=describe_lengths((*data.train, *data.evaluation)),
        seconds=watch.read(),
        environment=environment,
        warnings=warnings,
        resumed_at=resumed_at,
    )
