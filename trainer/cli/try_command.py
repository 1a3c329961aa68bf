"""`trainer try`: what an adapter changes, shown beside its base model on prompts of the provider's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.cli.console import print_json
from trainer.cli.options import Json, Quiet
from trainer.errors import DataError, ErrorCode, JobError, UsageError, missing_package

if TYPE_CHECKING:
    from trainer.cli.terminal_progress import TerminalProgress
    from trainer.data.examples.task_rows import NotJudged
    from trainer.provider.adapter_trial import AdapterTrial, TrialPrompt
    from trainer.spec import JobSpec
    from trainer.training.adapter_comparison import AdapterComparison, ComparedAnswer

_WEIGHT_PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json")


def try_adapter(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The opened result, or the directory of an adapter."),
    ],
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to ask.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", help="A data file: its rows' prompts, shown with the answers of the rows."
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option("--rows", min=1, help="How many rows of the file, from its beginning.")
    ] = 5,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="The base model's directory; without it the hub is asked for the model."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Length of an answer at most.")
    ] = 128,
    plain_text: Annotated[
        bool,
        typer.Option(
            "--plain-text",
            help="Continue each PROMPT as it is: for rows that no chat template rendered.",
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Ask the base model and the adapter the same, on this machine: GPU if there is one, otherwise CPU.

    The chat template is the one that was trained with. A base model with another digest than the adapter names is
    refused. Answers are the likeliest ones (greedy decoding).
    """
    from trainer.cli.terminal_progress import TerminalProgress
    from trainer.provider.adapter_trial import find_adapter, prompts_of_file, prompts_of_texts

    if not prompts and file is None:
        raise UsageError(
            ErrorCode.USAGE, "what to ask", expected="a PROMPT, or --file", found="neither"
        )
    trial = find_adapter(directory)
    with (
        TerminalProgress(quiet=quiet or as_json) as progress,
        _reporting_here(),
        _load(trial, model, progress) as comparison,
    ):
        asked = list(prompts_of_texts(prompts or (), comparison.tokens, plain=plain_text))
        left_out: Mapping[NotJudged, int] = {}
        if file is not None:
            from_rows, left_out = prompts_of_file(file, rows, comparison.tokens, trial.data)
            asked += from_rows
        progress.step(f"answering {len(asked)} prompts twice on {comparison.precision.device}")
        answers = list(
            comparison.compare([prompt.ids for prompt in asked], max_new_tokens=max_new_tokens)
        )
    notes = [
        *trial.notes,
        *(f"{count} rows left out: {reason.value}" for reason, count in left_out.items()),
    ]
    if as_json:
        print_json(_as_object(trial, asked, answers, notes))
    else:
        _print_answers(asked, answers, notes)


@contextmanager
def _reporting_here() -> Iterator[None]:
    """Turns the errors of the training library, which speak of a job, into errors of this command."""
    try:
        yield
    except DataError:
        raise
    except JobError as error:
        raise UsageError(
            error.code, error.message, expected=error.expected, found=error.found, hint=error.hint
        ) from error


@contextmanager
def _load(
    trial: AdapterTrial, model: Path | None, progress: TerminalProgress
) -> Iterator[AdapterComparison]:
    """Yields base model and adapter, after the digest of the base model was compared.

    Raises:
        UsageError: the packages for it are missing, the base model is not here, or it is another one.
        UnavailableError: the hub does not have it, or does not answer.
    """
    from trainer.model_files.adapter_base import joined_model, require_named_base
    from trainer.spec import Dtype

    try:
        from trainer.training.adapter_comparison import AdapterComparison
    except ModuleNotFoundError as error:
        raise missing_package(error.name, "try", "generating with the adapter") from error
    place = model or _download(trial, progress)
    progress.step(f"comparing the digest of {place} with the one that the adapter names")
    files = require_named_base(place, _model_files(trial, place), trial.base)
    progress.step("loading base model and adapter")
    dtype = trial.spec.model.dtype if trial.spec else Dtype.BFLOAT16
    with joined_model(place, files, trial.adapter) as joined:
        yield AdapterComparison.load(joined, trial.adapter, trial.data, dtype)


