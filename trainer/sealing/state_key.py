"""The state key of a job: what its checkpoints are sealed under. It comes from the grants of its datasets alone.

    state secret     s_i = HKDF-SHA256(secret of grant i)                    `grant_secrets.state_secret`
    state key        K   = HKDF-SHA256(s_1 ‖ … ‖ s_n, info = domain ‖ 0 ‖ n as 4 bytes, big-endian)
    checkpoint keys      = HKDF-SHA256(K, info = domain ‖ 0 ‖ digests of spec, manifest and app-compose.json)

No key of the VM enters: after a restart with other keys, the job goes on once every provider has granted again.
Without all of the grants nobody can open a checkpoint, or make one that the job accepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from trainer.sealing.age.identity import hkdf_sha256
from trainer.sealing.bundle import Grant
from trainer.sealing.grant_secrets import state_secret
from trainer.sealing.sealed_checkpoint import (
    CHECKPOINT_KEY_BYTES,
    CheckpointBinding,
    CheckpointKeys,
)
from trainer.sealing.wiping import wiped

_STATE_DOMAIN: Final = b"confidential-trainer/job-state/v1"
_CHECKPOINT_DOMAIN: Final = b"confidential-trainer/checkpoint/v1"


def job_state_key(grants: Sequence[Grant]) -> bytearray:
    """Returns the state key of a job, 32 bytes; the caller wipes it.

    Args:
        grants: of the job's datasets, in the order of the job spec. Another order gives another key.

    Raises:
        ValueError: no grant.
    """
    if not grants:
        raise ValueError("a state key needs a grant")
    # Each secret has 32 bytes and their number is in the info: no two lists of secrets give the same input.
    secrets = bytearray(b"".join(bytes.fromhex(state_secret(grant.secret)) for grant in grants))
    with wiped(secrets):
        return hkdf_sha256(secrets, b"", _STATE_DOMAIN + b"\0" + len(grants).to_bytes(4, "big"))


def checkpoint_keys(grants: Sequence[Grant], binding: CheckpointBinding) -> CheckpointKeys:
    """Returns the checkpoint keys of a job.

    Args:
        grants: as for `job_state_key`.
        binding: digests of spec, manifest and app: nothing made for another of them fits.
    """
    digests = (binding.job_spec_sha256, binding.dataset_manifest_sha256, binding.app_compose_sha256)
    info = _CHECKPOINT_DOMAIN + b"\0" + b"".join(map(bytes.fromhex, digests))
    with wiped(job_state_key(grants)) as key, wiped(bytearray(CHECKPOINT_KEY_BYTES)) as material:
        HKDF(SHA256(), len(material), None, info).derive_into(key, material)
        return CheckpointKeys.from_material(material)  # copies it; the original is zeroed
