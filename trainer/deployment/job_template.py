"""The commented job.yaml that `trainer job init` writes: defaults for one base model and one kind of rows."""

from __future__ import annotations

from typing import Final

import yaml

_ZERO_DIGEST: Final = "0" * 64
_ZERO_REVISION: Final = "0" * 40

_TEMPLATE: Final = """\
# A job for {model}. `trainer job pin` fills in what is marked FILL IN; look at the model before you rely on it.
# The file is public: it is part of the measured text of the deployment. Nothing secret belongs in it.
version: 1

model:
  model_name_or_path: {model}
{revision}  model_file_sha256: # FILL IN: every file that the job loads
    config.json: "{zero}"
    model.safetensors: "{zero}"
  dtype: bfloat16

lora:
  lora_r: 16 # rank: more learns more, and needs more memory
  lora_alpha: 32 # scale: usually twice the rank
  lora_dropout: 0.0
  lora_target_modules: all-linear

data:
{data}  on_overlong: error # a row that does not fit is refused by name; drop and truncate are the other choices
  test_split_size: 0.05 # held out, to measure the loss on

train:
{train}  gradient_checkpointing: true # less memory, about a third more time
  seed: 42
  logging_steps: 10
  save_steps: 100 # a restarted job goes on from the newest checkpoint

exchange:
  host: {host}
  port: 8443
  max_upload_bytes: 17179869184 # 16 GiB
  dataset_timeout_seconds: 86400 # how long the job waits for the dataset
  linger_seconds: 86400 # how long the job offers the sealed result
  providers: [] # provider keys (`trainer keygen`) of those who may submit; empty: whoever reaches the job
"""

_ANSWERS_DATA: Final = """\
  format: {format}
  max_length: 2048 # tokens of a row; `trainer validate` shows the lengths of yours
{loss}"""
_LOSS: Final = {
    "text": "",
    "prompt_completion": "  completion_only_loss: true # false: the prompt is learned as well\n",
}
_CHAT_LOSS: Final = "  assistant_only_loss: true # false: every token is learned\n"
_PREFERENCE_DATA: Final = """\
  format: {format}
  max_length: 2048 # tokens of prompt and answer together; `trainer validate` shows the lengths of yours
"""
_SUPERVISED: Final = """\
  engine: transformers
  per_device_train_batch_size: 8
  gradient_accumulation_steps: 2 # 16 rows to a step
  learning_rate: 2.0e-4
  lr_scheduler_type: cosine
  warmup_ratio: 0.03
  num_train_epochs: 1.0
"""
_DPO: Final = """\
  method: dpo
  beta: 0.1 # lower: further away from the base model
  engine: transformers
  per_device_train_batch_size: 8 # pairs
  gradient_accumulation_steps: 4
  learning_rate: 2.0e-5 # a tenth of what supervised training takes, or less
  lr_scheduler_type: cosine
  warmup_ratio: 0.1
  num_train_epochs: 1.0
"""

_KTO: Final = _DPO.replace("method: dpo", "method: kto").replace(
    "# pairs", "# answers; one alone teaches nothing"
)
_PREFERENCE_TRAINING: Final = {"preference": _DPO, "unpaired_preference": _KTO}


def render_job_template(
    model: str,
    row_kind: str,
    chat_template: str | None = None,
    *,
    host: str = "0.0.0.0",  # noqa: S104
) -> str:
    """Returns the text of a job.yaml, which parses, and whose digests are zeros.

    Args:
        model: hub id, or a directory that begins with `./`, `../` or `/`.
        row_kind: value of `data.format`: the kind of the dataset's rows.
        chat_template: Jinja text that replaces the model's own template; None keeps that.
        host: address that the job listens on; all of the VM's by default.
    """
    is_local = model.startswith(("./", "../", "/"))
    revision = "" if is_local else f'  model_revision: "{_ZERO_REVISION}" # FILL IN: the commit\n'
    data_text = _PREFERENCE_DATA if row_kind in _PREFERENCE_TRAINING else _ANSWERS_DATA
    data = data_text.format(format=row_kind, loss=_LOSS.get(row_kind, _CHAT_LOSS))
    if chat_template is not None:
        # As a block of lines, which a reviewer can read, unless a character must be escaped.
        plain = chat_template.replace("\n", "").isprintable()
        section = {"data": {"chat_template": chat_template}}
        block = yaml.safe_dump(
            section, default_style="|" if plain else '"', allow_unicode=plain, width=1 << 20
        )
        data += (
            block.partition("\n")[2]
            .replace('"chat_template"', "chat_template", 1)
            .removesuffix("...\n")
        )
    train = _PREFERENCE_TRAINING.get(row_kind, _SUPERVISED)
    return _TEMPLATE.format(
        model=model, revision=revision, zero=_ZERO_DIGEST, data=data, train=train, host=host
    )
