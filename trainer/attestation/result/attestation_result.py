"""The attestation result: sealing accepts nothing else, and only an appraisal can make one."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import Final, Literal, NoReturn

from trainer.attestation.checks import Check
from trainer.attestation.evidence import DatasetClaims
from trainer.attestation.tdx.td_report import TdReport
from trainer.durations import utc
from trainer.errors import ErrorCode, VerificationError

CLOCK_SKEW_SECONDS: Final = 300
"""The accepted difference between two honest clocks."""

Status = Literal["pass", "fail"]


class _Appraiser:
    """The type of `APPRAISER`, the token that the constructor of a result demands."""


APPRAISER: Final = _Appraiser()
"""For use in `verifier` only. It protects against mistakes of other modules, not against hostile code."""


@dataclass(frozen=True)
class AttestationResult:
    """The outcome of one appraisal of one piece of evidence. Times in Unix seconds.

    Attributes:
        checks: every check of `appraise`, in order.
        claims: the job's claims; to be believed only if the result is a pass.
        recipient: the age recipient to seal to, chosen by the policy.
        td: the TD report; None where the quote could not be read.
        compose_sha256: digest of the compose text's exact bytes.
        policy_sha256: digest of the policy that the evidence was judged by.
        appraised_at: time of the appraisal.
        expires_at: time until which a dataset may be sealed under this result.
        nonce: the nonce of the request; None if the provider named none, so that the evidence may be of any age.
        peer_spki_sha256: digest of the TLS key that served the evidence; None where it came as a file.
        development_root: whether the policy trusts another root than Intel's, so that even a pass proves no TEE.
        cautions: what somebody who relies on a pass under this policy must know.
        fresh: whether this was the answer to a nonce of this provider, judged at the time of the command and with
            collateral obtained for it. A repeated appraisal is not fresh: nothing may be sealed to it.
        appraiser: `APPRAISER`; not stored.
    """

    checks: tuple[Check, ...]
    claims: DatasetClaims
    recipient: str
    td: TdReport | None
    compose_sha256: str
    policy_sha256: str
    appraised_at: int
    expires_at: int
    nonce: str | None
    peer_spki_sha256: str | None
    development_root: bool
    cautions: tuple[str, ...]
    fresh: bool
    appraiser: InitVar[object]

    def __post_init__(self, appraiser: object) -> None:
        # `seal` relies on this type, so nothing but an appraisal may make one.
        if appraiser is not APPRAISER:
            raise TypeError("only trainer.attestation.verifier.appraise makes attestation results")

    def __reduce__(self) -> NoReturn:
        # Pickle and copy would make a result without an appraisal.
        raise TypeError("an attestation result is not stored: save its record and appraise again")

    @property
    def status(self) -> Status:
        """`pass` if every check was affirmed or not demanded, and there is at least one."""
        # `all` of no checks is true, and a result that judged nothing must not pass.
        return "pass" if self.checks and all(check.acceptable for check in self.checks) else "fail"

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that keep the result from being a pass."""
        return tuple(check for check in self.checks if not check.acceptable)

    def check(self, code: str) -> Check:
        """Returns the outcome of the check with this code.

        Raises:
            KeyError: the appraisal has no such check.
        """
        for check in self.checks:
            if check.code == code:
                return check
        raise KeyError(code)

    @property
    def job_spec_sha256(self) -> str:
        """Digest of the job spec, as claimed."""
        return self.claims.job_spec_sha256

    def require_pass(self, now: int) -> None:
        """Returns only if this is a pass and still valid at `now` (Unix seconds).

        Raises:
            VerificationError: `verification-failed` with the failed checks, or `attestation-expired`.
        """
        if self.status != "pass":
            codes = ", ".join(check.code for check in self.failed)
            raise VerificationError(
                ErrorCode.VERIFICATION_FAILED,
                "the evidence does not satisfy the policy",
                expected="every check affirmed or not demanded",
                found=codes or "no checks",
                hint="do not upload; see each check of the result",
            )
        # The start has a tolerance, as the clock may have been set back a little since; the end has none.
        if not self.appraised_at - CLOCK_SKEW_SECONDS <= now < self.expires_at:
            raise VerificationError(
                ErrorCode.ATTESTATION_EXPIRED,
                "the attestation result is not valid now",
                expected=f"a time from {utc(self.appraised_at)} to {utc(self.expires_at)}",
                found=utc(now),
                hint="verify the job again",
            )

    def require_sealable(self, now: int) -> None:
        """Returns only if data may be sealed to the recipient at `now` (Unix seconds).

        Raises:
            VerificationError: as for `require_pass`; `verification-failed` if the result is not fresh.
        """
        self.require_pass(now)
        # Otherwise old evidence, of a VM whose keys are known by now, would do: with its own nonce it passes.
        if not self.fresh or self.nonce is None:
            raise VerificationError(
                ErrorCode.VERIFICATION_FAILED,
                "the attestation result is not fresh",
                expected="an answer to your own nonce, judged now with collateral obtained now",
                found="a repeated appraisal of saved evidence",
                hint="verify the job itself, or give the nonce that you asked with (--nonce)",
            )
