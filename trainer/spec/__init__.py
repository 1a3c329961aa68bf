"""The job spec (job.yaml): what to train, how, and under which limits. Public, measured, and pinned by digest.

Leaf names are the ones of TRL, PEFT and Hugging Face. The digest of a spec is the SHA-256 of the RFC 8785 form
of the document *as written*, without defaults: anyone can recompute it with any YAML parser.
"""

from trainer.spec.data import ROW_COLUMNS, DataSection, OnOverlong, RowFormat, SplitTurns, TrainOn
from trainer.spec.exchange import ExchangeSection
from trainer.spec.job import MAX_SPEC_BYTES, JobSpec, leaf_names, parse_job_spec, read_job_spec
from trainer.spec.lora import LoraSection
from trainer.spec.model import MODEL_FILE_SUFFIXES, Dtype, ModelSection
from trainer.spec.names import meant_key
from trainer.spec.output import OutputSection
from trainer.spec.privacy import REFERENCES, PrivacySection
from trainer.spec.strict_yaml import parse_yaml
from trainer.spec.tee import TeeSection
from trainer.spec.train import Engine, TrainSection

__all__ = [
    "MAX_SPEC_BYTES",
    "MODEL_FILE_SUFFIXES",
    "REFERENCES",
    "ROW_COLUMNS",
    "DataSection",
    "Dtype",
    "Engine",
    "ExchangeSection",
    "JobSpec",
    "LoraSection",
    "ModelSection",
    "OnOverlong",
    "OutputSection",
    "PrivacySection",
    "RowFormat",
    "SplitTurns",
    "TeeSection",
    "TrainOn",
    "TrainSection",
    "leaf_names",
    "meant_key",
    "parse_job_spec",
    "parse_yaml",
    "read_job_spec",
]
