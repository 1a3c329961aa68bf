"""A provider that shares no code with the product, written from trainer/SPEC.md alone, and one real job.

So SPEC and product cannot part: `tests/spec/second_implementation` imports nothing of `trainer`.
"""

from __future__ import annotations

import ast
import base64
import datetime
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.end_to_end.conftest import CANARY
from tests.spec.second_implementation import age_files, bundles, evidence
from tests.spec.second_implementation.bundles import Grant, Signer, jcs, sha256
from tests.spec.second_implementation.exchange import DELETION_TYPE, JobClient, bearer

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Job, StartJob, WriteSpec

CODE = Path(__file__).parents[1] / "spec" / "second_implementation"
DESTROYED = {
    "worker", "dataset", "base-model", "worker-output", "result-plaintext", "private-logs", "dataset-keys",
}  # fmt: skip


def test_the_second_implementation_imports_nothing_of_the_product() -> None:
    files = sorted(CODE.glob("*.py"))
    assert len(files) > 3
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "trainer"], path


@dataclass(frozen=True)
class Sealed:
    """What a provider keeps of a dataset that it sealed."""

    appraised: dict[str, Any]
    job_spec: dict[str, Any]
    grant: Grant
    manifest: dict[str, Any]


def test_a_provider_written_from_the_specification_alone(
    start_job: StartJob, write_spec: WriteSpec, rows: str, tmp_path: Path
) -> None:
    pyrage = pytest.importorskip("pyrage")
    identity, signer = pyrage.x25519.Identity.generate(), Signer(Ed25519PrivateKey.generate())
    spec = write_spec(
        tmp_path / "job.yaml",
        output={"include_logs": False},
        exchange={"providers": [signer.public]},
    )
    job: Job = start_job(spec)
    client = JobClient(int(job.url.rpartition(":")[2]))
    job_spec = yaml.safe_load(spec.read_text())

    appraised = attest(client, sha256(jcs(job_spec)))
    recipient = appraised["claims"]["recipients"]["instance"]
    grant = bundles.new_grant(
        sha256(jcs(job_spec)), str(identity.to_public()), int(time.time()) + 3600
    )
    files = {"train.jsonl": rows.encode()}
    manifest = bundles.new_manifest(grant, files)
    dataset = age_files.encrypt(
        bundles.pack_dataset(grant, manifest, files, signer, recipient), recipient
    )
    sealed = Sealed(appraised, job_spec, grant, manifest)

    assert client.create_upload(len(dataset), "no authorisation").status == 401
    upload(client, dataset, authorization(appraised, signer, len(dataset)))
    losses = follow(client, grant, identity)
    assert losses
    assert client.ask("GET", "/events", authorization="Bearer " + "0" * 64).status == 401

    result = pull(client)
    opened = bundles.unpack(pyrage.decrypt(result, [identity]))
    verify_receipt(opened, sealed)
    assert CANARY.encode() not in opened["receipt.json"]
    assert not [name for name in opened if name.startswith("logs/")]

    verify_deletion(client.ask("GET", "/deletion").body, result, sealed, acknowledged=False)
    assert client.ask("POST", "/ack", authorization="Bearer " + "0" * 64).status == 401
    shown = grant.acknowledgement(result)
    answer = client.ask("POST", "/ack", authorization=f"Bearer {shown}", accept=DELETION_TYPE)
    assert answer.status == 200
    verify_deletion(answer.body, result, sealed, acknowledged=True)
    assert job.wait() == 0


def attest(client: JobClient, job_spec_sha256: str) -> dict[str, Any]:
    nonce = os.urandom(32).hex()
    answer = client.ask("GET", f"/attestation?nonce={nonce}")
    assert answer.status == 200
    found: dict[str, Any] = bundles.parse_exact(answer.body)
    evidence.verify_evidence(found, nonce, job_spec_sha256, client.tls_key)
    return found


def authorization(appraised: Mapping[str, Any], signer: Signer, size: int) -> str:
    claims = appraised["claims"]
    document = jcs(
        {
            "version": 1,
            "job_spec_sha256": claims["job_spec_sha256"],
            "recipient_sha256": sha256(claims["recipients"]["instance"].encode()),
            "tls_spki_sha256": sha256(bytes.fromhex(claims["tls_key"])),
            "size": size,
            "expires_at": int(time.time()) + 600,
        }
    )
    return bearer(document, signer.sign("upload-authorization", document))


