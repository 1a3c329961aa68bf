"""The private directory that makes a submission resumable: `OUTPUT.submission`, removed once the job succeeded.

    submission.json      what is submitted: job location, policy, data, recipients
    attestation.json     record of the appraisal that the dataset is sealed on
    restarted.json       record of a restarted job to which the sealed dataset still belongs
    grant.json           the grant, with its secret
    earlier-grant.json   the grant before a restart that made sealing anew necessary
    dataset.age          the sealed dataset
    upload-begun, upload.json, uploaded    how far the upload is
    result.tar.age       the sealed result
    deletion.json        the job's verified statement of what it destroyed, from beside the sealed result
    refused-result.age   a sealed result that did not open or failed a check
    failures             digest and number of each failure report that was opened
    failed               empty: the job failed for good, and nothing was uploaded since

A file that exists is complete: each is written under a temporary name and renamed. The documents decide where data
goes and which result is accepted, so each bears a tag of this user, this machine, this directory and its own name
(`trainer.provider.own_files`). A directory that came from elsewhere is refused, whatever is in it.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

from trainer.atomic_files import PRIVATE_MODE, replace_atomically
from trainer.attestation.policy import Policy
from trainer.attestation.result.record import Record, load_record, save_record
from trainer.encoding import canonical_json, file_sha256
from trainer.errors import DATASET_FAULTS, ErrorCode, SealingError, UsageError
from trainer.provider.acknowledgement import DeletionReceiver
from trainer.provider.grants import GrantRecord, parse_grant_record
from trainer.provider.local_files import require_absent
from trainer.provider.own_files import LocalSecret, OwnDirectory
from trainer.provider.receipt_record import record_directory
from trainer.provider.result_check import OpenedResult
from trainer.provider.result_paths import failure_path, result_paths
from trainer.provider.transport.carrier import Carrier

_SUBMISSION: Final = "submission.json"
_ATTESTATION: Final = "attestation.json"
_RESTARTED: Final = "restarted.json"
_GRANT: Final = "grant.json"
_EARLIER_GRANT: Final = "earlier-grant.json"


class SubmissionDirectory:
    """What a submission has written so far.

    Args:
        path: the directory.
        secret: authenticates the documents in it.
        policy: the policy that this command names; a record under another one is not used.

    Attributes:
        sealed_dataset: path of the sealed dataset.
        sealed_result: path of the sealed result.
        deletion: path of the verified deletion statement about the sealed result.
        upload_begun: empty file: an upload of `sealed_dataset` was started.
        upload_state: file in which the carrier keeps what it needs to continue an upload.
        uploaded: empty file: the job has all of `sealed_dataset`.
    """

    def __init__(self, path: Path, secret: LocalSecret, policy: Policy) -> None:
        self.path = path
        self._own = OwnDirectory(path, secret)
        self._policy = policy
        self.sealed_dataset = path / "dataset.age"
        self.sealed_result = path / "result.tar.age"
        self.deletion = path / "deletion.json"
        self.upload_begun = path / "upload-begun"
        self.upload_state = path / "upload.json"
        self.uploaded = path / "uploaded"
        self._refused_result = path / "refused-result.age"
        self._failures = path / "failures"
        self._failed = path / "failed"

    def open_for(self, description: bytes) -> bool:
        """Creates the directory, or makes sure that the submission in it is the same.

        Args:
            description: canonical bytes that identify the submission.

        Returns:
            Whether an earlier submission continues.

        Raises:
            UsageError: the directory was not made here, or belongs to another submission.
            VerificationError: its description was not written here.
        """
        if not os.path.lexists(self.path):
            self._own.create({_SUBMISSION: description})
            return False
        self._own.require_own()
        if not self._own.has(_SUBMISSION):
            self._own.require_absent()
        # Compared on every later call: other data or another policy must not continue an upload.
        if self._own.read(_SUBMISSION) != description:
            if self._failed.exists():
                # The job refused the submission for good: other data, or another policy, begins a new one.
                self.remove()
                return self.open_for(description)
            raise UsageError(
                ErrorCode.USAGE,
                f"another submission is under way in {self.path}",
                expected="the same job, policy, data and identity",
                found="others",
                hint=f"repeat the earlier command, or remove {self.path} to give it up",
            )
        return True

    def has_record(self) -> bool:
        """Returns whether the job was appraised by an earlier step: it exists, and may come back."""
        return self._own.has(_ATTESTATION)

    def load_record(self, *, now: float) -> Record | None:
        """Returns the saved record, unless it has expired before a dataset was sealed on it; None without one."""
        if not self._own.has(_ATTESTATION):
            return None
        record = self._read_record(_ATTESTATION)
        # Once a dataset is sealed the record stays: the result is checked against it, however long training takes.
        return record if self._own.has(_GRANT) or record.result.expires_at > now else None

    def save_record(self, record: Record) -> None:
        """Saves the record that the dataset is sealed on."""
        self._own.write(_ATTESTATION, save_record(record))

    def _read_record(self, name: str) -> Record:
        """Returns a record of this directory: appraised again, under this command's policy, as of its own time."""
        return load_record(self._own.read(name), policy=self._policy, is_authentic=True)

    def is_sealed_to(self, recipient: str) -> bool:
        """Returns whether the dataset is sealed to this recipient of the job."""
        return self._read_record(_ATTESTATION).result.recipient == recipient

    def load_peer_key(self, record: Record) -> str | None:
        """Returns the SHA-256 of the TLS key of the job as it was started last, in hex; None without TLS."""
        return (self.load_restarted() or record).result.peer_spki_sha256

    def load_restarted(self) -> Record | None:
        """Returns the appraisal of the job as it was started last; None if it was not started again."""
        return self._read_record(_RESTARTED) if self._own.has(_RESTARTED) else None

    def deletion_receiver(
        self, client: Carrier, record: Record, grant: GrantRecord, sealed_sha256: str
    ) -> DeletionReceiver:
        """Returns what receives the job's deletion statement about the sealed result of this digest."""
        return DeletionReceiver(
            client,
            record,
            self.deletion,
            sealed_sha256,
            # In a joint job it is about the pool, whose digest the receipt has.
            None if grant.pool else grant.manifest_sha256,
            self.load_restarted(),
        )

    def load_grant(self) -> GrantRecord | None:
        """Returns the grant of the sealed dataset; None unless both exist."""
        has_both = self._own.has(_GRANT) and self.sealed_dataset.exists()
        return parse_grant_record(self._own.read(_GRANT)) if has_both else None

    def save_grant(self, grant: GrantRecord) -> None:
        """Saves the grant of the sealed dataset."""
        self._own.write(_GRANT, canonical_json(grant.model_dump(mode="json")))

    def load_earlier_secret(self) -> str | None:
        """Returns the secret of the grant before a restart: with it a job finds its earlier checkpoints."""
        if not self._own.has(_EARLIER_GRANT):
            return None
        return parse_grant_record(self._own.read(_EARLIER_GRANT)).grant.secret

    def discard_sealed_dataset(self) -> None:
        """Removes a sealed dataset whose grant is missing, or the reverse: the two are only good together."""
        for file in (self.path / _GRANT, self.sealed_dataset):
            file.unlink(missing_ok=True)

    def adopt_restarted_job(self, record: Record, *, keeps_dataset: bool) -> None:
        """Replaces the job by its appraised restart; keeps the sealed dataset if that is still of use.

        It is if the job has it or its result, or if the recipient is the same, as it is for a dataset sealed to
        the app's derived key. Otherwise it must be sealed anew, under the secret of the earlier grant.

        Args:
            record: the appraisal of the restarted job.
            keeps_dataset: whether the restarted job has the dataset, opened or not, or its result.
        """
        if not (
            self.is_sealed_to(record.result.recipient) or (keeps_dataset and self._own.has(_GRANT))
        ):
            self.seal_anew(record)
            return
        for file in (self.uploaded, self.upload_state):
            file.unlink(missing_ok=True)
        # `upload-begun` stays: the job may have kept the dataset on its volume and be training already.
        self._own.write(_RESTARTED, save_record(record))

    def seal_anew(self, record: Record) -> None:
        """Gives the sealed dataset up, so that the next step seals it to the job of this appraisal."""
        self.forget_upload()
        if self._own.has(_GRANT):
            self._own.write(_EARLIER_GRANT, self._own.read(_GRANT))
            (self.path / _GRANT).unlink()
        self.save_record(record)
        for file in (self.sealed_dataset, self.path / _RESTARTED):
            file.unlink(missing_ok=True)

    def begin_upload(self) -> None:
        """Notes that an upload was started: a submission that had failed is under way again."""
        self._failed.unlink(missing_ok=True)
        self.upload_begun.touch()

    def forget_upload(self) -> None:
        """Removes what is known of an upload, so that the next call sends the dataset again."""
        for file in (self.uploaded, self.upload_begun, self.upload_state):
            file.unlink(missing_ok=True)

    def forget_refused(self, error: SealingError) -> None:
        """Forgets an upload that the job refused; for its rows: another submission may replace this."""
        if error.code in DATASET_FAULTS:
            self.mark_failed()
        if error.code is ErrorCode.GRANT_WITHDRAWN:  # the grant is good for nothing any more
            self.discard_sealed_dataset()
        self.forget_upload()

    def refuse_result(self) -> None:
        """Sets aside a sealed result that did not open or failed a check, so that the next call pulls another."""
        self.sealed_result.replace(self._refused_result)
        self.deletion.unlink(missing_ok=True)

    def forget_result(self) -> None:
        """Removes the report of an interrupted job, which goes on."""
        for file in (self.sealed_result, self.deletion, self.uploaded):
            file.unlink(missing_ok=True)

    def mark_failed(self) -> None:
        """Notes that the job failed, or refused the dataset: another submission may replace this one."""
        self.forget_upload()
        for file in (self.sealed_result, self.deletion):
            file.unlink(missing_ok=True)
        self._failed.touch()

    def make_room_to_open(self) -> Path:
        """Returns the path of a directory to open the result in; removes what an interrupted call left there."""
        folder = self.path / "opened"
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def place_opened(self, opened: OpenedResult, output: Path, sealed_sha256: str) -> OpenedResult:
        """Moves an opened result to OUTPUT, or a failure report to its `OUTPUT.failure-N`; writes its record.

        Args:
            opened: the opened result or failure report.
            output: OUTPUT.
            sealed_sha256: SHA-256 of the sealed file in hex.

        Returns:
            The result where it is now.

        Raises:
            UsageError: OUTPUT was created since the submission began; the sealed result stays.
        """
        folder, is_failure = opened.folder, opened.failure is not None
        target = self._find_failure(sealed_sha256, output) if is_failure else output
        if not os.path.lexists(target):
            require_absent(record_directory(target))
            folder.rename(target)
        elif is_failure or _content(folder) == _content(target):
            shutil.rmtree(folder)  # what an earlier call opened, and put there before it was killed
        else:  # somebody else's: the result must neither replace it nor be lost for it
            raise UsageError(
                ErrorCode.OUTPUT_EXISTS,
                f"{target} was created while the job ran",
                hint="move it away and repeat the command: the sealed result is kept",
            )
        placed = replace(opened, folder=target)
        placed.write_record()
        return placed

    def _find_failure(self, sealed_sha256: str, output: Path) -> Path:
        """Returns `OUTPUT.failure-N` for a sealed failure report; one that was seen before keeps its number."""
        text = self._failures.read_text("ascii", "replace") if self._failures.exists() else ""
        seen = dict(re.findall("^([0-9a-f]{64}):([1-9][0-9]{0,5})$", text, re.MULTILINE))
        if sealed_sha256 not in seen:
            free = next(
                n
                for n in itertools.count(1)
                if not any(map(os.path.lexists, result_paths(failure_path(output, n))))
            )
            seen[sealed_sha256] = str(free)
            with replace_atomically(self._failures, PRIVATE_MODE) as file:
                file.write(
                    "\n".join(f"{digest}:{known}" for digest, known in seen.items()).encode()
                )
        return failure_path(output, int(seen[sealed_sha256]))

    def remove(self) -> None:
        """Removes the directory: the result is in place."""
        self._own.remove()


def _content(folder: Path) -> dict[Path, str | None]:
    """Returns what is below a directory: the SHA-256 of each file by its relative path, None for a directory."""
    return {
        path.relative_to(folder): file_sha256(path) if path.is_file() else None
        for path in folder.rglob("*")
    }
