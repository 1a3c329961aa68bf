"""An adapter as a job writes it, without a job: with a chat template of its own, and weights that matter."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.encoding import file_sha256
from trainer.model_files.companion_files import copy_companions
from trainer.spec import JobSpec

TEMPLATE = "{% for m in messages %}[{{ m.role }}{{ mood }}]{{ m.content }}<|im_end|>{% endfor %}[assistant]"


def make_spec(model: Path, **data: object) -> JobSpec:
    """The spec of a job whose base model is that directory."""
    document = {
        "version": 1,
        "model": {
            "model_name_or_path": "org/tiny",
            "model_revision": "ab" * 20,
            "model_file_sha256": {path.name: file_sha256(path) for path in sorted(model.iterdir())},
            "dtype": "float32",
        },
        "lora": {"lora_r": 4, "lora_alpha": 8},
        "data": data,
    }
    return JobSpec.model_validate_json(json.dumps(document))


def make_adapter(model: Path, target: Path) -> Path:
    """Writes an adapter of the base model into `target`; returns that."""
    import torch

    from trainer.training.adapter import save_adapter
    from trainer.training.engines.base import Precision
    from trainer.training.engines.transformers_engine import TransformersLoader

    torch.set_num_threads(1)
    torch.manual_seed(5)
    spec = make_spec(model)
    precision = Precision(torch.device("cpu"), torch.float32, autocast=False)
    attached = TransformersLoader().load(model, spec, precision)
    for name, parameter in attached.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    save_adapter(attached, spec.model, target)
    copy_companions(model, target, TEMPLATE)
    return target