def upload(client: JobClient, dataset: bytes, token: str) -> None:
    """Uploads in three pieces, of which the second is cut."""
    created = client.create_upload(len(dataset), token)
    assert created.status == 201
    place, first, cut = created.headers["location"], len(dataset) // 3, len(dataset) // 2
    assert client.upload_piece(place, 0, dataset[:first]).headers["upload-offset"] == str(first)
    client.cut_piece(place, first, len(dataset) - first, dataset[first:cut])
    state = client.ask("HEAD", place, tus_resumable="1.0.0")
    offset = int(state.headers["upload-offset"])
    assert state.headers["upload-length"] == str(len(dataset))
    assert first <= offset <= cut
    assert client.upload_piece(place, offset, dataset[offset:]).status == 204


def follow(client: JobClient, grant: Grant, identity: Any) -> list[float]:
    """Returns the losses that the job reports until its result can be pulled."""
    import pyrage

    losses = []
    for kind, data in client.events(grant.events_token):
        if kind == "private":
            plain = pyrage.decrypt(base64.b64decode(data, validate=True), [identity])
            assert len(plain) == 4096
            losses += [entry["loss"] for entry in json.loads(plain) if "loss" in entry]
            continue
        status = json.loads(data)
        assert status["error"] is None
        if status["phase"] == "awaiting-pull":
            return losses
    raise AssertionError("the stream ended")


def pull(client: JobClient) -> bytes:
    """Returns the sealed result, fetched in two pieces."""
    start = client.ask("GET", "/result", range="bytes=0-99")
    assert start.status == 206
    rest = client.ask("GET", "/result", range="bytes=100-", if_range=start.headers["etag"])
    assert rest.status == 206
    result = start.body + rest.body
    assert start.headers["etag"] == f'"{sha256(result)}"'
    return result


def verify_receipt(opened: Mapping[str, bytes], sealed: Sealed) -> None:
    attested = json.loads(opened["evidence.json"])
    signed = evidence.verify_statement(
        json.loads(opened["receipt.json"]), attested, "receipt", sealed.appraised
    )
    statement, predicate = signed.statement, signed.statement["predicate"]
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    covered = {
        name: sha256(data)
        for name, data in opened.items()
        if name not in {"receipt.json", "evidence.json"}
    }
    assert evidence.digests(statement["subject"]) == covered
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(covered)

    definition, model = predicate["buildDefinition"], sealed.job_spec["model"]
    assert definition["buildType"] == "urn:confidential-trainer:lora-fine-tuning:v1"
    assert definition["externalParameters"] == {
        "jobSpec": sealed.job_spec, "jobSpecSha256": sha256(jcs(sealed.job_spec)),
    }  # fmt: skip
    assert definition["internalParameters"] == {
        "recipients": [sha256(text.encode()) for text in sealed.grant.document["recipients"]],
        "datasetManifestSha256": sha256(jcs(sealed.manifest)),
    }
    base = {
        f"{model['model_name_or_path']}/{name}": value
        for name, value in model["model_file_sha256"].items()
    }
    data = {
        f"data/{name}": bundles.salted_digest(sealed.manifest, name)
        for name in sealed.manifest["files"]
    }
    assert evidence.digests(definition["resolvedDependencies"]) == {**base, **data}

    details = predicate["runDetails"]
    measured = sha256(sealed.appraised["app_compose"].encode())
    assert details["builder"]["id"] == f"urn:confidential-trainer:compose:sha256:{measured}"
    started, finished = (seconds(details["metadata"][name]) for name in ("startedOn", "finishedOn"))
    assert sealed.appraised["claims"]["issued_at"] - 300 <= started <= finished <= time.time() + 300
    assert abs(signed.issued_at - finished) <= 300
    (byproduct,) = details["byproducts"]
    assert (byproduct["name"], byproduct["mediaType"]) == ("outcome", "application/json")
    summary = bundles.parse_exact(base64.b64decode(byproduct["content"], validate=True))
    assert summary["outcome"] == "succeeded"
    assert "error" not in summary


def seconds(moment: str) -> float:
    return datetime.datetime.fromisoformat(moment).timestamp()


def verify_deletion(document: bytes, result: bytes, sealed: Sealed, *, acknowledged: bool) -> None:
    found = bundles.parse_exact(document)
    statement = evidence.verify_statement(
        found["envelope"], found["evidence"], "deletion", sealed.appraised
    ).statement
    assert statement["predicateType"] == "urn:confidential-trainer:deletion:v1"
    assert evidence.digests(statement["subject"]) == {"result.tar.age": sha256(result)}
    predicate = statement["predicate"]
    assert predicate["jobSpecSha256"] == sha256(jcs(sealed.job_spec))
    assert predicate["datasetManifestSha256"] == sha256(jcs(sealed.manifest))
    assert predicate["acknowledged"] is acknowledged
    assert set(predicate["destroyed"]) == DESTROYED
    assert max(predicate["destroyed"].values()) <= predicate["signedAt"] <= time.time() + 300
