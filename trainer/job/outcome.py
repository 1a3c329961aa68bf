"""Gathers the result of a job: files of the worker, failure report, logs, then what is signed about them.

The provider verifies in the opposite direction: decrypt, quote → statement → digests → files.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from trainer import logs
from trainer.encoding import sha256_hex, without_controls
from trainer.error_document import FailureReport
from trainer.errors import DATASET_FAULTS, ErrorCode, JobError
from trainer.job.result_statements import JobOutcome, ReceiptSigner, add_statements
from trainer.job.workspace import Workspace
from trainer.model_files.companion_files import copied_digests
from trainer.receipt.result_files import ADAPTER_FILES, require_result_file
from trainer.sealing.pool import ReceivedDataset
from trainer.sealing.sealed_result import open_inside
from trainer.spec import JobSpec

RESULT_DIRECTORIES: Final = ("adapter", "merged", "report")
"""The directories of the worker's output that a result has."""

RELEASED_ON_FAILURE: Final[Mapping[ErrorCode, str]] = {
    ErrorCode.TRAINING_DIVERGED: "adapter",  # the last one whose values were all finite
    ErrorCode.RELEASE_WITHHELD: "report",  # what the weights memorised, but not the weights
}
"""The output directory that is sealed with a failure report, by error code; none for any other code."""

MAX_LOG_BYTES: Final = 4 << 20
"""What is sealed of a log: half of it from its beginning, half from its end."""


def gather_result(
    signer: ReceiptSigner, bundle: ReceivedDataset, outcome: JobOutcome, workspace: Workspace
) -> Path:
    """Returns the directory with all files of the result (or failure report), receipt and evidence included.

    Raises:
        JobError: the worker left what is neither a file nor a directory.
        UnavailableError: the guest agent issues no quote.
    """
    tree = _gather_tree(_without_rows(outcome, bundle), workspace, signer.spec)
    if outcome.failure is None:
        _add_provenance(tree / "adapter" / "README.md", signer, bundle)
    add_statements(tree, signer, bundle, outcome)
    return tree


def _without_rows(outcome: JobOutcome, dataset: ReceivedDataset) -> JobOutcome:
    """Returns the outcome with nothing but the code of a failure that goes to several providers.

    Its text comes from the worker, which has the rows of all of them.
    """
    failure = outcome.failure
    if failure is None or len(outcome.addressees(dataset).grants) == 1:
        return outcome
    together = "the datasets cannot be trained on together"
    message = together if failure.code in DATASET_FAULTS else "the job of all providers failed"
    return replace(outcome, failure=JobError(failure.code, message, hint="ask the others as well"))


def with_checked_output(outcome: JobOutcome, workspace: Workspace, spec: JobSpec) -> JobOutcome:
    """Returns the outcome, or a failed one if the worker, which must have ended, left files that no result has."""
    if outcome.failure is not None:
        return outcome
    try:
        for name in RESULT_DIRECTORIES:
            _require_result_files(workspace.output, name, spec)
        for name in sorted(ADAPTER_FILES):
            if not (workspace.output / name).is_file():
                raise _unfit_output(f"no {name}")
    except JobError as error:
        return replace(outcome, failure=error)
    return outcome


def _require_result_files(output: Path, directory: str, spec: JobSpec) -> None:
    """Requires that every file of an output directory may be part of a result, and is what its name says.

    The provider's tool would refuse the result otherwise, and its provider would learn of nothing else.

    Raises:
        JobError: one may not, or is not; or an entry is neither a file nor a directory.
    """
    if (output / directory).is_symlink():
        raise _unfit_output(f"{directory}: a link")
    try:
        paths = sorted((output / directory).rglob("*"))
    except (
        OSError,
        RecursionError,
    ):
        # A path that is too long, or more levels than Python calls itself.
        raise _unfit_output(f"{directory}: nested too deeply") from None
    data = spec.data
    copied = copied_digests(
        spec.model.model_file_sha256, data.chat_template, data.chat_template_path
    )
    for path in (path for path in paths if not stat.S_ISDIR(path.lstat().st_mode)):
        name = path.relative_to(output).as_posix()
        try:
            with open_inside(output, name) as file:
                require_result_file(name, file, path.lstat().st_size, copied=copied)
        except (OSError, ValueError) as error:
            raise _unfit_output(f"{name}: {error}") from error


