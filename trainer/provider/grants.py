"""The seal step: write the grant, check the rows, and encrypt both to the appraised job."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError

from trainer.attestation.result.attestation_result import AttestationResult
from trainer.data.examples.example_set import row_schema
from trainer.data.rows import DEFAULT_SCHEMA
from trainer.errors import ErrorCode, UsageError, VerificationError
from trainer.model_files.adapter_config import ADAPTER_PREFIX
from trainer.model_files.start_adapter import check_start_adapter, take_start_adapter
from trainer.models import Phase, Status, Strict, parse_strict
from trainer.provider.dataset_files import count_rows
from trainer.provider.local_files import read_small_file
from trainer.provider_keys import ProviderKey
from trainer.receipt.expected_result import GrantTerms, PoolPlace
from trainer.sealing.age import new_file_key, parse_recipient, wrap_file_key
from trainer.sealing.bundle import Grant, GrantDemands, Manifest, PrivacyDemand
from trainer.sealing.grant_secrets import acknowledgement, events_token
from trainer.sealing.joint_terms import JointTerms
from trainer.sealing.pool import require_fits_pool, require_joint_terms
from trainer.sealing.seal import seal
from trainer.spec import JobSpec

GRANT_SECONDS: Final = 7 * 86400
"""Default lifetime of a grant: how long after sealing a job may open the dataset."""

SealingProgress = Callable[[int, int], None]
"""Receives the bytes processed, and of how many."""


class GrantRecord(Strict):
    """What the provider keeps of a sealed dataset: the grant with its secret, and which files were sealed.

    `header` has its file key, kept in no other form: an age header for the recipients of the result, in a joint
    job for the provider's own. `pool` is the dataset's place in a joint job.
    """

    grant: Grant
    manifest: Manifest
    rows: int
    header: Annotated[str, Field(pattern=r"^[\n -~]+$", max_length=1 << 16)]
    pool: PoolPlace | None = None

    @property
    def number(self) -> int | None:
        """The number of the provider in a joint job; None in a job of one provider."""
        return self.pool.number if self.pool else None

    def is_in(self, status: Status) -> bool:
        """Returns whether a joint job that waits for other providers has this dataset."""
        return self.number in status.received

    def needs_regrant(self, status: Status) -> bool:
        """Returns whether a job kept this dataset over a restart and waits for its provider to grant it again."""
        return status.phase is Phase.AWAITING_GRANT and self.number in {None, *status.retained}

    @property
    def events_token(self) -> str:
        """The bearer token for private events."""
        return events_token(self.grant.secret)

    @property
    def manifest_sha256(self) -> str:
        """Digest of the manifest, by which receipts name the dataset."""
        return self.manifest.sha256()

    @property
    def salted_digests(self) -> dict[str, str]:
        """Maps each file of the dataset to the digest by which receipts name it."""
        return self.manifest.salted_digests()

    def terms(self) -> GrantTerms:
        """Returns what a result must be under this grant; nothing of it is secret."""
        privacy = self.grant.require.privacy if self.grant.require else None
        return GrantTerms(
            recipients=self.grant.recipients,
            manifest_sha256=self.manifest_sha256,
            dataset_files=self.salted_digests,
            max_epsilon=privacy.max_epsilon if privacy else None,
            max_delta=privacy.max_delta if privacy else None,
            rows=self.rows,
            pool=self.pool,
        )

    def acknowledgement(self, result_sha256: str) -> str:
        """Returns what tells the job that the sealed result of this digest has arrived."""
        return acknowledgement(self.grant.secret, result_sha256)


_GRANT_RECORD: Final = TypeAdapter(GrantRecord)


def make_grant(
    result: AttestationResult,
    recipients: Sequence[str],
    *,
    now: int,
    seconds: int = GRANT_SECONDS,
    secret: str | None = None,
    require: GrantDemands | None = None,
    joint: JointTerms | None = None,
) -> Grant:
    """Returns a new grant for the appraised job.

    Args:
        result: the appraisal of the job.
        recipients: age recipients of the result.
        now: Unix time.
        seconds: how long the job may open the dataset.
        secret: that of an earlier grant, with which a restarted job opens its checkpoints; None makes one.
        require: what the job must fulfil beyond its spec.
        joint: what the provider demands of a joint job; None for a job of one provider.

    Raises:
        UsageError: a recipient is not an age recipient.
    """
    return Grant(
        version=1,
        job_spec_sha256=result.job_spec_sha256,
        recipients=tuple(str(parse_recipient(recipient)) for recipient in recipients),
        expires_at=now + seconds,
        secret=secret or secrets.token_hex(32),
        require=require,
        joint=joint,
    )


def make_privacy_demand(max_epsilon: float | None, max_delta: float | None) -> GrantDemands | None:
    """Returns a grant's demand on differential privacy; None if neither value is given.

    Args:
        max_epsilon: largest ε that the provider accepts.
        max_delta: largest δ that the provider accepts.

    Raises:
        UsageError: one without the other, or a value out of range.
    """
    if max_epsilon is None and max_delta is None:
        return None
    if max_epsilon is None or max_delta is None:
        raise UsageError(ErrorCode.USAGE, "--max-epsilon and --max-delta go together")
    try:
        return GrantDemands(privacy=PrivacyDemand(max_epsilon=max_epsilon, max_delta=max_delta))
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
    progress: SealingProgress | None = None,
    spec: JobSpec | None = None,
    secret: str | None = None,
    require: GrantDemands | None = None,
    key: ProviderKey | None = None,
    joint: JointTerms | None = None,
) -> GrantRecord:
    """Checks the rows, seals the files to the appraised job, and returns what the provider keeps.

    Args:
        files: name in the bundle → path.
        result: the appraisal; must be a pass.
        recipients: age recipients of the result.
        target: path of the sealed dataset.
        progress: receives the bytes sealed.
        spec: the appraised job's; None if it is not known, which reads rows in the default way.
        secret: as for `make_grant`.
        require: as for `make_grant`.
        key: the provider's, which signs the bundle; None leaves it unsigned.
        joint: as for `make_grant`.

    Raises:
        SealingError: GRANTS_DIFFER: the job is a joint one and the grant is not, or the reverse; or it accepts not
            all providers of the job spec.
        DataError: a row is malformed, or the start adapter is not one of the job spec.
        UsageError: there is a start adapter and no job spec; the spec lists providers, and not this one.
        VerificationError: the appraisal is not a pass or has expired.
    """
    if spec is not None:
        require_listed_provider(spec, key)
    schema = row_schema(spec.data) if spec is not None else DEFAULT_SCHEMA
    rows = count_rows(_take_row_files(files, spec), schema)
    now = int(time.time())
    grant = make_grant(result, recipients, now=now, secret=secret, require=require, joint=joint)
    place, file_key = _place_in_pool(grant, files, spec, key), new_file_key()
    # `seal` counts the archive's headers too, so the bytes done may exceed the sum of the file sizes.
    total = sum(path.stat().st_size for path in files.values())
    manifest = seal(
        files,
        result,
        grant,
        target,
        now=now,
        key=key,
        file_key=file_key,
        progress=(lambda done: progress(min(done, total), total)) if progress else None,
    )
    own = grant.joint.own_recipients if grant.joint else grant.recipients
    header = wrap_file_key(file_key, [parse_recipient(text) for text in own]).decode("ascii")
    return GrantRecord(grant=grant, manifest=manifest, rows=rows.total(), header=header, pool=place)


def _place_in_pool(
    grant: Grant, files: Mapping[str, Path], spec: JobSpec | None, key: ProviderKey | None
) -> PoolPlace | None:
    """Returns the place of a dataset in a joint job, after the judgement by which the job admits it; None else.

    Raises:
        SealingError: the job would refuse it.
        UsageError: the grant is for a joint job, and there is no job spec.
    """
    if spec is None and grant.joint is not None:
        raise UsageError(
            ErrorCode.USAGE,
            "--accept needs the job's spec, which lists the providers",
            hint="it is not in the measured compose text: name it with --job",
        )
    if spec is None:
        return None
    providers = spec.exchange.providers if spec.exchange.joint else ()
    require_joint_terms(grant, providers, key.public if key else None)
    if grant.joint is None or key is None:
        return None
    require_fits_pool(files, len(providers))
    number = providers.index(key.public) + 1
    return PoolPlace(
        number=number, providers=len(providers), own_recipients=grant.joint.own_recipients
    )


def _take_row_files(files: Mapping[str, Path], spec: JobSpec | None) -> Mapping[str, Path]:
    """Returns the files with rows, after the start adapter among the others was judged."""
    if spec is None:
        if any(name.startswith(ADAPTER_PREFIX) for name in files):
            raise UsageError(
                ErrorCode.USAGE,
                "--adapter needs the job's spec, which decides whether training starts from it",
                hint="it is not in the measured compose text: name it with --job",
            )
        return files
    row_files, adapter = take_start_adapter(files, spec)
    if adapter is not None:
        check_start_adapter(adapter, spec, None)
    return row_files


def require_same_job(record: GrantRecord, result: AttestationResult) -> None:
    """Returns only if a grant is for the job spec of an appraisal.

    Raises:
        VerificationError: GRANT_MISMATCH.
    """
    if record.grant.job_spec_sha256 != result.job_spec_sha256:
        raise VerificationError(
            ErrorCode.GRANT_MISMATCH,
            "the grant is for another job spec than the attestation result",
            expected=result.job_spec_sha256,
            found=record.grant.job_spec_sha256,
            hint="give the grant and the attestation result of one submission",
        )


def require_listed_provider(spec: JobSpec, key: ProviderKey | None) -> None:
    """Requires that a provider may submit to a job, before anything is sealed.

    Raises:
        UsageError: `unauthorized`: the spec lists providers, and not this one.
    """
    if spec.exchange.providers and (key is None or key.public not in spec.exchange.providers):
        raise UsageError(
            ErrorCode.UNAUTHORIZED,
            "the job accepts the datasets of listed providers alone",
            expected=" or ".join(spec.exchange.providers),
            found=key.public if key else "no provider key",
            hint="give the identity file (-i) whose provider key the job spec lists",
        )


def read_grant_record(path: Path) -> GrantRecord:
    """Reads a saved grant record.

    Raises:
        UsageError: the file does not exist, or is not a grant record.
    """
    return parse_grant_record(read_small_file(path, "grant"), str(path))


def parse_grant_record(data: bytes, name: str = "this") -> GrantRecord:
    """Parses the JSON of a grant record.

    Raises:
        UsageError: it is not one; the message calls it `name`.
    """
    try:
        return parse_strict(_GRANT_RECORD, data)
    except ValueError as error:
        raise UsageError(
            ErrorCode.USAGE,
            f"{name} is not a grant",
            expected="the .grant.json that `trainer seal` wrote beside the sealed file",
            found=str(error),
            hint="name it with --grant",
        ) from None
