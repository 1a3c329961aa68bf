"""The job spec of a job in the container."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import yaml

from trainer.encoding import file_sha256

MODEL_IN_CONTAINER: Final = "/models/tiny"


def write_spec(path: Path, model: Path, **sections: dict[str, object]) -> None:
    """Write a spec for the model that the container has at `MODEL_IN_CONTAINER`.

    Args:
        path: file to write.
        model: directory of the same files here.
        sections: the other sections.
    """
    files = {file.name: file_sha256(file) for file in sorted(model.iterdir())}
    base = {
        "model_name_or_path": MODEL_IN_CONTAINER,
        "model_file_sha256": files,
        "dtype": "float32",
    }
    path.write_text(yaml.safe_dump({"version": 1, "model": base, **sections}))