def _unfit_output(found: str) -> JobError:
    what, expected = (
        "the worker left what is no result",
        "an adapter, reports and logs, each of its kind",
    )
    return JobError(ErrorCode.JOB_FAILED, what, expected=expected, found=found)


def _gather_tree(outcome: JobOutcome, workspace: Workspace, spec: JobSpec) -> Path:
    """Returns the tree to seal: adapter/, merged/ and report/ on success, else report/failure.json; and logs/.

    With a failure, the directory that `RELEASED_ON_FAILURE` names is added.
    """
    tree = workspace.result
    tree.mkdir(mode=0o700)
    if outcome.failure is None:
        # By name: a file that the worker wrote elsewhere, such as a checkpoint, is not part of a result.
        for name in RESULT_DIRECTORIES:
            if (workspace.output / name).is_dir():
                (workspace.output / name).rename(tree / name)
    else:
        released = RELEASED_ON_FAILURE.get(outcome.failure.code)
        if released is not None and _is_releasable(workspace.output, released, spec):
            (workspace.output / released).rename(tree / released)
        report = FailureReport.of(outcome.failure).model_copy(
            update={"checkpoint_step": outcome.checkpoint}
        )
        (tree / "report").mkdir(mode=0o700, exist_ok=True)
        (tree / "report" / "failure.json").write_bytes(report.canonical())
    # A log of a joint job speaks of the rows of all providers, whomever the report is for.
    if spec.output.include_logs or (outcome.failure is not None and not spec.exchange.joint):
        (tree / "logs").mkdir(mode=0o700)
        for log in (workspace.private_log, workspace.front_log):
            if log.exists():
                _copy_log(log, tree / "logs" / log.name)
    return tree


def _is_releasable(output: Path, directory: str, spec: JobSpec) -> bool:
    try:
        _require_result_files(output, directory, spec)
    except JobError as error:
        logs.log_error(f"{directory} is not sealed with the failure report", error)
        return False
    return (output / directory).is_dir()


def _copy_log(source: Path, target: Path) -> None:
    """Copies a log as text without control characters: all of it, or its beginning and its end.

    Processes still append to the original, and the worker writes to it as it likes.
    """
    half = MAX_LOG_BYTES // 2
    with source.open("rb") as log:
        size = os.fstat(log.fileno()).st_size
        data = log.read(size if size <= MAX_LOG_BYTES else half)
        if size > MAX_LOG_BYTES:
            log.seek(size - half)
            data += b"\n[ %d bytes are left out ]\n" % (size - 2 * half) + log.read(half)
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="backslashreplace").read()
    target.write_text(without_controls(text), encoding="utf-8")


def _add_provenance(card: Path, signer: ReceiptSigner, bundle: ReceivedDataset) -> None:
    """Appends to the model card the digests that lead to the receipt.

    The receipt lists the card's digest, so the card cannot contain the receipt's; it contains that of its key.
    """
    digests = {
        "job spec": signer.spec.sha256(),
        "app-compose.json": signer.compose_sha256,
        "key that signed the receipt": sha256_hex(bytes.fromhex(signer.keys.receipt_public_key)),
    }
    # Nothing exact of the dataset travels with private weights, not even what only its provider can compute.
    if not signer.spec.privacy.differential:
        digests["dataset manifest"] = bundle.manifest.sha256()
    rows = "\n".join(f"| {name} | `{digest}` |" for name, digest in digests.items())
    with card.open("a", encoding="utf-8") as file:
        file.write(_PROVENANCE.format(rows=rows))


_PROVENANCE: Final = """
## Provenance

| | SHA-256 |
|---|---|
{rows}

`receipt.json` beside this folder lists the digest of every file here, signed inside the confidential VM, and
`evidence.json` contains the hardware's quote over that list. `trainer open` checks both.
"""
