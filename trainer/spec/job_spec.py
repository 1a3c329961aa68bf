"""The complete job spec: sections, digest, and parsing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from pydantic import ValidationError, model_validator

from trainer.encoding import canonical_json, exact_json, sha256_hex
from trainer.errors import ErrorCode, UsageError
from trainer.models import One, Strict
from trainer.spec.data_section import DataSection, check_method
from trainer.spec.evaluation_section import EvaluationSection
from trainer.spec.exchange_section import ExchangeSection
from trainer.spec.joint_jobs import joint_refusals
from trainer.spec.key_meaning import meaningless_keys
from trainer.spec.lora_section import LoraSection
from trainer.spec.model_section import Dtype, ModelSection
from trainer.spec.output_section import OutputSection
from trainer.spec.privacy_section import PrivacySection, privacy_refusals
from trainer.spec.spec_errors import spec_error
from trainer.spec.tee_section import TeeSection
from trainer.spec.train_section import Engine, TrainSection
from trainer.spec.training_methods import METHOD_RULES
from trainer.strict_yaml import parse_yaml

MAX_SPEC_BYTES: Final = 1 << 18


class JobSpec(Strict):
    """A complete job spec: one attribute for each section of job.yaml."""

    version: One
    model: ModelSection
    lora: LoraSection = LoraSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    evaluation: EvaluationSection = EvaluationSection()
    output: OutputSection = OutputSection()
    privacy: PrivacySection = PrivacySection()
    exchange: ExchangeSection = ExchangeSection()
    tee: TeeSection = TeeSection()

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        check_method(self.train.method, self.data)
        template = self.data.chat_template_path
        if template is not None and template not in self.model.model_file_sha256:
            raise ValueError(
                "data.chat_template_path: expected the name of a file in model.model_file_sha256"
            )
        if self.evaluation.chooses and METHOD_RULES[self.train.method].learns_from != "answers":
            raise ValueError(
                f"evaluation.metrics: choice_accuracy means nothing to train.method {self.train.method}: answers "
                "that are judged are no choices that all rows have in common"
            )
        for refusal in (*privacy_refusals(self), *joint_refusals(self)):
            raise ValueError(refusal)
        if meaningless := "; ".join(meaningless_keys(self)):
            raise ValueError(meaningless)
        if self.train.engine is Engine.UNSLOTH:
            self._check_unsloth()
        # Weights that are trained in full are float32, and without autocast the layers take no float32 inputs.
        if (
            self.lora.modules_to_save
            and self.model.dtype is not Dtype.FLOAT32
            and not self.train.bf16
        ):
            raise ValueError("lora.modules_to_save needs train.bf16: true, or model.dtype float32")
        if self.train.torch_compile and self.lora.use_dora:
            raise ValueError(
                "train.torch_compile: lora.use_dora must be false: PEFT's magnitudes cannot be traced"
            )
        return self

    def _check_unsloth(self) -> None:
        if self.lora.selects_modules:
            raise ValueError(
                "train.engine: unsloth adapts linear modules of layers only: set transformers"
            )
        # Each would be another pass of unsloth's than the one that was compared with transformers.
        if self.model.load_in_4bit or self.model.load_in_8bit:
            raise ValueError(
                "train.engine: unsloth is not tested with quantized weights: set transformers"
            )
        if self.model.dtype is Dtype.FLOAT16:
            raise ValueError(
                "train.engine: unsloth is not tested with model.dtype float16: set transformers"
            )

    def canonical(self) -> bytes:
        """Returns the RFC 8785 bytes of the document as written, without defaults."""
        return canonical_json(self.model_dump(mode="json", exclude_unset=True))

    def sha256(self) -> str:
        """Returns the SHA-256 of `canonical()` in hex. Claims, keys, grants and receipts are bound to it."""
        return sha256_hex(self.canonical())


def read_job_spec(path: Path) -> JobSpec:
    """Reads and parses a job.yaml.

    Raises:
        UsageError: no such file, or not a job spec.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise UsageError(
            ErrorCode.FILE_NOT_FOUND, f"cannot read the job spec {path}: {error.strerror}"
        ) from error
    return parse_job_spec(data)


def parse_job_spec(data: bytes) -> JobSpec:
    """Parses the bytes of a job.yaml.

    Raises:
        UsageError: too large, not YAML, a key twice, unknown keys (all of them, each with the key meant), a
            value out of range, a key that means nothing where it stands.
    """
    document = parse_yaml(data, what="job spec", limit=MAX_SPEC_BYTES, code=ErrorCode.SPEC_INVALID)
    # Validated as JSON, where strict mode takes arrays for tuples and text for enums, which YAML has no types for.
    try:
        return JobSpec.model_validate_json(exact_json(document))
    except ValidationError as error:
        raise spec_error(error, JobSpec, [*leaf_names(), *JobSpec.model_fields]) from error


def leaf_names() -> Iterator[str]:
    """Yields every `section.key` that a job spec may have."""
    for section, field in JobSpec.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Strict):
            yield from (f"{section}.{leaf}" for leaf in annotation.model_fields)
