"""The provider's appraisal policy: its document, its sections, its YAML form and its explanation in words."""

from trainer.attestation.policy.app_section import AppSection, KeyProviderDemand
from trainer.attestation.policy.gpu_sources import ReferenceManifests, RevocationAnswers, ServiceUrl
from trainer.attestation.policy.platform_section import PlatformSection
from trainer.attestation.policy.policy_text import (
    cautions,
    explain,
    policy_yaml,
    read_measurements,
    strict_policy,
)
from trainer.attestation.policy.schema import (
    MAX_POLICY_BYTES,
    CollateralDocument,
    CollateralUrl,
    Policy,
    TrustRoot,
    parse_policy,
    require_plain_text,
)
from trainer.attestation.policy.sections import (
    FreshnessSection,
    GpuSection,
    OsMeasurements,
    OsSection,
    TcbSection,
    endorsements_of,
)
from trainer.attestation.policy.strict_app import (
    NO_PINS,
    KeyServicePins,
    app_key_source,
    strict_app,
    undecided_app,
)

__all__ = [
    "MAX_POLICY_BYTES",
    "NO_PINS",
    "AppSection",
    "CollateralDocument",
    "CollateralUrl",
    "FreshnessSection",
    "GpuSection",
    "KeyProviderDemand",
    "KeyServicePins",
    "OsMeasurements",
    "OsSection",
    "PlatformSection",
    "Policy",
    "ReferenceManifests",
    "RevocationAnswers",
    "ServiceUrl",
    "TcbSection",
    "TrustRoot",
    "app_key_source",
    "cautions",
    "endorsements_of",
    "explain",
    "parse_policy",
    "policy_yaml",
    "read_measurements",
    "require_plain_text",
    "strict_app",
    "strict_policy",
    "undecided_app",
]