def _download(trial: AdapterTrial, progress: TerminalProgress) -> Path:
    """Returns the directory of the base model that the adapter names by its hub id."""
    from trainer.fetch.model_listing import download_hub_files

    name, revision = trial.base.hub_id, trial.base.revision
    if name is None or revision is None:
        raise UsageError(
            ErrorCode.USAGE,
            "the adapter names its base model by digest alone",
            expected="--model with the base model's directory",
            found="none",
            hint="the model card in the adapter's directory lists its files",
        )
    progress.step(f"asking the hub for {name} at {revision}")
    return download_hub_files(
        name, revision, _base_files(trial.spec) if trial.spec else _WEIGHT_PATTERNS
    )


def _model_files(trial: AdapterTrial, place: Path) -> Sequence[str]:
    """Returns the names of the base model's files: those of the job spec, or those that a job would load."""
    from trainer.deployment.model_pins import select_model_files
    from trainer.fetch.model_listing import list_directory
    from trainer.model_files.tensor_listing import INDEX

    listing = list_directory(place)
    if trial.spec is None:
        return select_model_files(listing.names, listing.read(INDEX))
    pinned = _base_files(trial.spec)
    if missing := sorted(set(pinned) - set(listing.names)):
        raise UsageError(
            ErrorCode.FILE_NOT_FOUND,
            f"{place} is not the base model",
            expected=f"{', '.join(pinned)}, as the job spec lists",
            found=f"no {missing[0]}",
        )
    return pinned


def _base_files(spec: JobSpec) -> tuple[str, ...]:
    """Returns the pinned files that the comparison needs: tokenizer and template come from the adapter."""
    from trainer.spec import is_base_file

    return tuple(sorted(filter(is_base_file, spec.model.model_file_sha256)))


def _as_object(
    trial: AdapterTrial,
    asked: Sequence[TrialPrompt],
    answers: Sequence[ComparedAnswer],
    notes: Sequence[str],
) -> dict[str, object]:
    return {
        "adapter_sha256": trial.sha256,
        "base_model_sha256": trial.base.sha256,
        "base_model": trial.base.hub_id,
        "answers": [
            {"prompt": prompt.text, "expected": prompt.expected, **vars(answer)}
            for prompt, answer in zip(asked, answers, strict=True)
        ],
        "notes": list(notes),
    }


def _print_answers(
    asked: Sequence[TrialPrompt], answers: Sequence[ComparedAnswer], notes: Sequence[str]
) -> None:
    """Prints each prompt, and below it the answers in columns beside each other."""
    from rich.padding import Padding
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    from trainer.cli.safe_console import SafeConsole

    console = SafeConsole(highlight=False)
    for number, (prompt, answer) in enumerate(zip(asked, answers, strict=True), 1):
        console.print(Rule(Text(f"prompt {number} of {len(asked)}"), align="left"))
        console.print(Padding(Text(prompt.text.strip()), (0, 0, 1, 2)))
        table = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False)
        columns = {"base": _shown(answer.base, is_cut=answer.base_is_cut)}
        columns["adapter"] = _shown(answer.adapter, is_cut=answer.adapter_is_cut)
        if prompt.expected is not None:
            columns["expected"] = prompt.expected
        for name in columns:
            table.add_column(name, ratio=1, overflow="fold", header_style="bold")
        table.add_row(*(Text(text.strip()) for text in columns.values()))
        console.print(Padding(table, (0, 0, 1, 2)))
    for note in notes:
        console.print(Text(f"note: {note}"))


def _shown(answer: str, *, is_cut: bool) -> str:
    return f"{answer} …" if is_cut else answer
