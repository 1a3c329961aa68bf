"""Reads policies, and writes a strict policy for files that the provider reviewed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.attestation.dstack.event_log import key_provider, parse_event_log, payload
from trainer.attestation.dstack.key_chain import issuer
from trainer.attestation.dstack.key_source import KEY_SERVICE
from trainer.attestation.evidence import Evidence
from trainer.attestation.policy import (
    MAX_POLICY_BYTES,
    NO_PINS,
    AppSection,
    CollateralDocument,
    CollateralUrl,
    KeyServicePins,
    OsSection,
    Policy,
    app_key_source,
    parse_policy,
    policy_yaml,
    read_measurements,
    require_plain_text,
    strict_app,
    strict_policy,
    undecided_app,
)
from trainer.errors import ErrorCode, VerificationError
from trainer.provider.local_files import read_small_file, read_text_file
from trainer.sandbox.properties import EXPECTED, NEEDS_NO_COMPILER
from trainer.spec import JobSpec, read_job_spec


def select_sandbox_demands(specs: Sequence[JobSpec]) -> tuple[str, ...]:
    """Returns the sandbox properties that `policy init` demands: those that each of these jobs can have.

    A job that compiles GPU or CPU kernels at run time starts a compiler, so it cannot have every property.
    """
    absent = NEEDS_NO_COMPILER if any(spec.train.may_compile for spec in specs) else frozenset()
    return tuple(sorted(name.value for name in EXPECTED - absent))


@dataclass(frozen=True)
class PolicyDemands:
    """What a provider demands of a job besides its app-compose.json.

    Args:
        jobs: files of the job specs that may run.
        trust_root: PEM of a root other than Intel's; None for Intel's.
        collateral: a file, or the URL of a PCS or PCCS; None for Intel's service.
        measurements: JSON files with `mrtd` and `rtmr0` to `rtmr2`; a policy without any accepts no OS.
        gpu_required: whether GPUs in confidential mode with fresh reports are demanded.
        recipient: the recipient that a dataset is sealed to: of this VM, or derived for the app by a key service.
        pins: the key service that the provider trusts, for an app that has one.
    """

    jobs: Sequence[Path]
    trust_root: Path | None
    collateral: str | None
    measurements: Sequence[Path]
    gpu_required: bool
    recipient: Literal["derived", "instance"]
    pins: KeyServicePins = NO_PINS


def read_policy(path: Path) -> Policy:
    """Reads policy.yaml. Names of files in it are relative to its directory.

    Raises:
        UsageError: not a policy, or a file that it names is missing or has another digest.
    """
    return parse_policy(
        read_small_file(path, "policy", MAX_POLICY_BYTES),
        read_file=lambda name: read_small_file(path.parent / name, "file named by the policy"),
    )


def make_strict_policy(app_compose: str, demands: PolicyDemands) -> Policy:
    """Returns a policy that demands exactly this app and its key source, and the job specs and OS of `demands`.

    Args:
        app_compose: exact text of app-compose.json.
        demands: everything else.

    Raises:
        UsageError: a file cannot be read or has the wrong form, or others than the VM could read the data.
    """
    app = strict_app(
        app_compose, _read_specs(demands), pins=demands.pins, recipient=demands.recipient
    )
    return _make_policy(app, demands)


def make_undecided_policy(app_compose: str, demands: PolicyDemands) -> Policy:
    """Returns the policy of `make_strict_policy` with any keys: to find out which key service a job has.

    Raises:
        UsageError: a file cannot be read or has the wrong form.
    """
    return _make_policy(undecided_app(app_compose, _read_specs(demands)), demands)


def find_key_service(evidence: Evidence, demands: PolicyDemands) -> KeyServicePins:
    """Returns the key service of an appraised job, as far as `demands` and app-compose.json do not name it.

    The evidence is that of a pass under `make_undecided_policy`. None of what it says of the key service is to be
    relied on before the provider accepts it, and the evidence passes under the policy that then names it.

    Returns:
        What remains to be accepted; nothing for an app without a key service.

    Raises:
        UsageError: the app-compose.json cannot be read, or contradicts `demands`.
        VerificationError: the job shows no key service although its app demands one.
    """
    source, given = app_key_source(evidence.app_compose, demands.pins), demands.pins
    if source.provider != KEY_SERVICE:
        return NO_PINS
    events = parse_event_log(evidence.event_log)
    app_id, provider = payload(events, "app-id") or b"", key_provider(events)
    root_key = issuer(evidence.key_chain, evidence.claims.derived_keys, app_id)
    if root_key is None or provider is None:
        raise VerificationError(
            ErrorCode.EVIDENCE_INVALID,
            "the key service of the job",
            expected="keys that one key service issued",
            found="none",
            hint="give --kms-root-key and --app-id, or ask the operator why the job has no keys of a key service",
        )
    return KeyServicePins(
        identity=None if source.identity else provider.identity,
        root_key=None if given.root_key else root_key,
        app_id=None if given.app_id else app_id.hex(),
    )


def _read_specs(demands: PolicyDemands) -> list[JobSpec]:
    return [read_job_spec(path) for path in demands.jobs]


def _make_policy(app: AppSection, demands: PolicyDemands) -> Policy:
    oses = tuple(
        read_measurements(read_small_file(path, "measurements")) for path in demands.measurements
    )
    collateral, trust_root = demands.collateral, demands.trust_root
    source: CollateralUrl | CollateralDocument | None = None
    if collateral is not None and collateral.startswith(("http://", "https://")):
        source = CollateralUrl(url=collateral)
    elif collateral is not None:
        source = CollateralDocument(document=_read_plain_text(Path(collateral), "collateral"))
    return strict_policy(
        app,
        trust_root_pem=None if trust_root is None else _read_plain_text(trust_root, "trust root"),
        collateral=source,
        os=OsSection(measurements=oses),
        gpu_required=demands.gpu_required,
        sandbox=select_sandbox_demands(_read_specs(demands)),
    )


def _read_plain_text(path: Path, what: str) -> str:
    return require_plain_text(read_text_file(path, what), f"the {what} {path}")


def render_policy(policy: Policy, demands: PolicyDemands, *, beside: Path) -> str:
    """Returns the YAML of a policy that `make_strict_policy` made.

    Args:
        policy: the policy.
        demands: what it was made from.
        beside: directory of the policy; the path of a collateral file is written relative to it.
    """
    if not isinstance(policy.collateral, CollateralDocument) or demands.collateral is None:
        return policy_yaml(policy)
    return policy_yaml(policy, collateral_file=os.path.relpath(demands.collateral, beside))
