"""trainer/SPEC.md says what the code does; with UPDATE_DOCS=1 in the environment this file rewrites it."""

from __future__ import annotations

import io
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI

from trainer import logs
from trainer.attestation.dstack.event_log import _LoggedEvent
from trainer.attestation.evidence import DatasetClaims, Evidence, Recipients
from trainer.attestation.nvidia.gpu_endorsements import GpuEndorsementsDocument
from trainer.attestation.policy import Policy
from trainer.attestation.result import record
from trainer.encoding import canonical_json, sha256_hex
from trainer.errors import ErrorCode
from trainer.exchange.limits import Limits
from trainer.exchange.upload_authorization import UploadAuthorization, sign_authorization
from trainer.exchange.withdrawal import Withdrawal, sign_withdrawal
from trainer.front.http.dataset_routes import DatasetRoutes
from trainer.front.http.job_routes import JobRoutes
from trainer.front.http.regrant_routes import RegrantRoutes
from trainer.front.http.result_routes import ResultRoutes
from trainer.front.http.withdrawal_routes import WithdrawalRoutes
from trainer.job.end_record import EndRecord
from trainer.models import Activity, Phase, Strict
from trainer.provider.grants import GrantRecord
from trainer.provider.nonces import SpentNonce, SpentNonces
from trainer.provider_keys import ProviderKey
from trainer.receipt.dsse import public_key_der, sign_envelope, verify_envelope
from trainer.receipt.statement import RunSummary
from trainer.sandbox.properties import SandboxProperty
from trainer.sealing import grant_secrets
from trainer.sealing.age import identity_from_seed
from trainer.sealing.bundle import Grant
from trainer.sealing.bundle_signature import BundleSignature, sign_bundle
from trainer.sealing.regrant import Regrant
from trainer.sealing.sealed_checkpoint import CheckpointBinding, CheckpointFile, CheckpointHeader
from trainer.sealing.state_key import checkpoint_keys, job_state_key
from trainer.spec import JobSpec, parse_job_spec
from trainer.spec.key_types import describe_field
from trainer.tee import key_derivation as keys

DOCUMENT = Path(__file__).parents[1] / "trainer" / "SPEC.md"
RECEIPT_SCALAR = 12345

SPEC_YAML = f"""\
version: 1
model:
  model_name_or_path: ./models/tiny
  model_file_sha256: {{config.json: {"a" * 64}, model.safetensors: {"b" * 64}}}
train: {{learning_rate: 2e-4, max_steps: 20}}
"""


def key_table() -> str:
    lines = ["| key | default | |", "|---|---|---|"]
    for section, field in JobSpec.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, Strict):
            for name, leaf in model.model_fields.items():
                default = "required" if leaf.is_required() else f"`{json.dumps(leaf.default)}`"
                lines.append(f"| `{section}.{name}` | {default} | {describe_field(leaf)} |")
    return "\n".join(lines)


def job_spec() -> str:
    spec = parse_job_spec(SPEC_YAML.encode())
    return f"{spec.canonical().decode()}\nSHA-256 {spec.sha256()}"


def receipt() -> str:
    key = ec.derive_private_key(RECEIPT_SCALAR, ec.SECP256R1())
    envelope = sign_envelope(b'{"_type":"example"}', key)
    assert verify_envelope(envelope, public_key_der(key.public_key())) == b'{"_type":"example"}'
    return envelope.decode()


def derived_keys() -> str:
    secret, digest = b"\x01" * 32, "ab" * 32
    seed = keys.recipient_seed(secret, digest)
    return "\n".join(
        [
            f"path       {keys.recipient_path(digest)}",
            f"seed       {seed.hex()}",
            f"X25519     {identity_from_seed(seed, hybrid=False).recipient()}",
        ]
    )


def example_grant() -> Grant:
    recipient = str(identity_from_seed(b"\x01" * 32, hybrid=False).recipient())
    return Grant(
        version=1,
        job_spec_sha256="ab" * 32,
        recipients=(recipient,),
        expires_at=1800000000,
        secret="7e" * 32,
    )


def checkpoint() -> str:
    binding = CheckpointBinding(
        job_spec_sha256="ab" * 32, dataset_manifest_sha256="cd" * 32, app_compose_sha256="ef" * 32
    )
    made = checkpoint_keys([example_grant()], binding)
    files = {"state.json": CheckpointFile(sha256=sha256_hex(b"{}"), size=2)}
    header = CheckpointHeader(
        version=1, step=12, binding=binding, files=files, tag=made.tag(1, 12, binding, files)
    )
    state_key = job_state_key([example_grant()]).hex()
    return f"state key {state_key}\nlabel     {made.label}\n{header.canonical().decode()}"


def derived_from_the_grant() -> str:
    secret = "7e" * 32
    return "\n".join(
        [
            f"events token      {grant_secrets.events_token(secret)}",
            f"acknowledgement   {grant_secrets.acknowledgement(secret, 'ab' * 32)}",
            f"state secret      {grant_secrets.state_secret(secret)}",
        ]
    )


