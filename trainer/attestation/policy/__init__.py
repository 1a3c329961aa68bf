"""The provider's appraisal policy: its document, its sections, its YAML form and its explanation in words."""

from trainer.attestation.policy.gpu_sources import ReferenceManifests, RevocationAnswers, ServiceUrl
from trainer.attestation.policy.policy_text import explain, policy_yaml, read_measurements, strict_policy
from trainer.attestation.policy.schema import (
    MAX_POLICY_BYTES,
    CollateralDocument,
    CollateralUrl,
    Policy,
    TrustRoot,
    parse_policy,
)
from trainer.attestation.policy.sections import (
    AppSection,
    FreshnessSection,
    GpuSection,
    KeyProviderDemand,
    OsMeasurements,
    OsSection,
    TcbSection,
    endorsements_of,
)

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
    "ReferenceManifests",
    "RevocationAnswers",
    "ServiceUrl",
    "TcbSection",
    "TrustRoot",
    "endorsements_of",
    "explain",
    "parse_policy",
    "policy_yaml",
    "read_measurements",
    "strict_policy",
]
