"""The data provider's side of a job: verify → seal → upload → watch → pull → open.

Each step is a function that takes what the step before it wrote, so that a step can be repeated by itself.
`trainer.provider.submission` runs all of them. The names below are what `trainer.cli` calls. Nothing here imports
torch, and a name imports its module when it is first used: `trainer validate` needs no evidence and no network.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trainer.provider.acknowledgement import STATEMENT_ERRORS, DeletionReceiver
    from trainer.provider.attested_spec import attested_job_spec
    from trainer.provider.authorization import make_authorizer
    from trainer.provider.dataset_files import find_data_files
    from trainer.provider.grants import (
        make_grant,
        make_privacy_demand,
        read_grant_record,
        require_same_job,
        seal_dataset,
    )
    from trainer.provider.identity_files import create_identity, read_identity_file
    from trainer.provider.job_events import EventDisplay, describe_training, watch_job
    from trainer.provider.local_files import (
        read_small_file,
        read_text_file,
        require_absent,
        write_private_file,
    )
    from trainer.provider.opening import open_sealed_result
    from trainer.provider.own_files import LocalSecret
    from trainer.provider.policies import (
        PolicyDemands,
        find_key_service,
        make_strict_policy,
        make_undecided_policy,
        read_policy,
        render_policy,
    )
    from trainer.provider.public_export import export_public
    from trainer.provider.receipt_account import describe_loss, describe_privacy, give_account
    from trainer.provider.receipt_record import record_directory
    from trainer.provider.receipt_verification import (
        VerifiedReceipt,
        is_result,
        read_receipt_record,
        verify_result,
    )
    from trainer.provider.regranting import find_grant_record, send_regrant, wait_regranted
    from trainer.provider.submission import run_submission
    from trainer.provider.submission_request import Submission
    from trainer.provider.transport.carrier import require_result_size
    from trainer.provider.transport.carrier_registry import connect_to_job
    from trainer.provider.verification import (
        appraise_deployed_app,
        appraise_evidence,
        appraise_job,
        import_record,
        read_own_record,
        save_own_record,
        verify_deletion_statement,
    )
    from trainer.provider.withdrawing import withdraw_dataset

__all__ = [
    "STATEMENT_ERRORS",
    "DeletionReceiver",
    "EventDisplay",
    "LocalSecret",
    "PolicyDemands",
    "Submission",
    "VerifiedReceipt",
    "appraise_deployed_app",
    "appraise_evidence",
    "appraise_job",
    "attested_job_spec",
    "connect_to_job",
    "create_identity",
    "describe_loss",
    "describe_privacy",
    "describe_training",
    "export_public",
    "find_data_files",
    "find_grant_record",
    "find_key_service",
    "give_account",
    "import_record",
    "is_result",
    "make_authorizer",
    "make_grant",
    "make_privacy_demand",
    "make_strict_policy",
    "make_undecided_policy",
    "open_sealed_result",
    "read_grant_record",
    "read_identity_file",
    "read_own_record",
    "read_policy",
    "read_receipt_record",
    "read_small_file",
    "read_text_file",
    "record_directory",
    "render_policy",
    "require_absent",
    "require_result_size",
    "require_same_job",
    "run_submission",
    "save_own_record",
    "seal_dataset",
    "send_regrant",
    "verify_deletion_statement",
    "verify_result",
    "wait_regranted",
    "watch_job",
    "withdraw_dataset",
    "write_private_file",
]

_MODULES: Final = {
    "acknowledgement": ("STATEMENT_ERRORS", "DeletionReceiver"),
    "attested_spec": ("attested_job_spec",),
    "authorization": ("make_authorizer",),
    "dataset_files": ("find_data_files",),
    "grants": (
        "make_grant",
        "make_privacy_demand",
        "read_grant_record",
        "require_same_job",
        "seal_dataset",
    ),
    "identity_files": ("create_identity", "read_identity_file"),
    "job_events": ("EventDisplay", "describe_training", "watch_job"),
    "local_files": ("read_small_file", "read_text_file", "require_absent", "write_private_file"),
    "opening": ("open_sealed_result",),
    "own_files": ("LocalSecret",),
    "policies": (
        "PolicyDemands",
        "find_key_service",
        "make_strict_policy",
        "make_undecided_policy",
        "read_policy",
        "render_policy",
    ),
    "public_export": ("export_public",),
    "receipt_account": ("describe_loss", "describe_privacy", "give_account"),
    "receipt_record": ("record_directory",),
    "receipt_verification": (
        "VerifiedReceipt",
        "is_result",
        "read_receipt_record",
        "verify_result",
    ),
    "regranting": ("find_grant_record", "send_regrant", "wait_regranted"),
    "submission": ("run_submission",),
    "submission_request": ("Submission",),
    "transport.carrier": ("require_result_size",),
    "transport.carrier_registry": ("connect_to_job",),
    "verification": (
        "appraise_deployed_app",
        "appraise_evidence",
        "appraise_job",
        "import_record",
        "read_own_record",
        "save_own_record",
        "verify_deletion_statement",
    ),
    "withdrawing": ("withdraw_dataset",),
}
"""Module → the names above that it defines."""

_MODULE_OF: Final = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Imports the module of a name (PEP 562).

    Raises:
        AttributeError: there is no such name.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
