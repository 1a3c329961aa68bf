"""The provider's appraisal policy: its model, its text forms, and what it means in words."""

from trainer.attestation.policy.model import (
    MAX_POLICY_BYTES,
    AppSection,
    CollateralDocument,
    CollateralUrl,
    FreshnessSection,
    GpuSection,
    KeyProviderDemand,
    OsMeasurements,
    OsSection,
    Policy,
    TcbSection,
    TrustRoot,
    parse_policy,
)
from trainer.attestation.policy.text import explain, policy_yaml, read_measurements, strict_policy

__all__ = [
    "MAX_POLICY_BYTES",
    "AppSection",
    "CollateralDocument",
    "CollateralUrl",
    "FreshnessSection",
    "GpuSection",
    "KeyProviderDemand",
    "OsMeasurements",
    "OsSection",
    "Policy",
    "TcbSection",
    "TrustRoot",
    "explain",
    "parse_policy",
    "policy_yaml",
    "read_measurements",
    "strict_policy",
]
