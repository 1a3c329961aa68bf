"""Options that several commands share, and the paths of the tool's own files on the provider's machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from trainer.errors import ErrorCode, UsageError

if TYPE_CHECKING:
    from trainer.attestation.result.record import Record
    from trainer.provider import LocalSecret
    from trainer.provider.identity_files import ProviderIdentity

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on the last line of stdout.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress, only results and errors.")
]
JOB_LOCATION: Final = (
    "https:// URL of the job, its object store (s3://BUCKET/PREFIX), or its spool directory."
)
"""Where a job is reached: a location of one of the carriers in `provider/transport/carrier_registry.py`."""

Source = Annotated[str, typer.Argument(metavar="URL", help=JOB_LOCATION)]
JobUrl = Annotated[str, typer.Option("--job-url", "--via", help=JOB_LOCATION)]
PolicyFile = Annotated[
    Path, typer.Option("--policy", help="What you demand of the job (policy.yaml).")
]
IdentityFile = Annotated[
    Path, typer.Option("--identity", "-i", help="Your identity, from `trainer keygen`.")
]
SigningIdentity = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        "-i",
        help="Your identity, whose provider key signs: needed where job.yaml lists providers.",
    ),
]
RecordFile = Annotated[
    Path | None,
    typer.Option(
        "--attestation",
        metavar="result.json",
        help="What `trainer verify -o` wrote on this machine, under the same policy.",
    ),
]
ImportedRecord = Annotated[
    Path | None,
    typer.Option(
        "--import-record",
        metavar="FILE",
        help="In place of --attestation: what you saved on another machine; appraised again, as of now.",
    ),
]
DEFAULT_MAX_RESULT_BYTES: Final = 1 << 34
MaxBytes = Annotated[
    int,
    typer.Option(
        "--max-bytes",
        min=1,
        metavar="BYTES",
        help="Refuse a sealed result that is larger than this.",
    ),
]
JobFile = Annotated[
    Path | None,
    typer.Option(
        "--job",
        help="The job's spec. Needed only where the measured compose text does not have it, for columns, a format "
        "or an adapter that it names.",
    ),
]
AdapterDir = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        metavar="DIR",
        help="Start from this earlier adapter: for a job spec with lora.start_from.",
    ),
]
MaxEpsilon = Annotated[
    float | None,
    typer.Option(
        "--max-epsilon", help="Accept only differentially private weights, with at most this ε."
    ),
]
MaxDelta = Annotated[
    float | None, typer.Option("--max-delta", help="Goes with --max-epsilon: at most this δ.")
]
AcceptedProviders = Annotated[
    list[str] | None,
    typer.Option(
        "--accept",
        metavar="KEY",
        help="For a joint job: provider key of another provider whose dataset may be beside yours; one for each.",
    ),
]
SharedWith = Annotated[
    list[str] | None,
    typer.Option(
        "--share-with",
        metavar="RECIPIENT",
        help="For a joint job: age recipient of another provider, who gets the result too; the same list for all.",
    ),
]
Notify = Annotated[
    str | None,
    typer.Option(
        "--notify",
        metavar="URL|COMMAND",
        help="Announce the end: a POST to this URL, or this command, run without a shell, with a sentence added.",
    ),
]
GrantFile = Annotated[
    Path | None,
    typer.Option(
        "--grant", help="The .grant.json that `trainer seal` wrote beside the sealed file."
    ),
]


def cache_directory() -> Path:
    """Returns the directory of cached collateral: `$XDG_CACHE_HOME/confidential-trainer`."""
    # XDG Base Directory Specification: a variable that is empty counts as not set.
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "confidential-trainer"


def require_absent(path: Path) -> None:
    """Requires that an output does not exist; raises UsageError (`output-exists`) if it does."""
    from trainer import provider

    provider.require_absent(path)


def state_directory() -> Path:
    """Returns the directory of what this tool remembers: `$XDG_STATE_HOME/confidential-trainer`."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    return state / "confidential-trainer"


def nonces_file() -> Path:
    """Returns the file of spent nonces."""
    return state_directory() / "nonces"


def local_secret() -> LocalSecret:
    """Returns this user's secret, which authenticates what this tool keeps on this machine."""
    from trainer.provider import LocalSecret

    return LocalSecret(state_directory() / "secret")


def load_attestation(attestation: Path | None, imported: Path | None, policy: Path) -> Record:
    """Returns the appraisal that a command was given, under the policy that the same command names.

    Raises:
        UsageError: neither or both of `--attestation` and `--import-record`, or a file cannot be read.
        VerificationError: the record is not this user's, is of another policy, or does not pass.
    """
    from trainer import provider

    demanded = provider.read_policy(policy)
    if attestation is not None and imported is None:
        return provider.read_own_record(attestation, demanded, secret=local_secret())
    if imported is not None and attestation is None:
        return provider.import_record(
            imported, demanded, cache=cache_directory(), nonces=nonces_file()
        )
    raise UsageError(
        ErrorCode.USAGE,
        "the appraisal of the job",
        expected="--attestation, or --import-record for one of another machine",
        found="neither" if attestation is None else "both",
    )


def load_identity(path: Path) -> ProviderIdentity:
    """Returns the content of an identity file; asks for its passphrase if it has one."""
    from trainer import provider

    return provider.read_identity_file(path, lambda file: ask_passphrase(f"passphrase of {file}"))


def ask_passphrase(what: str) -> bytes:
    """Asks on the terminal, without showing what is typed.

    Raises:
        UsageError: there is no terminal, or nothing was typed.
    """
    import getpass
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # it would show what is typed
            typed = getpass.getpass(f"{what}: ")
    except (getpass.GetPassWarning, EOFError, OSError):
        typed = ""
    if not typed:
        raise UsageError(
            ErrorCode.USAGE, what, expected="a passphrase typed on a terminal", found="nothing"
        ) from None
    return typed.encode()
