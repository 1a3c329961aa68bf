"""The check of the machine: which one ran the VM, by the id in the certificate that Intel issued for it."""

from __future__ import annotations

from typing import Final

from trainer.attestation.checks import CheckDefinition, Ledger, Submodule, TrustClaim
from trainer.attestation.policy import PlatformSection
from trainer.attestation.tdx.quote_verification import VerifiedQuote

PLATFORM_PPID: Final = CheckDefinition(
    "platform-ppid",
    title="the machine is one that the policy lists",
    attack="a machine in other hands, opened or with an extracted attestation key, that Intel certified as well",
    claim=(Submodule.TDX, TrustClaim.INSTANCE_IDENTITY),
    hint="if you trust this machine and the place where it is, add its id to `platform.ppid`",
)


def judge_platform(
    ledger: Ledger, verified: VerifiedQuote | None, demands: PlatformSection
) -> None:
    """Records platform-ppid.

    Args:
        ledger: receives the outcome; none where the quote did not verify.
        verified: the verified quote, or None.
        demands: the policy's section `platform`.
    """
    # The id is in the platform's certificate: before its chain is verified, anybody can have written it.
    if verified is None:
        return
    listed, found = demands.ppid, verified.ppid.hex()
    if listed == "any":
        ledger.leave_open(PLATFORM_PPID, found=found)
    else:
        ledger.judge(PLATFORM_PPID, found in listed, expected=" or ".join(listed), found=found)