def bundle_signature() -> str:
    key = ProviderKey(b"\x01" * 32)
    return f"{key.public}\n{sign_bundle(key, 'age1', 'ab' * 32, 'cd' * 32).canonical().decode()}"


def regrant() -> str:
    key = ProviderKey(b"\x01" * 32)
    made = Regrant(
        version=1, header="age-encryption.org/v1", job_spec_sha256="ab" * 32, grant_sha256="bc" * 32,
        manifest_sha256="cd" * 32, recipient_sha256="de" * 32, instance_sha256="ef" * 32, expires_at=1800000000,
    ).signed(key).tagged("7e" * 32)  # fmt: skip
    return made.canonical().decode()


def upload_authorization() -> str:
    authorization = UploadAuthorization(
        version=1,
        expires_at=1800000000,
        job_spec_sha256="ab" * 32,
        recipient_sha256="cd" * 32,
        size=22139,
        tls_spki_sha256="ef" * 32,
    )
    document = canonical_json(authorization.model_dump(mode="json")).decode()
    return f"{document}\n{sign_authorization(authorization, ProviderKey(bytes([1]) * 32))}"


def withdrawal() -> str:
    request = Withdrawal(version=1, job_spec_sha256="ab" * 32, grant_sha256="cd" * 32)
    document = canonical_json(request.model_dump(mode="json")).decode()
    return f"{document}\n{sign_withdrawal(request, ProviderKey(bytes([1]) * 32))}"


def events() -> str:
    stream = io.StringIO()
    public = logs.PublicLog(stream)
    for event in (
        logs.SpecLoaded("0" * 64),
        logs.PhaseEntered(Phase.AWAITING_DATASET),
        logs.Listening(8443, "1" * 64),
        logs.DatasetReceived(22139),
        logs.PreparationProgress(Activity.TOKENIZING, 35, 40),
        logs.TrainingProgress(3, 20, 41),
        logs.CheckpointSealed(3, 1214904),
        logs.ResultSealed(73355),
        logs.JobFailed(ErrorCode.WORKER_DIED),
    ):
        public(event)
    return re.sub(r'"time": \d+', '"time": 1790000000', stream.getvalue()).strip()


def listed(values: Iterable[str]) -> str:
    return textwrap.fill("  ".join(values), 120, break_on_hyphens=False, break_long_words=False)


def event_fields() -> str:
    own = [
        found for found in logs.PublicEvent.__subclasses__() if found.__module__ == logs.__name__
    ]
    classes = sorted(own, key=lambda found: found.event)
    return "\n".join(
        f"{found.event:<20}{', '.join(field.name for field in fields(found))}" for found in classes
    )


EXAMPLES: dict[str, Callable[[], str]] = {
    "job-spec": job_spec,
    "receipt": receipt,
    "keys": derived_keys,
    "grant-secrets": derived_from_the_grant,
    "bundle-signature": bundle_signature,
    "regrant": regrant,
    "upload-authorization": upload_authorization,
    "withdrawal": withdrawal,
    "checkpoint": checkpoint,
    "events": events,
    "phases": lambda: listed(Phase),
    "error-codes": lambda: listed(ErrorCode),
    "event-fields": event_fields,
    "sandbox-properties": lambda: listed(SandboxProperty),
}


def rewrite(text: str) -> str:
    table = f"<!-- keys -->\n{key_table()}\n<!-- /keys -->"
    text = re.sub(r"<!-- keys -->.*<!-- /keys -->", lambda _: table, text, flags=re.DOTALL)
    text = re.sub(
        r"```yaml\n.*?```", lambda _: f"```yaml\n{SPEC_YAML}```", text, count=1, flags=re.DOTALL
    )
    for name, make in EXAMPLES.items():
        block = f"<!-- example: {name} -->\n```\n{make()}\n```\n<!-- /example -->"
        pattern = rf"<!-- example: {name} -->.*?<!-- /example -->"
        text, found = re.subn(pattern, lambda _, block=block: block, text, flags=re.DOTALL)  # type: ignore[misc]
        assert found == 1, name
    return text


def test_examples_are_what_the_code_makes() -> None:
    text = DOCUMENT.read_text("utf-8")
    if os.environ.get("UPDATE_DOCS"):
        DOCUMENT.write_text(rewrite(text), "utf-8")
    assert DOCUMENT.read_text("utf-8") == rewrite(text)


def section(heading: str) -> str:
    """The text below a heading, up to the next one."""
    text = DOCUMENT.read_text("utf-8")
    begin = text.index(f"\n{heading}\n")
    end = re.search(r"^##", text[begin + len(heading) :], re.MULTILINE)
    return text[begin : begin + len(heading) + end.start() if end else None]


def named(cell: str) -> set[str]:
    """`a[]`, `b.c` → a, b.c"""
    return {name.removesuffix("[]") for name in re.findall(r"`([a-z0-9_.]+(?:\[\])?)`", cell)}


