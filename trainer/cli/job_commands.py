"""The `job` commands: the operator writes job.yaml, pins the base model, and renders what the VM measures."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.cli.console import print_json, print_line
from trainer.cli.local_job import local_commands, local_compose, render_local_compose
from trainer.cli.options import Json, Quiet
from trainer.cli.render_command import render_job
from trainer.errors import DataError, ErrorCode, UsageError

if TYPE_CHECKING:
    from trainer.cli.terminal_progress import TerminalProgress
    from trainer.deployment import ModelPins
    from trainer.fetch.model_listing import ModelListing

job_app = typer.Typer(
    help="For the operator: write job.yaml, pin its model, render app-compose.json.",
    no_args_is_help=True,
)


@job_app.command("init")
def init_job(
    model: Annotated[
        str,
        typer.Argument(
            help="Base model: a hub id such as org/name, or a directory such as ./model."
        ),
    ],
    data: Annotated[
        Path, typer.Argument(help="A data file, or a sample with a few rows of the same kind.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The job spec; never overwritten.")
    ] = Path("job.yaml"),
    chat_template: Annotated[
        Path | None,
        typer.Option(
            "--chat-template",
            help="A file of Jinja text that renders conversations instead of the model's template.",
        ),
    ] = None,
    local: Annotated[
        bool,
        typer.Option(
            "--local",
            help="To try it on this machine: pin the model, write app-compose.json beside the job spec, and print "
            "the commands that follow (docs/try-it.md).",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a commented job.yaml for a model and a dataset. `job pin` then fills in the digests."""
    from trainer.cli.terminal_progress import TerminalProgress
    from trainer.deployment import pin_model, read_chat_template_path, render_job_template
    from trainer.provider import read_text_file, require_absent
    from trainer.spec import parse_job_spec

    for path in (output, local_compose(output)) if local else (output,):
        require_absent(path)
    kind = _detect_row_kind(data)
    template = None if chat_template is None else read_text_file(chat_template, "chat template")
    options = {"host": "127.0.0.1"} if local else {}
    text = render_job_template(model, kind, template, **options)
    parse_job_spec(text.encode())  # refuses a model name that no job spec may have
    if local:
        with (
            TerminalProgress(quiet=as_json) as progress,
            _open_listing(output, model, None, None, None) as listing,
        ):
            text = pin_model(text, _hash_files(listing, read_chat_template_path(text), progress))
    _write_public(output, text.encode())
    if local:
        _write_public(local_compose(output), render_local_compose(text))
    if as_json:
        print_json({"job": str(output), "model_name_or_path": model, "format": kind})
        return
    print_line(
        f"wrote {output} for rows of the kind {kind}; now{':' if local else f': trainer job pin {output}'}"
    )
    for line in local_commands(output, data) if local else ():
        print_line(line)


def _write_public(path: Path, data: bytes) -> None:
    from trainer.provider import write_private_file

    write_private_file(path, data)  # never over another file
    path.chmod(0o644)


def _detect_row_kind(path: Path) -> str:
    """Returns the kind of the first row of a data file."""
    from trainer.data.rows import RowSchema, scan_rows
    from trainer.data.rows.kinds import ROW_KINDS

    if not path.is_file():
        raise UsageError(ErrorCode.FILE_NOT_FOUND, f"{path} is not a file")
    # No set of keys belongs to two kinds, so at most one of them accepts the row.
    try:
        for name in ROW_KINDS:
            first = next(scan_rows(path, name=path.name, schema=RowSchema(format=name)))
            if not isinstance(first, DataError):
                return name
        first = next(scan_rows(path, name=path.name))
    except DataError as error:  # no format has this suffix
        first = error
    raise UsageError(
        ErrorCode.USAGE,
        f"the kind of the rows is not clear: {first}",
        hint="docs/data.md lists the kinds of rows; data.columns of job.yaml renames columns",
    )


@job_app.command("pin")
def pin_job(
    job: Annotated[Path, typer.Argument(help="job.yaml; edited in place, comments stay.")],
    directory: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="Hash the files in this directory instead of asking the hub.",
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            help="Commit, branch or tag of the hub; without it the revision in job.yaml, or the default branch.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write here instead of into job.yaml itself."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fill in the revision and the SHA-256 of every file that the job will load.

    Digests of large files come from the hub's metadata; small files are downloaded and hashed.
    """
    from trainer.cli.terminal_progress import TerminalProgress
    from trainer.deployment import pin_model, read_chat_template_path, read_model_name
    from trainer.provider import read_text_file
    from trainer.spec import parse_job_spec

    text = read_text_file(job, "job spec")
    name, written = read_model_name(text)
    with (
        TerminalProgress(quiet=quiet) as progress,
        _open_listing(job, name, written, directory, revision) as listing,
    ):
        pins = _hash_files(listing, read_chat_template_path(text), progress)
    pinned = pin_model(text, pins)
    target = output or job
    target.write_text(pinned, encoding="utf-8")
    spec_sha256 = parse_job_spec(pinned.encode()).sha256()
    if as_json:
        summary = {"model_revision": pins.revision, "model_file_sha256": dict(pins.file_sha256)}
        print_json(
            {
                "job": str(target),
                **summary,
                "job_spec_sha256": spec_sha256,
                "changed": pinned != text,
            }
        )
    else:
        print_line(
            f"wrote {target}: {len(pins.file_sha256)} files of {name} at {pins.revision or directory or name}"
        )
        print_line(f"job spec: {spec_sha256}")


@contextmanager
def _open_listing(
    job: Path, name: str, written: str | None, directory: Path | None, revision: str | None
) -> Iterator[ModelListing]:
    """Yields the listing of the model's files: of `--from`, of a local model's own directory, or of the hub."""
    from trainer.fetch.model_listing import list_directory, list_hub_model

    # A revision of zeros is the placeholder of `job init`.
    written = None if written is None or not written.strip("0") else written
    if name.startswith(("./", "../", "/")):
        yield list_directory(directory or job.parent / name)
    elif directory is not None:
        commit = revision or written or ""
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise UsageError(
                ErrorCode.USAGE,
                "the revision of the files in the directory",
                expected="--revision with the commit, 40 hex digits",
                found=commit or "none",
            )
        yield list_directory(directory).at(commit)
    else:
        with tempfile.TemporaryDirectory(prefix="trainer-pin-") as downloads:
            yield list_hub_model(name, revision or written, Path(downloads))


def _hash_files(
    listing: ModelListing, chat_template_path: str | None, progress: TerminalProgress
) -> ModelPins:
    from trainer.deployment.model_pins import ModelPins, select_model_files
    from trainer.model_files.tensor_listing import INDEX

    names = select_model_files(listing.names, listing.read(INDEX), chat_template_path)
    digests = {}
    for number, name in enumerate(names, 1):
        digests[name] = listing.sha256(name)
        progress.line(f"  {number} of {len(names)}: {name} {digests[name]}")
    return ModelPins(listing.revision, digests)


job_app.command("render")(render_job)
