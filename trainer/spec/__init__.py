"""The job spec (job.yaml): what to train, how, and under which limits. Public, measured, and pinned by digest.

Leaf names are the ones of TRL, PEFT and Hugging Face. The digest of a spec is the SHA-256 of the RFC 8785 form
of the document *as written*, without defaults: anyone can recompute it with any YAML parser.
"""

from trainer.spec.data_section import (
    ROW_COLUMNS,
    DataSection,
    OnOverlong,
    RowFormat,
    RowPart,
    SplitTurns,
    TrainOn,
)
from trainer.spec.evaluation_section import MAX_CHOICES, EvaluationSection, TaskMetric
from trainer.spec.exchange_section import STORE_LOCATION, ExchangeSection
from trainer.spec.job_spec import MAX_SPEC_BYTES, JobSpec, leaf_names, parse_job_spec, read_job_spec
from trainer.spec.job_variable import (
    JOB_VARIABLE,
    MAX_VARIABLE_BYTES,
    from_compose,
    read_job_variable,
    to_compose,
)
from trainer.spec.learning_rate import (
    LearningRate,
    LearningRatePath,
    check_schedule,
    learning_rate_path,
    steps_per_epoch,
    total_steps,
)
from trainer.spec.lora_section import LoraSection, StartFrom
from trainer.spec.model_section import (
    MODEL_FILE_SUFFIXES,
    Dtype,
    ModelSection,
    base_digest,
    is_base_file,
    is_protected_url,
)
from trainer.spec.output_section import OutputSection
from trainer.spec.privacy_section import GATE_OUTSIDERS, REFERENCES, PrivacySection
from trainer.spec.tee_section import TeeSection
from trainer.spec.template_arguments import TemplateArgument, is_set_by_renderer
from trainer.spec.train_section import Engine, TrainSection
from trainer.spec.training_methods import METHOD_RULES, LearnedRows, MethodName

__all__ = [
    "GATE_OUTSIDERS",
    "JOB_VARIABLE",
    "MAX_CHOICES",
    "MAX_SPEC_BYTES",
    "MAX_VARIABLE_BYTES",
    "METHOD_RULES",
    "MODEL_FILE_SUFFIXES",
    "REFERENCES",
    "ROW_COLUMNS",
    "STORE_LOCATION",
    "DataSection",
    "Dtype",
    "Engine",
    "EvaluationSection",
    "ExchangeSection",
    "JobSpec",
    "LearnedRows",
    "LearningRate",
    "LearningRatePath",
    "LoraSection",
    "MethodName",
    "ModelSection",
    "OnOverlong",
    "OutputSection",
    "PrivacySection",
    "RowFormat",
    "RowPart",
    "SplitTurns",
    "StartFrom",
    "TaskMetric",
    "TeeSection",
    "TemplateArgument",
    "TrainOn",
    "TrainSection",
    "base_digest",
    "check_schedule",
    "from_compose",
    "is_base_file",
    "is_protected_url",
    "is_set_by_renderer",
    "leaf_names",
    "learning_rate_path",
    "parse_job_spec",
    "read_job_spec",
    "read_job_variable",
    "steps_per_epoch",
    "to_compose",
    "total_steps",
]