def table_rows(heading: str, number: int) -> dict[frozenset[str], str]:
    """The names in the first column of a section's table → the second column."""
    table = re.findall(r"(?:^\|.*\n)+", section(heading), re.MULTILINE)[number]
    rows = [line.strip("| ").split(" | ", 1) for line in table.splitlines()[2:]]
    return {frozenset(named(cells[0])): cells[-1] for cells in rows}


TABLES: tuple[tuple[str, int, type[Strict]], ...] = (
    ("## Claims", 0, DatasetClaims),
    ("## Evidence", 0, Evidence),
    ("## Policy", 0, Policy),
    ("## Result record", 0, record._RecordDocument),
    ("## Spent nonces", 0, SpentNonces),
    ("### The grant", 0, Grant),
    ("### Events", 0, _LoggedEvent),
    ("### The manifest", 0, GrantRecord),
    ("### The signature", 0, BundleSignature),
    ("### The checkpoint", 0, CheckpointHeader),
    ("### The end record", 0, EndRecord),
    ("## Receipt", 1, RunSummary),
)


@pytest.mark.parametrize(
    ("heading", "number", "model"), TABLES, ids=[heading for heading, *_ in TABLES]
)
def test_a_table_of_keys_has_the_keys_that_the_code_reads(
    heading: str, number: int, model: type[Strict]
) -> None:
    stated = {name.split(".")[0] for names in table_rows(heading, number) for name in names}
    assert stated == set(model.model_fields)


NESTED: tuple[tuple[str, str, type[Strict]], ...] = (
    ("## Claims", "recipients", Recipients),
    ("## Result record", "endorsements", GpuEndorsementsDocument),
    ("## Spent nonces", "spent", SpentNonce),
    ("### The checkpoint", "binding", CheckpointBinding),
    ("### The checkpoint", "files", CheckpointFile),
)


@pytest.mark.parametrize(
    ("heading", "key", "model"), NESTED, ids=[f"{one}: {two}" for one, two, _ in NESTED]
)
def test_what_is_inside_a_key_has_the_names_that_the_code_reads(
    heading: str, key: str, model: type[Strict]
) -> None:
    (text,) = (text for names, text in table_rows(heading, 0).items() if key in names)
    assert named(text) == set(model.model_fields)


@pytest.mark.parametrize(
    "word",
    ["job.yaml", "grant.json", "manifest.json", "checkpoint.json", "policy", "Result record"],
)
def test_it_has_a_section_for_each_format(word: str) -> None:
    assert word in DOCUMENT.read_text("utf-8")


ANYWHERE = {"400": {"request-invalid"}, "431": {"request-invalid"}}
"""Refusals of any request, which the section says once."""


def routes() -> dict[str, dict[str, Any]]:
    """`METHOD /path` → its answers in the OpenAPI document."""
    app, nothing = FastAPI(), cast("Any", None)
    app.include_router(JobRoutes(nothing, Limits()).router())
    app.include_router(WithdrawalRoutes(nothing, nothing).router())
    app.include_router(DatasetRoutes(nothing, nothing, nothing).router())
    app.include_router(RegrantRoutes(nothing, Path(), Limits()).router())
    app.include_router(ResultRoutes(nothing, Path(), Limits()).router())
    paths = app.openapi()["paths"].items()
    return {
        f"{method.upper()} {path.replace('{upload_id}', 'ID')}": operation["responses"]
        for path, operations in paths
        for method, operation in operations.items()
    }


def stated_routes() -> dict[str, tuple[set[str], dict[str, set[str]]]]:
    """`METHOD /path` → statuses of success, and codes of each status of refusal, as the table has them."""
    found = {}
    for line in re.findall(r"^\| `[A-Z]+ /.*", section("## Exchange over HTTPS"), re.MULTILINE):
        request, success, refusals = line.strip("|").split("|")
        codes: dict[str, set[str]] = {}
        for part in re.split(r", (?=\d{3})", refusals.strip()):
            if part:
                codes[part[:3]] = {
                    code for code in re.findall("`([a-z-]+)`", part) if code in set(ErrorCode)
                }
        found[request.strip("` ").partition("?")[0]] = (
            set(re.findall(r"\b(2\d\d|304)\b", success)),
            codes,
        )
    return found


def test_the_table_of_requests_has_the_answers_that_the_front_documents() -> None:
    stated, documented = stated_routes(), routes()
    assert stated.keys() == documented.keys()
    for request, (successes, refusals) in stated.items():
        answers = documented[request]
        codes = {
            status: set(
                answer["content"]["application/json"]["schema"]["properties"]["error"]["enum"]
            )
            for status, answer in answers.items()
            if status[0] in "45" and status != "422"
        }
        assert {**refusals, **ANYWHERE} == codes, request
        assert successes == {status for status in answers if status[0] in "23"}, request


def test_the_section_says_the_limits_of_an_unfinished_upload_and_of_a_head() -> None:
    text, limits = section("## Exchange over HTTPS"), Limits()
    assert f"{limits.empty_upload_seconds:.0f} s after its beginning" in text
    assert f"{limits.upload_idle_seconds / 60:.0f} minutes\nafter the latest byte" in text
    assert f"more than {limits.head_bytes >> 10} KiB or {limits.headers} headers" in text
