"""The provider's side, step by step: verify → seal → upload → watch → pull → open.

Nothing here imports torch. Each step takes what the step before wrote, so that each can be repeated by itself;
`trainer.provider.submission` strings them together.
"""

from trainer.provider.dataset_files import count_rows, data_files, shape_for
from trainer.provider.following import PrivateMetrics, check_deletion_of, watch
from trainer.provider.grants import (
    GRANT_SECONDS,
    GrantRecord,
    Progress,
    new_grant,
    privacy_demand,
    read_grant,
    seal_dataset,
)
from trainer.provider.local_files import (
    MAX_SMALL_FILE_BYTES,
    new_identity,
    read_identities,
    read_small,
    write_private,
)
from trainer.provider.policies import ReviewedApp, demanded_sandbox, read_policy, strict_policy_text
from trainer.provider.transport.carrier_registry import connect_to_job
from trainer.provider.verification import appraise_evidence, attest, policy_collateral, read_record

__all__ = [
    "GRANT_SECONDS",
    "MAX_SMALL_FILE_BYTES",
    "GrantRecord",
    "PrivateMetrics",
    "Progress",
    "ReviewedApp",
    "appraise_evidence",
    "attest",
    "check_deletion_of",
    "connect_to_job",
    "count_rows",
    "data_files",
    "demanded_sandbox",
    "new_grant",
    "new_identity",
    "policy_collateral",
    "privacy_demand",
    "read_grant",
    "read_identities",
    "read_policy",
    "read_record",
    "read_small",
    "seal_dataset",
    "shape_for",
    "strict_policy_text",
    "watch",
    "write_private",
]
