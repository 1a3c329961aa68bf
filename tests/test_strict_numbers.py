"""An integer is an integer: true, 1.0 and "1" stand for no number in any format, at no place of it."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

import trainer
from trainer.attestation.dstack.event_log import parse_event_log
from trainer.attestation.evidence import parse_evidence, parse_statement_evidence
from trainer.attestation.policy import parse_policy, policy_yaml
from trainer.attestation.result.record import Record, load_record, save_record
from trainer.errors import ErrorCode, TrainerError
from trainer.exchange.spool import SpoolTerms
from trainer.exchange.spool_documents import SpoolEvent, SpoolResult
from trainer.ipc.front_messages import UploadReady
from trainer.job.end_record import EndRecord
from trainer.models import NO_NUMBER, Phase, Status
from trainer.provider.nonces import SpentNonce, SpentNonces
from trainer.receipt.deletion import DestroyedItem
from trainer.sealing.bundle import ManifestFile
from trainer.sealing.sealed_checkpoint import CheckpointBinding, CheckpointFile, CheckpointHeader
from trainer.simulator.appraisal_world import honest_world
from trainer.spec import parse_job_spec
from trainer.strict_yaml import parse_yaml

PACKAGE = Path(trainer.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
DECLARES_MODELS = re.compile(
    r"^class \w+\(.*(Strict|BaseModel|ChannelMessage|_Arguments)", re.MULTILINE
)
TRAINING_STACK = ("trainer.training", "trainer.worker")
WORLD = honest_world().without_reports()  # of a GPU that the root of the tests certifies
JOB_SPEC = {
    "version": 1,
    "model": {
        "model_name_or_path": "./model",
        "model_file_sha256": {"config.json": "a" * 64, "model.safetensors": "b" * 64},
    },
    "train": {"max_steps": 20, "seed": 1},
}

Parser = Callable[[bytes], object]


def models() -> list[type[BaseModel]]:
    """Every pydantic model of the package, but for those that need the training stack."""
    found: set[type[BaseModel]] = set()
    for path in SOURCES:
        name = ".".join(("trainer", *path.relative_to(PACKAGE).with_suffix("").parts))
        if DECLARES_MODELS.search(path.read_text("utf-8")) and not name.startswith(TRAINING_STACK):
            members = vars(importlib.import_module(name)).values()
            found |= {
                each for each in members if inspect.isclass(each) and issubclass(each, BaseModel)
            }
    return sorted(
        (each for each in found if each.__module__.startswith("trainer")),
        key=lambda each: each.__name__,
    )


def schemas(node: Any, kind: str) -> Iterator[dict[str, Any]]:
    """Every part of a pydantic schema of this kind, within this model alone."""
    if isinstance(node, dict):
        if node.get("type") == kind:
            yield node
        for key, value in node.items():
            if key != "metadata":
                yield from schemas(value, kind)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from schemas(value, kind)


def test_no_number_of_a_model_is_compared_for_equality_alone() -> None:
    """`Literal[1]` takes what equals 1; also of the models that need the training stack."""
    found = [
        f"{path.name}:{each.lineno}"
        for path in SOURCES
        if re.search(r"Literal\[[^\]]*(\d|True|False)", path.read_text("utf-8"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
        for annotated in node.body
        if isinstance(annotated, ast.AnnAssign)
        for each in ast.walk(annotated.annotation)
        if isinstance(each, ast.Subscript)
        and isinstance(each.value, ast.Name)
        and each.value.id == "Literal"
        for constant in ast.walk(each.slice)
        if isinstance(constant, ast.Constant)
        and isinstance(constant.value, int | float)
        and (
            not isinstance(constant.value, bool)
            or "NO_NUMBER" not in ast.unparse(annotated.annotation)
        )
    ]
    assert found == []


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_every_model_with_a_number_is_strict(model: type[BaseModel]) -> None:
    numbers = list(schemas(model.__pydantic_core_schema__, "int"))
    assert not any(number.get("strict") is False for number in numbers)
    if numbers:
        assert model.model_config.get("strict"), "true and 1.0 would be taken for integers"


@pytest.mark.parametrize(
    ("literal", "annotation"),
    [(True, Annotated[Literal[True], NO_NUMBER]), (False, Annotated[Literal[False], NO_NUMBER])],
)
def test_a_number_is_no_truth(literal: bool, annotation: Any) -> None:
    adapter: TypeAdapter[bool] = TypeAdapter(annotation)
    assert adapter.validate_json(json.dumps(literal)) is literal
    for number in (int(literal), float(literal)):
        with pytest.raises(ValidationError):
            adapter.validate_json(json.dumps(number))


def documents() -> dict[str, tuple[Any, Parser]]:
    """Documents that are read from outside, each with its reader."""
    record = Record(WORLD.appraise(), WORLD.evidence(), WORLD.collateral, WORLD.policy)
    policy = parse_yaml(
        policy_yaml(WORLD.policy).encode(), what="policy", limit=1 << 20, code=ErrorCode.USAGE
    )
    return {
        "evidence": (json.loads(WORLD.evidence().canonical()), parse_evidence),
        "statement evidence": (
            json.loads(WORLD.receipt_evidence().canonical()),
            parse_statement_evidence,
        ),
        "event log": (
            json.loads(WORLD.evidence().event_log),
            lambda data: parse_event_log(data.decode()),
        ),
        "record": (json.loads(save_record(record)), load_record),
        "policy": (policy, lambda data: parse_policy(data, read_file=_no_file)),
        "job spec": (JOB_SPEC, parse_job_spec),
    }


def _no_file(name: str) -> bytes:
    raise AssertionError(name)


def number_paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of a document that hold an integer."""
    if type(node) is int:
        yield path
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in items:
        yield from number_paths(value, (*path, key))


