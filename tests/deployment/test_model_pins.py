"""Pins are edited into job.yaml: all else in the text stays, and the result is the job spec that was meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.deployment import ModelPins, pin_model, read_model_name, select_model_files
from trainer.errors import TrainerError, UsageError
from trainer.spec import parse_job_spec

REVISION = "12" * 20
DIGESTS = {
    name: f"{number:064x}"
    for number, name in enumerate(("config.json", "model.safetensors", "a.txt"), 1)
}
PINS = ModelPins(REVISION, DIGESTS)

JOB = f"""\
# The comment at the top.
version: 1

model: # of the model
  # before the name
  model_name_or_path: org/name # the name
  model_revision: "{"0" * 40}" # FILL IN: the commit
  model_file_sha256: # FILL IN
    # about the files
    config.json: "{"0" * 64}" # FILL IN
    model.safetensors: {"1" * 64} # the weights
    old.json: "{"2" * 64}"
  dtype: bfloat16 # after

train:
  seed: 43 # stays
"""

PINNED = f"""\
# The comment at the top.
version: 1

model: # of the model
  # before the name
  model_name_or_path: org/name # the name
  model_revision: "{REVISION}"
  model_file_sha256:
    # about the files
    a.txt: "{DIGESTS["a.txt"]}"
    config.json: "{DIGESTS["config.json"]}"
    model.safetensors: "{DIGESTS["model.safetensors"]}"  # the weights
  dtype: bfloat16 # after

train:
  seed: 43 # stays
"""


def test_pins_are_filled_in_and_all_else_stays() -> None:
    assert pin_model(JOB, PINS) == PINNED


def test_pinning_twice_changes_nothing() -> None:
    assert pin_model(PINNED, PINS) == PINNED


@pytest.mark.parametrize(
    "job",
    [
        JOB.replace(f'  model_revision: "{"0" * 40}" # FILL IN: the commit\n', ""),
        JOB.replace(f'"{"0" * 40}"', f"'{'0' * 40}'"),
        JOB.partition("  model_file_sha256")[0],
        JOB.partition("  model_file_sha256")[0] + "  model_file_sha256: {}\n",
        JOB.partition("  model_file_sha256")[0]
        + '  model_file_sha256: {a.json: "1",\n    b.json: "2"\n  }\n  dtype: float32\n',
        JOB.replace("  ", "    "),
        JOB.replace("\n\ntrain:\n  seed: 43 # stays\n", ""),
        "version: 1\nmodel:\n  model_file_sha256: {a: b}\n  model_revision: x\n  model_name_or_path: org/name\n",
    ],
    ids=[
        "no revision",
        "quotes",
        "no digests",
        "empty",
        "flow",
        "indented",
        "last section",
        "order",
    ],
)
def test_other_layouts(job: str) -> None:
    pinned = pin_model(job, PINS)
    model = parse_job_spec(pinned.encode()).model
    assert (model.model_revision, dict(model.model_file_sha256)) == (REVISION, DIGESTS)
    for line in job.splitlines():
        if "dtype" in line or "seed" in line or "name_or_path" in line:
            assert line in pinned.splitlines()


def test_a_layout_that_cannot_be_edited_is_refused_and_never_written() -> None:
    one_line = "version: 1\nmodel: {model_name_or_path: org/name, model_file_sha256: {}}\n"
    with pytest.raises(TrainerError):
        pin_model(one_line, PINS)


def test_a_local_model_has_no_revision() -> None:
    job = "version: 1\nmodel:\n  model_name_or_path: ./model\n"
    model = parse_job_spec(pin_model(job, ModelPins(None, DIGESTS)).encode()).model
    assert model.model_revision is None
    assert read_model_name(job) == ("./model", None)


@pytest.mark.parametrize(
    "text", ["", "version: 1\n", "model: x\n", "model:\n  dtype: float32\n", "model: [\n"]
)
def test_a_text_without_a_model_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read_model_name(text)


SINGLE = ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"]
INDEX = json.dumps(
    {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
).encode()
SHARDED = [
    "config.json",
    "model.safetensors.index.json",
    "model-1.safetensors",
    "model-2.safetensors",
]


@pytest.mark.parametrize(
    ("names", "index", "expected"),
    [
        (SINGLE, None, SINGLE),
        (
            [*SINGLE, "README.md", "pytorch_model.bin", "modeling.py", "onnx/model.onnx"],
            None,
            SINGLE,
        ),
        ([*SINGLE, "consolidated.safetensors", "original/model.safetensors"], None, SINGLE),
        (SHARDED, INDEX, SHARDED),
        ([*SHARDED, "model-3.safetensors"], INDEX, SHARDED),
        ([*SINGLE, *SHARDED[1:]], INDEX, SINGLE),
        (
            [*SINGLE, "additional_chat_templates/rag.jinja"],
            None,
            [*SINGLE, "additional_chat_templates/rag.jinja"],
        ),
        ([*SINGLE, "additional_chat_templates/x/rag.jinja"], None, SINGLE),
    ],
)
def test_the_files_that_a_job_loads(
    names: list[str], index: bytes | None, expected: list[str]
) -> None:
    assert select_model_files(names, index) == tuple(sorted(expected))


def test_the_chat_template_that_the_job_names_is_loaded() -> None:
    named = "templates/mine.jinja"
    assert select_model_files([*SINGLE, named], None, named) == tuple(sorted([*SINGLE, named]))
    with pytest.raises(UsageError, match=r"got no templates/mine\.jinja"):
        select_model_files(SINGLE, None, named)


@pytest.mark.parametrize(
    ("names", "index"),
    [
        ([], None),
        (["config.json"], None),
        (["model.safetensors"], None),
        (["config.json", "pytorch_model.bin"], None),
        (SHARDED[:-1], INDEX),
        (SHARDED, b"{}"),
        (SHARDED, b"not JSON"),
        (SHARDED, b'{"weight_map": []}'),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused(names: list[str], index: bytes | None) -> None:
    with pytest.raises(UsageError):
        select_model_files(names, index)


def test_every_shipped_template_can_be_pinned() -> None:
    for path in (Path(__file__).parents[2] / "configs").glob("*.yaml"):
        text = path.read_text("utf-8")
        if "# FILL IN" not in text or "docker-compose" in path.name:
            continue
        pinned = pin_model(text, PINS)
        model = parse_job_spec(pinned.encode()).model
        assert (model.model_revision, dict(model.model_file_sha256)) == (REVISION, DIGESTS)
        assert "FILL IN" not in pinned
