"""GPUs' endorsements as data: in a policy, out of its files, and in a file that keeps them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from trainer.attestation.nvidia.gpu_endorsements import (
    MAX_ANSWER_BYTES,
    MAX_ANSWERS,
    MAX_MANIFEST_BYTES,
    MAX_MANIFESTS,
    GpuEndorsements,
    GpuEndorsementsDocument,
)
from trainer.attestation.policy import (
    Policy,
    ReferenceManifests,
    RevocationAnswers,
    ServiceUrl,
    endorsements_of,
    explain,
    parse_policy,
    policy_yaml,
)
from trainer.errors import ErrorCode, UsageError

World = Any  # conftest.World

FILES = {"driver.xml": b"<driver/>\r\n", "vbios.xml": b"<vbios/>", "gpu.der": b"\x30\x00\xff"}
INLINED = {
    "reference_values": ReferenceManifests(documents=("<driver/>\r\n", "<vbios/>")),
    "revocation": RevocationAnswers(responses=(base64.b64encode(FILES["gpu.der"]).decode(),)),
}
FETCHED = GpuEndorsements(("<fetched/>",), (b"fetched",))


def read_file(name: str) -> bytes:
    if name not in FILES:
        raise FileNotFoundError(2, "No such file or directory", name)
    return FILES[name]


def written(policy: Policy, **gpu: Any) -> bytes:
    document = yaml.safe_load(policy_yaml(policy))
    document["gpu"].update(gpu)
    return json.dumps(document).encode()


# a policy


def test_files_become_part_of_the_policy(world: World) -> None:
    text = written(
        world.policy,
        reference_values={"files": ["driver.xml", "vbios.xml"]},
        revocation={"files": ["gpu.der"]},
    )
    policy = parse_policy(text, read_file=read_file)
    assert policy == world.demanding("gpu", **INLINED).policy
    known = endorsements_of(policy.gpu, fetched=FETCHED)
    assert known == GpuEndorsements(("<driver/>\r\n", "<vbios/>"), (FILES["gpu.der"],))


def test_a_service_is_kept_by_its_address(world: World) -> None:
    url = "https://rim.attestation.nvidia.com"
    text = written(world.policy, reference_values={"url": url}, revocation={"url": url})
    policy = parse_policy(text, read_file=read_file)
    assert policy.gpu.reference_values == policy.gpu.revocation == ServiceUrl(url=url)
    assert endorsements_of(policy.gpu, fetched=FETCHED) == FETCHED


def test_a_policy_with_files_reads_back_from_its_text(world: World) -> None:
    policy = world.demanding("gpu", **INLINED).policy
    assert parse_policy(policy_yaml(policy).encode(), read_file=read_file) == policy
    named = policy_yaml(
        policy, reference_files=["driver.xml", "vbios.xml"], revocation_files=["gpu.der"]
    )
    assert "<driver/>" not in named
    assert base64.b64encode(FILES["gpu.der"]).decode() not in named
    assert yaml.safe_load(named)["gpu"]["revocation"] == {"files": ["gpu.der"]}
    assert parse_policy(named.encode(), read_file=read_file) == policy


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "no file": ("1 to 32 files", {"reference_values": {"files": []}}),
    "too many files": ("1 to 128 files", {"revocation": {"files": ["gpu.der"] * 129}}),
    "a name for a list": ("a list of names", {"reference_values": {"files": "driver.xml"}}),
    "a number for a name": ("a list of names", {"reference_values": {"files": [1]}}),
    "files and a service": (
        "a list of names",
        {"revocation": {"files": ["gpu.der"], "url": "https://a"}},
    ),
    "bytes for a manifest": ("an XML file", {"reference_values": {"files": ["gpu.der"]}}),
    "no encryption": ("gpu.reference_values", {"reference_values": {"url": "http://rim.invalid"}}),
    "a word": ("gpu.revocation", {"revocation": "required"}),
    "no base64": ("gpu.revocation", {"revocation": {"responses": ["!"]}}),
    "nothing listed": ("gpu.reference_values", {"reference_values": {"documents": []}}),
    "another alphabet": ("gpu.reference_values", {"reference_values": {"documents": ["é"]}}),
    "values of no reports": (
        "need `fresh: required`",
        {
            "revocation": {"url": "https://a"},
            "fresh": "any",
        },
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_such_demand_is_refused_by_name(world: World, name: str) -> None:
    words, gpu = REFUSED[name]
    with pytest.raises(UsageError, match=words) as refused:
        parse_policy(written(world.policy, **gpu), read_file=read_file)
    assert refused.value.code is ErrorCode.POLICY_INVALID


def test_a_missing_file_is_named(world: World) -> None:
    text = written(world.policy, revocation={"files": ["other.der"]})
    with pytest.raises(UsageError, match=r"other\.der") as refused:
        parse_policy(text, read_file=read_file)
    assert refused.value.code is ErrorCode.FILE_NOT_FOUND


@pytest.mark.parametrize("gpu", ["any", None, []])
def test_a_section_that_is_none_is_refused(world: World, gpu: Any) -> None:
    document = yaml.safe_load(policy_yaml(world.policy)) | {"gpu": gpu}
    with pytest.raises(UsageError, match="gpu"):
        parse_policy(json.dumps(document).encode(), read_file=read_file)


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        (
            INLINED,
            ["signed for their driver and VBIOS, as found in 2 files", "answers found in 1 files"],
        ),
        (
            {
                "reference_values": ServiceUrl(url="https://a"),
                "revocation": ServiceUrl(url="https://b"),
            },
            ["as found in https://a", "answers found in https://b"],
        ),
        (
            {"reference_values": "any", "revocation": "any"},
            [
                "Not demanded: that GPUs measure",
                "Not demanded: that GPUs' certificates are not revoked",
            ],
        ),
    ],
)
def test_a_demand_is_put_into_words(world: World, gpu: dict[str, Any], words: list[str]) -> None:
    text = "\n".join(explain(world.demanding("gpu", **gpu).policy))
    for each in words:
        assert each in text


# a file that keeps them


def test_endorsements_read_back_from_their_document() -> None:
    text = GpuEndorsementsDocument.of(FETCHED).model_dump_json()
    assert GpuEndorsementsDocument.model_validate_json(text).endorsements() == FETCHED
    assert GpuEndorsementsDocument.model_validate_json("{}").endorsements() == GpuEndorsements()


def test_the_largest_that_is_fetched_can_be_kept() -> None:
    largest = GpuEndorsements(("x" * MAX_MANIFEST_BYTES,) * 2, (bytes(MAX_ANSWER_BYTES),) * 2)
    assert GpuEndorsementsDocument.of(largest).endorsements() == largest


TOO_MUCH: dict[str, Callable[[], GpuEndorsements]] = {
    "a long manifest": lambda: GpuEndorsements(("x" * (MAX_MANIFEST_BYTES + 1),)),
    "a long answer": lambda: GpuEndorsements((), (bytes(MAX_ANSWER_BYTES + 3),)),
    "many manifests": lambda: GpuEndorsements(("x",) * (MAX_MANIFESTS + 1)),
    "many answers": lambda: GpuEndorsements((), (b"x",) * (MAX_ANSWERS + 1)),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_more_than_can_be_kept_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        GpuEndorsementsDocument.of(TOO_MUCH[name]())
