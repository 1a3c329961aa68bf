"""The provider's side, step by step: verify → seal → upload → watch → pull → open.

Nothing here imports torch. Each step takes what the step before wrote, so that each can be repeated by itself;
`trainer.submission` strings them together.
"""

from __future__ import annotations

import base64
import io
import itertools
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import JsonValue, ValidationError

from trainer.attestation.evidence import Evidence, parse_evidence
from trainer.attestation.policy import (
    MAX_POLICY_BYTES,
    CollateralDocument,
    CollateralUrl,
    OsSection,
    Policy,
    parse_policy,
    policy_yaml,
    read_measurements,
    strict_policy,
)
from trainer.attestation.record import Record, load_record, make_record
from trainer.attestation.result import AttestationResult
from trainer.attestation.verifier import appraise
from trainer.confinement.walls import EXPECTED, NEEDS_NO_COMPILER
from trainer.encoding import parse_json, sha256_hex
from trainer.errors import ErrorCode, JobError, SealingError, TrainerError, UsageError, VerificationError
from trainer.examples.dataset import shape_of
from trainer.exchange.carrier import Carrier, SealedEvent
from trainer.exchange.client import JobClient
from trainer.exchange.collateral import fetch_collateral
from trainer.exchange.gpu_endorsements import fetch_gpu_endorsements
from trainer.exchange.spool import SpoolClient
from trainer.models import Phase, Sha256Hex, Status, Strict
from trainer.nonces import spend_nonce
from trainer.receipt.deletion import Awaited, DeletionStatement, check_deletion
from trainer.rows import AS_FOUND, ENDINGS, Shape, kind_name, read_rows
from trainer.sealing.age import Identity, decrypt, generate_identity, parse_identity_file, parse_recipient
from trainer.sealing.bundle import Grant, PrivacyDemand, Require
from trainer.sealing.seal import seal
from trainer.spec import JobSpec, read_job_spec

GRANT_SECONDS: Final = 7 * 86400
"""How long a job may open a dataset after it was sealed, unless the provider says otherwise."""

MAX_SMALL_FILE_BYTES: Final = 64 << 20

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


def demanded_sandbox(specs: Sequence[JobSpec]) -> tuple[str, ...]:
    """Walls that `policy init` demands: what every one of these jobs can have on any kernel with seccomp.

    A job whose kernels are compiled at run time runs a compiler, so it cannot have all of them.
    """
    absent = NEEDS_NO_COMPILER if any(spec.train.may_compile for spec in specs) else frozenset()
    return tuple(sorted(wall.value for wall in EXPECTED - absent))


@dataclass(frozen=True)
class ReviewedApp:
    """Files that a provider read before trusting them: app-compose.json, and the job specs that may run."""

    app_compose: Path
    jobs: Sequence[Path]


# identities


def new_identity(path: Path, *, hybrid: bool = True) -> str:
    """Write a new identity in age's file format, mode 0600, and return its recipient.

    Raises:
        UsageError: the file exists; an identity is never overwritten.
    """
    identity = generate_identity(hybrid=hybrid)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = f"# created: {created}\n# public key: {identity.recipient()}\n{identity}\n"
    write_private(path, text.encode())
    return str(identity.recipient())


