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

A file that exists is complete: each is written under a temporary name and renamed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from trainer.attestation.result.record import Record, save_record
from trainer.encoding import file_sha256
from trainer.errors import ErrorCode, UsageError
from trainer.provider.grants import GrantRecord, read_grant_record
from trainer.provider.verification import read_record
from trainer.sealing.atomic_files import PRIVATE_MODE, replace_atomically


class SubmissionDirectory:
    """What a submission has written so far.

    Args:
        path: the directory.

    Attributes:
        sealed_dataset: path of the sealed dataset.
        sealed_result: path of the sealed result.
        deletion: path of the verified deletion statement about the sealed result.
        upload_begun: empty file: an upload of `sealed_dataset` was started.
        upload_state: file in which the carrier keeps what it needs to continue an upload.
        uploaded: empty file: the job has all of `sealed_dataset`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sealed_dataset = path / "dataset.age"
        self.sealed_result = path / "result.tar.age"
        self.deletion = path / "deletion.json"
        self.upload_begun = path / "upload-begun"
        self.upload_state = path / "upload.json"
        self.uploaded = path / "uploaded"
        self._attestation = path / "attestation.json"
        self._restarted = path / "restarted.json"
        self._grant = path / "grant.json"
        self._earlier_grant = path / "earlier-grant.json"
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
            UsageError: the directory belongs to another submission.
        """
        # Written first and compared on every later call: other data or another policy must not continue an upload.
        file = self.path / "submission.json"
        if not file.exists():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(file, description)
            return False
        if file.read_bytes() != description:
            if self._failed.exists():
                # The job refused the submission for good: other data, or another policy, begins a new one.
                shutil.rmtree(self.path)
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
        return self._attestation.exists()

    def load_record(self, *, now: float) -> Record | None:
        """Returns the saved record, unless it has expired before a dataset was sealed on it; None without one."""
        if not self._attestation.exists():
            return None
        record = read_record(self._attestation)
        # Once a dataset is sealed the record stays: the result is checked against it, however long training takes.
        return record if self._grant.exists() or record.result.expires_at > now else None

    def save_record(self, record: Record) -> None:
        """Saves the record that the dataset is sealed on."""
        write_atomically(self._attestation, save_record(record))

    def load_peer_key(self, record: Record) -> str | None:
        """Returns the SHA-256 of the TLS key of the job as it was started last, in hex; None without TLS."""
        latest = read_record(self._restarted) if self._restarted.exists() else record
        return latest.result.peer_spki_sha256

    def load_grant(self) -> GrantRecord | None:
        """Returns the grant of the sealed dataset; None unless both exist."""
        return read_grant_record(self._grant) if self._grant.exists() and self.sealed_dataset.exists() else None

    def save_grant(self, grant: GrantRecord) -> None:
        """Saves the grant of the sealed dataset."""
        write_atomically(self._grant, grant.model_dump_json().encode())

    def load_earlier_secret(self) -> str | None:
        """Returns the secret of the grant before a restart: with it a job finds its earlier checkpoints."""
        return read_grant_record(self._earlier_grant).grant.secret if self._earlier_grant.exists() else None

    def discard_sealed_dataset(self) -> None:
        """Removes a sealed dataset whose grant is missing, or the reverse: the two are only good together."""
        for file in (self._grant, self.sealed_dataset):
            file.unlink(missing_ok=True)

    def adopt_restarted_job(self, record: Record, *, has_result: bool) -> None:
        """Replaces the job by its appraised restart; keeps the sealed dataset if that is still of use.

        It is if the job offers the result already, or if the recipient is the same, as it is for a dataset sealed
        to the app's derived key. Otherwise the dataset must be sealed anew, under the secret of the earlier grant.

        Args:
            record: the appraisal of the restarted job.
            has_result: whether the restarted job offers a result.
        """
        for file in (self.uploaded, self.upload_state):
            file.unlink(missing_ok=True)
        is_same_recipient = record.result.recipient == read_record(self._attestation).result.recipient
        if is_same_recipient or (has_result and self._grant.exists()):
            # `upload-begun` stays: the job may have kept the dataset on its volume and be training already.
            write_atomically(self._restarted, save_record(record))
            return
        if self._grant.exists():
            self._grant.rename(self._earlier_grant)
        self.save_record(record)
        for file in (self.upload_begun, self.sealed_dataset, self._restarted):
            file.unlink(missing_ok=True)

    def begin_upload(self) -> None:
        """Notes that an upload was started: a submission that had failed is under way again."""
        self._failed.unlink(missing_ok=True)
        self.upload_begun.touch()

    def forget_upload(self) -> None:
        """Removes what is known of an upload, so that the next call sends the dataset again."""
        for file in (self.uploaded, self.upload_begun, self.upload_state):
            file.unlink(missing_ok=True)

    def refuse_result(self) -> None:
        """Sets aside a sealed result that did not open or failed a check, so that the next call pulls another."""
        self.sealed_result.replace(self._refused_result)
        self.deletion.unlink(missing_ok=True)

    def forget_result(self) -> None:
        """Removes the report of an interrupted job, which goes on."""
        for file in (self.sealed_result, self.deletion, self.uploaded):
            file.unlink(missing_ok=True)

    def mark_failed(self) -> None:
        """Notes that the job failed for good: another submission may replace this one."""
        for file in (self.sealed_result, self.deletion):
            file.unlink(missing_ok=True)
        self._failed.touch()

    def make_room_to_open(self) -> Path:
        """Returns the path of a directory to open the result in; removes what an interrupted call left there."""
        folder = self.path / "opened"
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def place_opened(self, folder: Path, output: Path, *, failed: bool) -> Path:
        """Moves an opened result to OUTPUT, or an opened failure report to its `OUTPUT.failure-N`; returns which.

        Raises:
            UsageError: OUTPUT was created since the submission began; the sealed result stays.
        """
        target = self._find_failure(file_sha256(self.sealed_result), output) if failed else output
        if not target.exists():
            folder.rename(target)
        elif failed:
            shutil.rmtree(folder)  # the report that an earlier call opened
        else:  # somebody else's: the result must neither replace it nor be lost for it
            raise UsageError(
                ErrorCode.OUTPUT_EXISTS,
                f"{target} was created while the job ran",
                hint="move it away and repeat the command: the sealed result is kept",
            )
        return target

    def _find_failure(self, sealed_sha256: str, output: Path) -> Path:
        """Returns `OUTPUT.failure-N` for a sealed failure report; one that was seen before keeps its number."""
        seen = self._failures.read_text(encoding="ascii").split() if self._failures.exists() else []
        for digest, _, known in (line.partition(":") for line in seen):
            if digest == sealed_sha256:
                return output.with_name(f"{output.name}.failure-{known}")
        number = 1
        while (target := output.with_name(f"{output.name}.failure-{number}")).exists():
            number += 1
        write_atomically(self._failures, "\n".join([*seen, f"{sealed_sha256}:{number}"]).encode())
        return target

    def remove(self) -> None:
        """Removes the directory: the result is in place."""
        shutil.rmtree(self.path)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a private file that exists either complete or not at all: the next call relies on it."""
    with replace_atomically(path, PRIVATE_MODE) as file:
        file.write(data)