def altered(document: Any, path: tuple[Any, ...], value: object) -> bytes:
    copy = json.loads(json.dumps(document))
    node = copy
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return json.dumps(copy).encode()


WRITTEN: tuple[BaseModel, ...] = (
    CheckpointHeader(
        version=1,
        step=1,
        binding=CheckpointBinding(
            job_spec_sha256="a" * 64, dataset_manifest_sha256="b" * 64, app_compose_sha256="c" * 64
        ),
        files={"state.json": CheckpointFile(sha256="d" * 64, size=1)},
        tag="e" * 64,
    ),
    EndRecord(
        error=None,
        result_sha256="a" * 64,
        result_bytes=1,
        dataset_manifest_sha256="b" * 64,
        ended_at=1,
        acknowledgement_sha256=("c" * 64,),
        destroyed={DestroyedItem.DATASET: 1},
    ),
    ManifestFile(sha256="a" * 64, size=1),
    SpentNonces(spent=(SpentNonce(nonce_sha256="a" * 64, evidence_sha256="b" * 64, at=1),)),
    SpoolEvent(id=1, sealed="QQ=="),
    SpoolResult(size=1, sha256="a" * 64),
    SpoolTerms(max_upload_bytes=1),
    Status(phase=Phase.TRAINING, step=1, total_steps=1, percent=1, eta_seconds=1, result_bytes=1),
    UploadReady(size=1),
)
"""What the project itself writes and reads again, with 1 in place of every number."""


@pytest.mark.parametrize("written", WRITTEN, ids=lambda written: type(written).__name__)
def test_what_is_no_integer_is_refused_in_what_is_read_again(written: BaseModel) -> None:
    document = written.model_dump(mode="json")
    places = list(number_paths(document))
    assert places
    for path in places:
        for other in (True, 1.0, "1"):
            with pytest.raises(ValidationError):
                type(written).model_validate_json(altered(document, path, other))


@pytest.mark.parametrize("name", documents())
def test_what_is_no_integer_is_refused_wherever_one_stands(name: str) -> None:
    document, parse = documents()[name]
    parse(json.dumps(document).encode())
    # One of each place in a list, such as the events of a log, and in each part of a recorded result.
    places = {
        tuple(
            key for key in path[: 2 if path[0] == "result" else None] if not isinstance(key, int)
        ): path
        for path in number_paths(document)
    }
    assert places
    for path in places.values():
        value = document
        for key in path:
            value = value[key]
        for other in (bool(value), float(value), str(value)):
            with pytest.raises((TrainerError, ValueError)):
                parse(altered(document, path, other))
