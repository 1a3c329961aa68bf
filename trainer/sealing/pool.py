"""The pool of a joint job: the opened bundles of all its providers, as one dataset.

It has what an `OpenedBundle` has: grants, manifest and files. Files are in the order of the providers in the job
spec, and of their names in each bundle.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import ErrorCode, SealingError
from trainer.models import MAX_BUNDLE_FILES
from trainer.sealing.archive import bundle_invalid
from trainer.sealing.bundle import SPLIT_DOMAIN, Grant, Manifest, OpenedBundle
from trainer.spec.pool_names import pool_folder, pool_name, pool_sha256


@dataclass(frozen=True)
class PoolManifest:
    """The manifests of all bundles of a pool, in the order of the providers."""

    manifests: tuple[Manifest, ...]

    def sha256(self) -> str:
        """Returns the digest by which checkpoints, receipts and deletion statements name the pool, in hex."""
        return pool_sha256([manifest.sha256() for manifest in self.manifests])

    def salted_digests(self) -> dict[str, str]:
        """Maps each provider's folder to the digest of its manifest, which is salted: it tells others nothing."""
        return {
            pool_folder(number): manifest.sha256()
            for number, manifest in enumerate(self.manifests, start=1)
        }

    def split_key(self) -> bytes:
        """Returns the 32 bytes under which a job decides which rows it holds out; no provider chooses them."""
        return hmac.digest(
            b"".join(manifest.split_key() for manifest in self.manifests), SPLIT_DOMAIN, "sha256"
        )


@dataclass(frozen=True)
class Pool:
    """The opened bundles of all providers of a joint job.

    Args:
        bundles: in the order of the providers in the job spec.
    """

    bundles: tuple[OpenedBundle, ...]

    @property
    def grants(self) -> tuple[Grant, ...]:
        """The grants, in the order of the providers."""
        return tuple(bundle.grant for bundle in self.bundles)

    @property
    def manifest(self) -> PoolManifest:
        """The manifests of all bundles."""
        return PoolManifest(tuple(bundle.manifest for bundle in self.bundles))

    @property
    def files(self) -> dict[str, Path]:
        """Maps the name of each file in the pool to the extracted file."""
        return {
            pool_name(number, name): path
            for number, bundle in enumerate(self.bundles, start=1)
            for name, path in bundle.files.items()
        }


def require_joint_terms(grant: Grant, providers: Sequence[str], own: str | None) -> None:
    """Requires that a grant is one for a joint job of these providers, or for a job of one if there are none.

    Args:
        grant: the grant.
        providers: provider keys of all providers of the joint job; empty: the job is not a joint one.
        own: provider key of the grant's own provider; None if it is not known yet: one key may be missing then.

    Raises:
        SealingError: GRANTS_DIFFER.
    """
    if (grant.joint is not None) != bool(providers):
        raise SealingError(
            ErrorCode.GRANTS_DIFFER,
            "the grant",
            expected="one for a joint job"
            if providers
            else "one for a job with the dataset of one provider",
            found="the other",
        )
    accepted = set(grant.joint.accepts) if grant.joint else set()
    strangers = set(providers) - accepted - {own}
    if len(strangers) > (own is None):
        raise SealingError(
            ErrorCode.GRANTS_DIFFER,
            "the providers beside whose datasets this one may be trained on",
            expected="all others that the job spec lists",
            found=f"all but {len(strangers)} of them",
        )


def require_fits_pool(names: Collection[str], providers: int) -> None:
    """Requires that a bundle leaves room for the files of the other providers of a joint job.

    Raises:
        SealingError: BUNDLE_INVALID.
    """
    limit = MAX_BUNDLE_FILES // providers
    if len(names) > limit:
        raise bundle_invalid(
            "data files of one provider of a joint job", f"at most {limit}", len(names)
        )


def require_same_recipients(grant: Grant, other: Grant) -> None:
    """Requires that two grants of a joint job name the same recipients of the result.

    Raises:
        SealingError: GRANTS_DIFFER.
    """
    if set(grant.recipients) != set(other.recipients):
        raise SealingError(
            ErrorCode.GRANTS_DIFFER,
            "the recipients of the result",
            expected="those that the grants of the other providers name",
            found="others",
        )


ReceivedDataset = OpenedBundle | Pool
"""What a job trains on."""
