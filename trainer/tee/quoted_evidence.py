"""Collects evidence: the agent's quote over the claims, with everything that a verifier needs to judge it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from pydantic import ValidationError

from trainer.attestation.claims.binding import gpu_evidence_sha256, report_data
from trainer.attestation.evidence import (
    DatasetClaims,
    Evidence,
    GpuEvidence,
    KeyChain,
    StatementClaims,
    StatementEvidence,
)
from trainer.errors import ErrorCode, UnavailableError

if TYPE_CHECKING:
    from trainer.tee.guest_agent import Quote, VmInfo

_NO_GPU: Final = GpuEvidence()


class QuotingAgent(Protocol):
    """The part of the guest agent that evidence needs."""

    def info(self) -> VmInfo:
        """Returns which app runs in which VM."""

    def quote(self, report_data: bytes) -> Quote:
        """Returns a quote over exactly these 64 bytes."""


def collect(
    agent: QuotingAgent,
    claims: DatasetClaims,
    *,
    possession: str,
    gpu: GpuEvidence = _NO_GPU,
    key_chain: KeyChain | None = None,
) -> Evidence:
    """Returns evidence for `claims`: a quote over their digest, with the texts that the quote measures.

    Args:
        agent: the guest agent.
        claims: what is claimed; all of it enters the quote's report data.
        possession: signature by the possession key over the claims, in hex.
        gpu: GPU evidence; the claims must hold its digest.
        key_chain: the key service's signatures over the derived keys; None where there is no key service.

    Raises:
        ValueError: claims that name other GPU evidence than `gpu`.
        UnavailableError: the agent does not answer, or not in its protocol.
    """
    if claims.gpu_evidence_sha256 != gpu_evidence_sha256(gpu):
        raise ValueError("the claims are about other GPU evidence")
    info = agent.info()
    quote = agent.quote(report_data(claims))
    with _fitting():
        return Evidence(
            claims=claims,
            quote=quote.quote.hex(),
            possession=possession,
            event_log=quote.event_log,
            vm_config=quote.vm_config or info.vm_config,
            app_compose=info.app_compose,
            compose_hash="sha256:" + hashlib.sha256(info.app_compose.encode()).hexdigest(),
            gpu=gpu,
            key_chain=key_chain,
        )


def collect_statement(agent: QuotingAgent, claims: StatementClaims) -> StatementEvidence:
    """Returns evidence over a statement: the claims about it, and a quote over their digest.

    Raises:
        UnavailableError: the agent does not answer, or not in its protocol.
    """
    quote = agent.quote(report_data(claims))
    with _fitting():
        return StatementEvidence(claims=claims, quote=quote.quote.hex())


@contextmanager
def _fitting() -> Iterator[None]:
    """Turns what does not fit into evidence into an error that names the field."""
    try:
        yield
    except (ValidationError, UnicodeEncodeError) as error:
        # The other error is of `app_compose`: lone surrogates, which have no UTF-8 form to hash.
        where = "app_compose"
        if isinstance(error, ValidationError):
            where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise UnavailableError(
            ErrorCode.GUEST_AGENT_PROTOCOL,
            f"guest agent: `{where}` does not fit into evidence",
            expected="the form and size that dstack's agent gives it",
            found="another form or size",
        ) from None
