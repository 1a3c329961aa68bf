"""What `trainer try` needs beside the models, without torch: the adapter, its job spec, and the prompts."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.data.examples.chat_template import TemplateRefusedError
from trainer.data.examples.example_set import row_schema
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import add_start
from trainer.data.examples.task_rows import NotJudged, Task, TaskReader
from trainer.data.rows import Message, scan_rows
from trainer.encoding import canonical_json, file_sha256
from trainer.errors import DataError, ErrorCode, UsageError, VerificationError
from trainer.model_files.adapter_base import ADAPTER_WEIGHTS, NamedBase, read_named_base
from trainer.provider.local_files import read_small_file
from trainer.receipt.dsse import parse_envelope
from trainer.receipt.statement import parse_statement
from trainer.spec import DataSection, JobSpec, parse_job_spec

_MAX_RECEIPT_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class AdapterTrial:
    """An adapter that is to be tried.

    Attributes:
        adapter: its directory.
        sha256: digest of its weights, in hex.
        base: the base model that it names.
        spec: the job spec in the receipt beside it, whose signature is not verified here; None without a receipt.
    """

    adapter: Path
    sha256: str
    base: NamedBase
    spec: JobSpec | None

    @property
    def data(self) -> DataSection:
        """How rows are read and rendered: the job's section, with the template that the adapter carries."""
        section = self.spec.data if self.spec else DataSection()
        # The job has written the template that it chose beside the adapter; it is no file of the base model here.
        return section.model_copy(update={"chat_template": None, "chat_template_path": None})

    @property
    def notes(self) -> tuple[str, ...]:
        """What the comparison cannot know or does otherwise than the job."""
        if self.spec is None:
            return (
                "no receipt beside the adapter: columns and template variables of its job spec are not known",
            )
        if self.spec.model.load_in_4bit or self.spec.model.load_in_8bit:
            return (
                "the job had quantised base weights; here both answer with the unquantised ones",
            )
        return ()


@dataclass(frozen=True)
class TrialPrompt:
    """One input of a comparison.

    Attributes:
        text: the input as the model sees it.
        ids: its token ids.
        expected: the answer of the row; None for a prompt that is none of a row.
    """

    text: str
    ids: Sequence[int]
    expected: str | None = None


def find_adapter(directory: Path) -> AdapterTrial:
    """Finds the adapter in an opened result, or in a directory of its own.

    Raises:
        UsageError: there is none, or it names no base model.
        VerificationError: `RECEIPT_MISMATCH`: the receipt beside it lists other weights.
    """
    places = (directory / "adapter", directory)
    adapter = next((place for place in places if (place / ADAPTER_WEIGHTS).is_file()), None)
    if adapter is None:
        raise UsageError(
            ErrorCode.FILE_NOT_FOUND,
            f"no adapter in {directory}",
            expected=f"an opened result, or a directory with {ADAPTER_WEIGHTS}",
            found="neither",
        )
    digest, receipt = file_sha256(adapter / ADAPTER_WEIGHTS), adapter.parent / "receipt.json"
    base = read_named_base(adapter)
    # A directory that is not named as in a result is not the one that a receipt beside it lists.
    is_result = adapter.name == "adapter" and receipt.is_file()
    return AdapterTrial(adapter, digest, base, _read_spec(receipt, digest) if is_result else None)


def _read_spec(receipt: Path, adapter_sha256: str) -> JobSpec:
    """Returns the job spec in a receipt that lists these weights.

    Raises:
        VerificationError: it is no receipt, or lists other weights.
    """
    envelope = parse_envelope(read_small_file(receipt, "receipt", _MAX_RECEIPT_BYTES))
    statement = parse_statement(base64.b64decode(envelope.payload))
    listed = statement.files.get(f"adapter/{ADAPTER_WEIGHTS}")
    if listed != adapter_sha256:
        raise VerificationError(
            ErrorCode.RECEIPT_MISMATCH,
            f"the adapter is not the one that {receipt} lists",
            expected=listed,
            found=adapter_sha256,
            hint="see trainer receipt verify",
        )
    return parse_job_spec(
        canonical_json(statement.predicate.buildDefinition.externalParameters.jobSpec)
    )


def prompts_of_texts(
    texts: Sequence[str], tokens: ModelTokenizer, *, plain: bool
) -> Iterator[TrialPrompt]:
    """Yields each text as a user's turn, or as plain text where there is no chat template or `plain` is set.

    Raises:
        UsageError: the chat template refuses a conversation of one turn.
    """
    for text in texts:
        if plain or not tokens.has_template:
            (ids,) = tokens.ids_of([text])
            yield TrialPrompt(text, add_start(ids, tokens).tolist())
            continue
        try:
            rendered = tokens.template.render((Message("user", text),), prompt=True)
        except TemplateRefusedError:
            raise UsageError(
                ErrorCode.USAGE,
                "the adapter's chat template refuses a conversation of one user's turn",
                expected="--file with rows as the job had them, or --plain-text",
                found="a prompt",
            ) from None
        yield TrialPrompt(rendered, tokens.ids(rendered))


def prompts_of_file(
    file: Path, count: int, tokens: ModelTokenizer, data: DataSection
) -> tuple[list[TrialPrompt], Counter[NotJudged]]:
    """Returns the inputs of the first rows that have a prompt and an answer, and why others before them have none.

    Args:
        file: a data file.
        count: how many rows at most.
        tokens: tokenizer and chat template.
        data: how the job read its rows.

    Raises:
        DataError: a row cannot be read or rendered; it is named by file, index and field.
    """
    found: list[TrialPrompt] = []
    left_out: Counter[NotJudged] = Counter()
    reader = TaskReader(tokens)
    for row in scan_rows(file, name=file.name, schema=row_schema(data)):
        if len(found) == count:
            break
        if isinstance(row, DataError):
            raise row
        task = reader.read(row, needs_stem=False)
        if isinstance(task, Task):
            found.append(TrialPrompt(task.prompt_text, task.prompt, task.expected))
        else:
            left_out[task] += 1
    return found, left_out
