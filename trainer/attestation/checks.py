"""The checks of an appraisal: their list, the states they can end in, and the ledger that collects them.

One list per purpose, in the order in which the checks run. A check that nobody recorded is `not-reached`, and
an appraisal passes only if every check of its list is affirmed or was not demanded: nothing passes by being
forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class CheckState(StrEnum):
    """How a check ended, in the words of RATS where it has them."""

    AFFIRMED = "affirmed"
    CONTRAINDICATED = "contraindicated"
    NOT_DEMANDED = "not-demanded"
    NOT_REACHED = "not-reached"


class CheckCode(StrEnum):
    """Stable names of all checks; part of the contract with scripts."""

    QUOTE_FORMAT = "quote-format"
    QUOTE_TRAILING_BYTES = "quote-trailing-bytes"
    COLLATERAL_FORMAT = "collateral-format"
    ROOT_OF_TRUST = "root-of-trust"
    COLLATERAL_SIGNATURE = "collateral-signature"
    COLLATERAL_VALIDITY = "collateral-validity"
    PLATFORM_CERTIFICATE = "platform-certificate"
    QUOTE_SIGNATURE = "quote-signature"
    QUOTING_ENCLAVE = "quoting-enclave"
    TCB_LEVEL = "tcb-level"
    TCB_STATUS = "tcb-status"
    TCB_GRACE = "tcb-grace"
    TCB_ADVISORIES = "tcb-advisories"
    TCB_EVALUATION_NUMBER = "tcb-evaluation-number"
    TDX_MODULE = "tdx-module"
    MR_SEAM = "mr-seam"
    TD_DEBUG = "td-debug"
    TD_ATTRIBUTES = "td-attributes"
    TD_XFAM = "td-xfam"
    SERVICE_TD = "service-td"
    MR_CONFIG_ID = "mr-config-id"
    MR_OWNER = "mr-owner"
    MR_OWNER_CONFIG = "mr-owner-config"
    OS_MEASUREMENTS = "os-measurements"
    OS_DEVELOPMENT = "os-development"
    EVENT_LOG_FORMAT = "event-log-format"
    EVENT_DIGESTS = "event-digests"
    EVENT_ORDER = "event-order"
    RTMR3_REPLAY = "rtmr3-replay"
    COMPOSE_HASH = "compose-hash"
    COMPOSE_ACCEPTED = "compose-accepted"
    APP_ID = "app-id"
    KEY_PROVIDER = "key-provider"
    KEY_CHAIN = "key-chain"
    KEY_POSSESSION = "key-possession"
    REPORT_DATA = "report-data"
    NONCE = "nonce"
    NONCE_UNUSED = "nonce-unused"
    CLAIMS_VALIDITY = "claims-validity"
    FRESHNESS = "freshness"
    TLS_KEY = "tls-key"
    JOB_SPEC_DIGEST = "job-spec-digest"
    RECIPIENT = "recipient"
    RECEIPT_KEY = "receipt-key"
    GPU_EVIDENCE = "gpu-evidence"
    GPU_BOOT = "gpu-boot"
    GPU_REQUIRED = "gpu-required"
    GPU_CC_MODE = "gpu-cc-mode"
    GPU_DEVTOOLS = "gpu-devtools"
    GPU_BOOT_CLAIMS = "gpu-boot-claims"
    GPU_BOOT_RESULT = "gpu-boot-result"
    GPU_BOOT_SECURE_BOOT = "gpu-boot-secure-boot"
    GPU_BOOT_DEBUG = "gpu-boot-debug"
    GPU_BOOT_NONCE = "gpu-boot-nonce"
    GPU_BOOT_REVOCATION = "gpu-boot-revocation"
    GPU_BOOT_COUNT = "gpu-boot-count"
    GPU_BOOT_MODELS = "gpu-boot-models"
    GPU_BOOT_VERSIONS = "gpu-boot-versions"
    GPU_REPORT_FORMAT = "gpu-report-format"
    GPU_REPORT_CHAIN = "gpu-report-chain"
    GPU_REPORT_SIGNATURE = "gpu-report-signature"
    GPU_REPORT_NONCE = "gpu-report-nonce"
    GPU_REPORT_FWID = "gpu-report-fwid"
    GPU_REPORT_COUNT = "gpu-report-count"
    GPU_REPORT_VERSIONS = "gpu-report-versions"
    GPU_REPORT_MODELS = "gpu-report-models"
    GPU_REPORT_MEASUREMENTS = "gpu-report-measurements"
    GPU_REPORT_REVOCATION = "gpu-report-revocation"
    SANDBOX = "sandbox"
    EARLIER_RESULT = "earlier-result"
    SAME_VM = "same-vm"
    SAME_JOB = "same-job"
    STATEMENT_DIGEST = "statement-digest"


@dataclass(frozen=True)
class CheckDefinition:
    """What one check demands, and the attack that it stops."""

    code: CheckCode
    title: str
    attack: str


@dataclass(frozen=True)
class Check:
    """One check of one appraisal.

    Attributes:
        number: place in the list, from 1.
        code: stable name.
        title: what was demanded, in one line.
        state: how it ended.
        expected: what would have been right.
        found: what was there.
        detail: why, where `expected` and `found` do not say it all.
    """

    number: int
    code: str
    title: str
    state: CheckState
    expected: str | None = None
    found: str | None = None
    detail: str | None = None

    @property
    def acceptable(self) -> bool:
        """Whether this check leaves the appraisal a pass."""
        return self.state in (CheckState.AFFIRMED, CheckState.NOT_DEMANDED)


class Ledger:
    """Collects the outcome of each check of one list, each exactly once.

    Args:
        definitions: the list, in its order.
    """

    def __init__(self, definitions: tuple[CheckDefinition, ...]) -> None:
        self._definitions = {each.code: (number, each.title) for number, each in enumerate(definitions, 1)}
        self._outcomes: dict[CheckCode, Check] = {}

    def judge(
        self, code: CheckCode, holds: bool, *, expected: object, found: object, detail: str | None = None
    ) -> bool:
        """Record `code` as affirmed or contraindicated, and say which."""
        state = CheckState.AFFIRMED if holds else CheckState.CONTRAINDICATED
        self._record(code, state, expected, found, detail)
        return holds

    def compare(self, code: CheckCode, *, expected: object, found: object, detail: str | None = None) -> bool:
        """Record `code` as affirmed if both are equal."""
        return self.judge(code, expected == found, expected=expected, found=found, detail=detail)

    def leave_open(self, code: CheckCode, *, found: object = None, detail: str | None = None) -> None:
        """Record that the policy does not demand `code`."""
        self._record(code, CheckState.NOT_DEMANDED, None, found, detail)

    def unreached(self, codes: Iterable[CheckCode], why: str) -> None:
        """Record those of `codes` that have no outcome yet as not reached."""
        for code in codes:
            if code not in self._outcomes:
                self._record(code, CheckState.NOT_REACHED, None, None, why)

    def checks(self) -> tuple[Check, ...]:
        """All checks in order; those without an outcome are `not-reached`."""
        self.unreached(self._definitions, "an earlier check failed")
        return tuple(self._outcomes[code] for code in self._definitions)

    def _record(
        self, code: CheckCode, state: CheckState, expected: object, found: object, detail: str | None
    ) -> None:
        if code in self._outcomes:
            raise ValueError(f"the check {code} was recorded twice")
        number, title = self._definitions[code]
        self._outcomes[code] = Check(number, code.value, title, state, _text(expected), _text(found), detail)


def _text(value: object) -> str | None:
    if value is None:
        return None
    return value.hex() if isinstance(value, bytes) else str(value)