def read_identities(path: Path) -> tuple[Identity, ...]:
    """Identities of a file made by `trainer keygen` or age-keygen.

    Raises:
        UsageError: no such file, or no identity in it.
    """
    return parse_identity_file(read_small(path, "identity file").decode("utf-8", "replace"))


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner may read.

    Raises:
        UsageError: the file exists already.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(
            ErrorCode.OUTPUT_EXISTS, f"{path} exists", hint="choose another name, or move the old file away"
        ) from None
    except OSError as error:
        raise UsageError(ErrorCode.USAGE, f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def read_small(path: Path, what: str, limit: int = MAX_SMALL_FILE_BYTES) -> bytes:
    """Bytes of a file that is expected to be small.

    Raises:
        UsageError: it cannot be read, or is larger than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UsageError(ErrorCode.FILE_NOT_FOUND, f"cannot read the {what} {path}: {error.strerror}") from error
    if len(data) > limit:
        raise UsageError(
            ErrorCode.USAGE, f"the {what} {path} is too large", expected=f"at most {limit} bytes", found="more"
        )
    return data


# verify


def read_policy(path: Path) -> Policy:
    """Read policy.yaml; files that it names are found beside it.

    Raises:
        UsageError: not a policy, or a file that it names is missing or has another fingerprint.
    """
    return parse_policy(
        read_small(path, "policy", MAX_POLICY_BYTES),
        read_file=lambda name: read_small(path.parent / name, "file named by the policy"),
    )


def connect(source: str, *, pinned_spki_sha256: str | None = None) -> Carrier:
    """A client for a job: over TLS for an https URL, through files for a directory.

    Raises:
        UsageError: `source` is neither.
    """
    if source.startswith("https://"):
        return JobClient(source, pinned_spki_sha256=pinned_spki_sha256)
    if Path(source).is_dir():
        return SpoolClient(Path(source))
    raise UsageError(
        ErrorCode.USAGE,
        "this is no job to talk to",
        expected="an https:// URL, or a directory used as spool",
        found=source,
    )


def attest(
    client: Carrier, policy: Policy, *, cache: Path, nonces: Path | None = None, now: int | None = None
) -> Record:
    """Ask a job for evidence over a fresh nonce, and appraise it. The record may be a fail.

    Args:
        client: a client that knows no pin yet.
        policy: what is demanded.
        cache: directory for collateral.
        nonces: file that remembers spent nonces; None keeps no record of them.
        now: Unix time to appraise at; None reads the clock.

    Raises:
        UnavailableError: the job or the collateral service does not answer.
        VerificationError: what the job sent is not evidence.
    """
    nonce = secrets.token_hex(32)
    evidence = parse_evidence(client.attestation(nonce))
    return appraise_evidence(
        evidence,
        policy,
        nonce=nonce,
        cache=cache,
        nonces=nonces,
        now=now,
        peer_spki_sha256=client.peer_spki_sha256,
    )


def appraise_evidence(
    evidence: Evidence,
    policy: Policy,
    *,
    nonce: str,
    cache: Path,
    nonces: Path | None = None,
    now: int | None,
    peer_spki_sha256: str | None,
) -> Record:
    """Appraise evidence that came by any way; `nonce` must be the one that the provider chose."""
    clock = int(time.time())
    at = clock if now is None else now
    collateral = policy_collateral(evidence, policy, cache=cache, now=at)
    endorsements = fetch_gpu_endorsements(evidence.gpu.fresh, policy.gpu)
    digest = sha256_hex(evidence.canonical())
    result = appraise(
        evidence,
        collateral=collateral,
        policy=policy,
        nonce=nonce,
        now=at,
        peer_spki_sha256=peer_spki_sha256,
        nonce_unused=None if nonces is None else spend_nonce(nonces, nonce, digest, now=clock),
        endorsements=endorsements,
    )
    return make_record(result, evidence=evidence, collateral=collateral, policy=policy, endorsements=endorsements)


def policy_collateral(evidence: Evidence, policy: Policy, *, cache: Path, now: int) -> bytes:
    """The collateral that the policy names: the file's content, or fetched for this quote's platform."""
    if isinstance(policy.collateral, CollateralDocument):
        return policy.collateral.document.encode()
    return fetch_collateral(bytes.fromhex(evidence.quote), policy.collateral.url, cache_dir=cache, now=now)


def read_record(path: Path) -> Record:
    """Read a saved attestation result; it is appraised again, as of then.

    Raises:
        UsageError: no such file.
        VerificationError: it does not hold, or was edited.
    """
    return load_record(read_small(path, "attestation result"))


def strict_policy_text(
    reviewed: ReviewedApp,
    *,
    trust_root: Path | None,
    collateral: str | None,
    measurements: Sequence[Path],
    gpu_required: bool,
    recipient: Literal["derived", "instance"],
    beside: Path,
) -> str:
    """YAML of a policy that demands exactly the reviewed app, job specs and OS.

    Args:
        reviewed: the files that the provider reviewed.
        trust_root: PEM of another root than Intel's.
        collateral: a file, or the URL of a PCS or PCCS; Intel's service where left out.
        measurements: JSON files with `mrtd` and `rtmr0` to `rtmr2`; none accepts no OS until one is listed.
        gpu_required: whether GPUs in confidential mode are demanded, with fresh reports of their own.
        recipient: which of the job's recipients a dataset is sealed to.
        beside: directory of the policy; a collateral file is named relative to it.

    Raises:
        UsageError: a file cannot be read, or is not what it must be.
    """
    oses = tuple(read_measurements(read_small(path, "measurements")) for path in measurements)
    specs = [read_job_spec(path) for path in reviewed.jobs]
    policy = strict_policy(
        _text(reviewed.app_compose, "app-compose file"),
        specs,
        trust_root_pem=None if trust_root is None else _text(trust_root, "trust root"),
        collateral=None if collateral is None else _collateral_source(collateral),
        os=OsSection(measurements=oses),
        gpu_required=gpu_required,
        sandbox=demanded_sandbox(specs),
        recipient=recipient,
    )
    if not isinstance(policy.collateral, CollateralDocument) or collateral is None:
        return policy_yaml(policy)
    return policy_yaml(policy, collateral_file=os.path.relpath(collateral, beside))


def _collateral_source(source: str) -> CollateralUrl | CollateralDocument:
    if source.startswith(("http://", "https://")):
        return CollateralUrl(url=source)
    return CollateralDocument(document=_text(Path(source), "collateral"))


def _text(path: Path, what: str) -> str:
    """Text of a file with its line ends as they are: what is hashed must not be normalised."""
    try:
        return read_small(path, what).decode()
    except UnicodeDecodeError:
        raise UsageError(
            ErrorCode.USAGE, f"the {what} {path}", expected="UTF-8 text", found="other bytes"
        ) from None


# seal


class GrantRecord(Strict):
    """What the provider keeps of a sealed dataset: the grant, with its token, and the dataset's digest."""

    grant: Grant
    manifest_sha256: Sha256Hex
    rows: int


def data_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Name inside the bundle → file. Of a folder, all files below it, by their names relative to it.

    Raises:
        UsageError: a file is missing, two have the same name, or a folder holds what is no data file.
    """
    files: dict[str, Path] = {}
    for name, path in itertools.chain.from_iterable(map(_named_files, paths)):
        if name in files:
            raise UsageError(ErrorCode.USAGE, f"two data files are called {name}", hint="rename one of them")
        files[name] = path
    return files


def _named_files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield path.name, path
        return
    below = [file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file, path)]
    if not below:
        raise UsageError(ErrorCode.FILE_NOT_FOUND, f"no such data file: {path}")
    for file in below:
        if not file.name.lower().endswith(ENDINGS):
            raise UsageError(
                ErrorCode.USAGE,
                f"{file} is no data file",
                expected=f"only files ending in {', '.join(ENDINGS)}",
                found=file.suffix or "no ending",
                hint="move it out of the folder, or name the data files one by one",
            )
        yield file.relative_to(path).as_posix(), file


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def count_rows(files: Mapping[str, Path], shape: Shape = AS_FOUND) -> Counter[str]:
    """Read every row as the job will; returns how many there are of each kind.

    Args:
        files: name inside the bundle → file.
        shape: how the job spec's data section says that objects become rows.

    Raises:
        DataError: a row is malformed: better to know before the upload.
    """
    kinds: Counter[str] = Counter()
    for name, path in files.items():
        kinds.update(kind_name(row) for row in read_rows(path, name=name, shape=shape))
    return kinds


def shape_for(result: AttestationResult, job: Path | None) -> Shape:
    """How rows are read for an appraised job: as its spec says, where the provider has it.

    Raises:
        UsageError: the job spec cannot be read.
        VerificationError: the appraised job runs another spec.
    """
    if job is None:
        return AS_FOUND
    spec = read_job_spec(job)
    if spec.sha256() != result.job_spec_sha256:
        raise VerificationError(
            ErrorCode.VERIFICATION_FAILED,
            f"{job} is not the spec of the appraised job",
            expected=result.job_spec_sha256,
            found=spec.sha256(),
            hint="the policy must name the job that you mean to use: do not upload",
        )
    return shape_of(spec.data)


def new_grant(
    result: AttestationResult,
    recipients: Sequence[str],
    *,
    now: int,
    seconds: int = GRANT_SECONDS,
    token: str | None = None,
    require: Require | None = None,
) -> Grant:
    """A grant for the appraised job: who the result is for, and until when the job may open the dataset.

    With the `token` of an earlier grant, a job that is started again can open the checkpoints it made under that.

    Raises:
        UsageError: a recipient is not an age recipient.
    """
    return Grant(
        version=1,
        job_spec_sha256=result.job_spec_sha256,
        recipients=tuple(str(parse_recipient(recipient)) for recipient in recipients),
        expires_at=now + seconds,
        token=token or secrets.token_hex(32),
        require=require,
    )


def privacy_demand(max_epsilon: float | None, max_delta: float | None) -> Require | None:
    """What a grant demands of the weights' privacy; None where neither is given.

    Raises:
        UsageError: one without the other, or out of range.
    """
    if max_epsilon is None and max_delta is None:
        return None
    if max_epsilon is None or max_delta is None:
        raise UsageError(ErrorCode.USAGE, "--max-epsilon and --max-delta go together")
    try:
        return Require(privacy=PrivacyDemand(max_epsilon=max_epsilon, max_delta=max_delta))
    except ValidationError:
        raise UsageError(
            ErrorCode.USAGE,
            "a privacy budget",
            expected="--max-epsilon above 0, --max-delta between 0 and 1",
            found=f"{max_epsilon} and {max_delta}",
        ) from None


def seal_dataset(
    files: Mapping[str, Path],
    result: AttestationResult,
    recipients: Sequence[str],
    target: Path,
    *,
    progress: Progress | None = None,
    job: Path | None = None,
    token: str | None = None,
    require: Require | None = None,
) -> GrantRecord:
    """Check the rows, seal the files to the appraised job, and return what to keep.

    Raises:
        DataError: a row is malformed.
        VerificationError: the appraisal is not a pass, or has expired; `job` is not the appraised job's spec.
    """
    rows = count_rows(files, shape_for(result, job))
    now = int(time.time())
    grant = new_grant(result, recipients, now=now, token=token, require=require)
    total = sum(path.stat().st_size for path in files.values())
    manifest = seal(
        files,
        result,
        grant,
        target,
        now=now,
        progress=(lambda done: progress(min(done, total), total)) if progress else None,
    )
    return GrantRecord(grant=grant, manifest_sha256=manifest.sha256(), rows=rows.total())


def read_grant(path: Path) -> GrantRecord:
    """Read what `seal_dataset` returned.

    Raises:
        UsageError: no such file, or not a grant record.
    """
    try:
        return GrantRecord.model_validate_json(read_small(path, "grant"))
    except ValidationError:
        raise UsageError(
            ErrorCode.USAGE, f"{path} is not a grant", hint="`trainer seal` writes it beside the sealed file"
        ) from None


# watch


@dataclass(frozen=True)
class PrivateMetrics:
    """Metrics of one step, opened with the provider's identity."""

    values: Mapping[str, JsonValue]


def watch(client: Carrier, identities: Sequence[Identity], token: str | None) -> Iterator[Status | PrivateMetrics]:
    """Follow a job until its result can be pulled (or it failed): public status, and what is for us alone.

    Raises:
        UnavailableError: the job cannot be reached any more.
        SealingError: it refused the dataset.
        JobError: it failed before it knew whom to tell why.
    """
    for event in client.events(token):
        if isinstance(event, Status):
            yield event
            _raise_if_over(event)
            if event.phase in {Phase.AWAITING_PULL, Phase.DONE, Phase.FAILED}:
                return
        elif (metrics := _open_event(event, identities)) is not None:
            yield metrics


def _raise_if_over(status: Status) -> None:
    if status.phase is Phase.FAILED and status.result_bytes is None:
        raise JobError(ErrorCode(status.error or ErrorCode.JOB_FAILED), "the job failed and left no report")
    if status.phase is Phase.AWAITING_DATASET and status.error is not None:
        raise SealingError(
            ErrorCode(status.error),
            "the job could not open the dataset",
            hint="verify again and seal anew: the job may have been restarted with other keys",
        )


def _open_event(event: SealedEvent, identities: Sequence[Identity]) -> PrivateMetrics | None:
    """Open one private event; None for what is not ours to read or not JSON: it is advice, never a decision."""
    opened = io.BytesIO()
    try:
        decrypt(io.BytesIO(base64.b64decode(event.sealed)), opened, identities)
        values = parse_json(opened.getvalue())
    except (TrainerError, ValueError):
        return None
    return PrivateMetrics(values) if isinstance(values, dict) else None


# the end


def check_deletion_of(
    envelope: bytes, record: Record, *, result_sha256: str | None = None, manifest_sha256: str | None = None
) -> DeletionStatement:
    """Check what an appraised job signed at its end: see `check_deletion`.

    Raises:
        VerificationError: it does not hold.
    """
    awaited = Awaited(
        receipt_key=record.result.receipt_key,
        job_spec_sha256=record.result.job_spec_sha256,
        received_at=int(time.time()),
        result_sha256=result_sha256,
        manifest_sha256=manifest_sha256,
    )
    return check_deletion(envelope, awaited)
