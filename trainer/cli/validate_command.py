"""`trainer validate`: read a dataset as the job will, on the provider's machine, and report what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.cli.console import print_json
from trainer.cli.options import (
    AdapterDir,
    ImportedRecord,
    Json,
    Quiet,
    RecordFile,
    load_attestation,
    require_absent,
)
from trainer.errors import DataError, ErrorCode, ExitCode, JobError, UsageError, install_command

if TYPE_CHECKING:
    from trainer.data.examples.model_tokenizer import ModelTokenizer
    from trainer.model_files.model_check import ModelFiles
    from trainer.spec import DataSection, JobSpec
    from trainer.validation.survey import Survey


def validate_dataset(
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Data files, or folders of them: JSONL, JSON, CSV, TSV, Parquet, Arrow; .gz of the text."
        ),
    ],
    job: Annotated[
        Path | None,
        typer.Option(
            "--job",
            help="The job spec that the data is for; not needed where --attestation has it.",
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="Goes with --attestation: what you demand of the job."),
    ] = None,
    attestation: RecordFile = None,
    imported: ImportedRecord = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            help="The base model's directory, if job.yaml names no local one; weights are not needed.",
        ),
    ] = None,
    adapter: AdapterDir = None,
    example: Annotated[
        int | None,
        typer.Option(
            "--example", min=0, help="Show this row as the model will see it; rows count from 0."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", help="Also write the report as a new HTML page; it quotes the example."
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Read and tokenise every row as the job will: on this machine, without a GPU, before anything is sent."""
    from trainer.cli import validation_output as output
    from trainer.cli.terminal_progress import TerminalProgress
    from trainer.cli.validation_page import render_page_html
    from trainer.model_files.start_adapter import check_start_adapter, take_start_adapter
    from trainer.provider import find_data_files, write_private_file
    from trainer.validation.row_reports import as_local_refusal
    from trainer.validation.survey import survey

    if html is not None:
        require_absent(html)
    spec = _read_spec(job, policy, attestation, imported)
    files, start = take_start_adapter(find_data_files(data, adapter), spec)
    try:
        base = _load_local_model(spec, job, model)
        checked = check_start_adapter(start, spec, base.files) if start else None
    except JobError as error:
        raise as_local_refusal(error) from error
    total, done = sum(path.stat().st_size for path in files.values()), 0

    with TerminalProgress(quiet=quiet or as_json) as report:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            report.bytes_done("validating", min(done, total), total)

        found = survey(files, spec, base.tokens, base.config, example=example or 0, advance=advance)
    found.warnings += (*base.warnings, *(checked.warnings() if checked else ()))
    result = output.ValidationReport(
        spec,
        found,
        base.tokens,
        base.config,
        base.unknown,
        base.targets,
        show_example=example is not None or not as_json,
        start_adapter=checked,
    )
    if html is not None:
        write_private_file(html, render_page_html(result).encode())
    if as_json:
        print_json(result.as_json())
        raise typer.Exit(int(ExitCode.LOCAL_DATA if found.first_problem else ExitCode.DONE))
    output.print_validation(result)
    _raise_first_problem(found)


def _read_spec(
    job: Path | None, policy: Path | None, attestation: Path | None, imported: Path | None
) -> JobSpec:
    """Returns the job spec: of the file that is named, or of the verified job.

    Raises:
        UsageError: neither is named, or the measured compose text of the job does not have its spec.
        VerificationError: the record does not pass under the policy, or is of another spec than the file's.
    """
    from trainer.spec import read_job_spec

    given = {
        "--job": job,
        "--policy": policy,
        "--attestation": attestation,
        "--import-record": imported,
    }
    named = [name for name, value in given.items() if value is not None]
    if job is not None and len(named) == 1:
        return read_job_spec(job)
    if policy is None or len(named) == 1:
        raise UsageError(
            ErrorCode.USAGE,
            "the job spec that the data is for",
            expected="--job, or --attestation with --policy, or all three",
            found=" and ".join(named) or "none of them",
        )
    # Only here: what appraises evidence takes longer to import than all that validates rows.
    from trainer.provider import attested_job_spec

    spec = attested_job_spec(load_attestation(attestation, imported, policy), job)
    if spec is None:
        raise UsageError(
            ErrorCode.USAGE,
            "the measured compose text of the verified job does not have its spec",
            expected="--job with a copy, whose digest is compared",
            found="none",
        )
    return spec


def _raise_first_problem(found: Survey) -> None:
    problem = found.first_problem
    if problem is None:
        return
    count = found.refusals.codes.total()
    if count > 1:
        raise DataError(
            problem.code,
            f"{problem.reason} (the first of {count} problems)",
            file=problem.file,
            row=problem.row,
            field=problem.field,
            expected=problem.expected,
            found=problem.found,
            hint=problem.hint,
        )
    raise problem


@dataclass(frozen=True)
class _LocalModel:
    """What is known of the base model on this machine.

    Args:
        tokens: its tokenizer; None if it is not here.
        config: its config.json; None if it is not here.
        unknown: why nothing is known.
        warnings: what the provider should know of it.
        targets: name in `lora.lora_target_modules` → number of modules that it selects.
        files: what its files say; None if they are not here.
    """

    tokens: ModelTokenizer | None = None
    config: Mapping[str, Any] | None = None
    unknown: str = ""
    warnings: tuple[str, ...] = ()
    targets: Mapping[str, int] = field(default_factory=dict)
    files: ModelFiles | None = None


def _load_local_model(spec: JobSpec, job: Path | None, chosen: Path | None) -> _LocalModel:
    """Loads tokenizer and configuration of the base model as the job will see them.

    Raises:
        UsageError: the model's files are here but are not those of the job spec.
        JobError: they cannot be used, in the job neither.
    """
    from trainer.model_files.lora_targets import count_targets, placement_warnings
    from trainer.model_files.model_check import check_model_files
    from trainer.validation.model_files import files_of_the_job, find_model

    directory = find_model(spec, job, chosen)
    if directory is None:
        return _LocalModel(
            unknown="the base model is not here; --model DIR takes a directory with its small files"
        )
    if any(find_spec(package) is None for package in ("tokenizers", "jinja2")):
        return _LocalModel(unknown=f"this needs {install_command('validate')}")
    with files_of_the_job(directory, spec) as files:
        found = check_model_files(files, spec.model.model_file_sha256, spec)
        tokens = _load_tokenizer(files, spec.data)
        if found.tensors is None:
            return _LocalModel(tokens, found.config, files=found)
        warnings, targets = (
            placement_warnings(found.tensors, spec.lora),
            count_targets(spec.lora, found.tensors),
        )
        return _LocalModel(tokens, found.config, warnings=warnings, targets=targets, files=found)


def _load_tokenizer(files: Path, data: DataSection) -> ModelTokenizer:
    from trainer.data.examples.tokenizer_files import TOKENIZER_FILE, read_tokenizer

    if not (files / TOKENIZER_FILE).is_file():
        raise UsageError(
            ErrorCode.USAGE,
            "tokens cannot be counted here",
            expected=f"{TOKENIZER_FILE} among model.model_file_sha256",
            found="none",
            hint="only the job can read other tokenizers; convert this one",
        )
    return read_tokenizer(files, data)
