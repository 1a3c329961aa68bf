"""What is fuzzed: every parser of bytes that a stranger wrote. One line in `TARGETS` adds another.

A target is called with any bytes at all. It may return anything and raise what its docstring names; everything
else is a finding.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Final

import cbor2
import fuzz_seeds as seeds
from cryptography.hazmat.primitives import hashes

from trainer.attestation.dstack.event_log import (
    RUNTIME_EVENT_TYPE,
    RUNTIME_IMR,
    Event,
    digest_problem,
    key_provider,
    order_problem,
    parse_event_log,
    replay,
)
from trainer.attestation.dstack.key_chain import recover_signers
from trainer.attestation.dstack.os_image import recompute
from trainer.attestation.evidence import KeyChain, parse_evidence
from trainer.attestation.nvidia.boot_claims import parse_boot_result
from trainer.attestation.nvidia.boot_event import GPU_EVENT, gpu_boot_event
from trainer.attestation.nvidia.certificate_chain import (
    certified_fwid,
    different_keys,
    parse_chain,
    verify_chain,
)
from trainer.attestation.nvidia.ocsp import parse_answers, verify_not_revoked
from trainer.attestation.nvidia.rim import verify_manifest
from trainer.attestation.nvidia.spdm_report import GpuReport, parse_gpu_report, verify_signature
from trainer.attestation.policy import parse_policy
from trainer.attestation.policy.policy_text import explain, read_measurements
from trainer.attestation.result.record import load_record
from trainer.attestation.tdx.collateral import parse_collateral
from trainer.attestation.tdx.quote_verification import QuoteRefused, parse_quote, verify_quote
from trainer.attestation.tdx.td_report import XFAM_KNOWN, attribute_names, xfam_acceptable
from trainer.attestation.verifier import appraise
from trainer.audit import audit_compose
from trainer.encoding import canonical_json, parse_json, sha256_hex
from trainer.errors import UsageError, VerificationError
from trainer.receipt.dsse import public_key_der, verify_envelope
from trainer.receipt.expected_result import ExpectedResult, GrantTerms
from trainer.receipt.receipt_appraisal import appraise_statement
from trainer.receipt.statement import parse_statement
from trainer.simulator.gpu_evidence import NOW
from trainer.spec import parse_job_spec


@dataclass(frozen=True)
class Target:
    """One parser.

    Args:
        name: how the command line calls it.
        form: what its input is made of: a key of `fuzz_mutations.FORMS`.
        seeds: honest inputs.
        run: feeds it one input.
        documented: the exceptions that its docstring names.
        share: how many of the inputs it gets, relative to the others: less where one input takes long.
    """

    name: str
    form: str
    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes], object]
    documented: tuple[type[Exception], ...] = (ValueError,)
    share: float = 1.0


class _Any(Sequence[str]):
    """Accepts every image, so that what follows is reached too."""

    def __contains__(self, item: object) -> bool:
        return True

    def __getitem__(self, index: object) -> str:
        raise IndexError

    def __len__(self) -> int:
        return 0


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _event_log(data: bytes) -> None:
    events = parse_event_log(_text(data))
    replay(events)
    digest_problem(events)
    order_problem(events)
    key_provider(events)


def _key_provider(data: bytes) -> None:
    key_provider([_runtime_event("key-provider", data)])


def _runtime_event(name: str, payload: bytes) -> Event:
    return Event(imr=RUNTIME_IMR, kind=RUNTIME_EVENT_TYPE, name=name, payload=payload)


def _quote(data: bytes) -> None:
    report = parse_quote(data).report
    attribute_names(report.td_attributes)
    xfam_acceptable(report.xfam, XFAM_KNOWN)


def _verified_quote(data: bytes) -> None:
    documents = parse_collateral(seeds.world().collateral)
    verify_quote(parse_quote(data), documents, root_der=seeds.world().policy.root_der, now=NOW)


def _verified_collateral(data: bytes) -> None:
    quote = parse_quote(bytes.fromhex(seeds.honest_evidence().quote))
    verify_quote(quote, parse_collateral(data), root_der=seeds.world().policy.root_der, now=NOW)


def _gpu_chain(data: bytes) -> None:
    chain = parse_chain(_text(data))
    different_keys(chain)
    for check in (
        lambda: certified_fwid(chain[0]),
        lambda: verify_signature(_honest_report(), chain[0].public_key()),
        lambda: verify_chain(
            chain, root_sha256=chain[-1].fingerprint(hashes.SHA256()).hex(), now=NOW
        ),
    ):
        with suppress(ValueError):
            check()


@cache
def _honest_report() -> GpuReport:
    return parse_gpu_report(seeds.gpu_reports()[0])


def _key_chain(data: bytes) -> None:
    parse_json(data)
    recover_signers(
        KeyChain.model_validate_json(data), seeds.honest_evidence().claims.derived_keys, bytes(20)
    )


@cache
def _acpi_events() -> tuple[Event, ...]:
    names = ("acpi-loader", "acpi-rsdp", "acpi-tables")
    return tuple(
        Event(imr=0, kind=10, name=name, payload=b"ACPI DATA", stated_digest=bytes(48))
        for name in names
    )


def _os_image(data: bytes) -> None:
    recompute(_text(data), _acpi_events(), _Any())


def _measurements_of_images() -> list[bytes]:
    """`measurement.tdx.cbor` of real images, or a small one of the same form."""
    configs = (json.loads(each).get("tdx_measurement") for each in seeds.vm_configs())
    real = [base64.b64decode(each["measurement"]) for each in configs if each]
    mrtd = {"single_pass": bytes(48), "two_pass": bytes(48)}
    image = dict.fromkeys(("kernel_authenticode", "cmdline_sha384", "initrd_sha384"), bytes(48))
    layout = bytes([1, 2, 1, 3, 4])
    made = {"version": 3, "tdvf": {"ovmf": "x", "mrtd": mrtd, "td_hob": layout}, "image": image}
    return [*real, cbor2.dumps(made)]


def _os_measurement(data: bytes) -> None:
    """The measurement file alone, with a checksum file that pins it."""
    checksums = f"{sha256_hex(data)}  measurement.tdx.cbor\n".encode()
    files = {"checksum_file": checksums, "measurement": data}
    encoded = {name: base64.b64encode(each).decode() for name, each in files.items()}
    recompute(
        json.dumps({"memory_size": 4 << 30, "tdx_measurement": encoded}), _acpi_events(), _Any()
    )


def _no_file(name: str) -> bytes:
    if "/" in name:
        raise FileNotFoundError(2, "No such file", name)
    return name.encode("utf-8", "surrogatepass")


def _policy(data: bytes) -> None:
    explain(parse_policy(data, read_file=_no_file))


def _audit(data: bytes) -> None:
    audit_compose(data, against=_shipped())


@cache
def _shipped() -> bytes:
    return seeds.compose_files()[1]


def _envelope(data: bytes) -> None:
    parse_statement(verify_envelope(data, public_key_der(seeds.RECEIPT_KEY.public_key())))


@cache
def _honest_envelope() -> bytes:
    return seeds.envelopes()[0]


def _statement(data: bytes) -> None:
    terms = GrantTerms(recipients=("age1" + "q" * 58,), manifest_sha256="0" * 64, dataset_files={})
    expected = ExpectedResult("", "", {}, None, 1, NOW, NOW, NOW, terms)
    appraise_statement(parse_statement(data), expected)


def _appraisal(data: bytes) -> None:
    world = seeds.world()
    appraise(
        parse_evidence(data),
        collateral=world.collateral,
        policy=world.policy,
        nonce=world.nonce,
        now=world.now,
        peer_spki_sha256=world.peer,
    )


def _manifest(data: bytes) -> None:
    verify_manifest(data.decode(), root_sha256=seeds.manifest_root(), now=NOW)


def _revocation(data: bytes) -> None:
    chain = parse_chain(seeds.gpu_chains()[0].decode())
    verify_not_revoked(chain, parse_answers(data), now=NOW)


TARGETS: Final = (
    Target("evidence", "json", seeds.evidence, parse_evidence, (VerificationError,)),
    Target("appraisal", "json", seeds.evidence, _appraisal, (VerificationError,), share=0.1),
    Target("event-log", "json", seeds.event_logs, _event_log, (VerificationError,)),
    Target("key-provider", "json", lambda: [b'{"name":"kms","id":"00"}'], _key_provider, ()),
    Target("quote", "bytes", seeds.quotes, _quote),
    Target(
        "quote-verified",
        "bytes",
        seeds.quotes,
        _verified_quote,
        (ValueError, QuoteRefused),
        share=0.1,
    ),
    Target("collateral", "json", seeds.collateral, parse_collateral),
    Target(
        "collateral-verified",
        "json",
        seeds.collateral,
        _verified_collateral,
        (ValueError, QuoteRefused),
        0.1,
    ),
    Target("gpu-report", "bytes", seeds.gpu_reports, parse_gpu_report),
    Target("gpu-chain", "pem", seeds.gpu_chains, _gpu_chain),
    Target(
        "gpu-boot-event",
        "json",
        seeds.boot_events,
        lambda data: gpu_boot_event([_runtime_event(GPU_EVENT, data)]),
    ),
    Target(
        "gpu-boot-claims", "json", seeds.boot_claims, lambda data: parse_boot_result(data.decode())
    ),
    Target("gpu-manifest", "bytes", seeds.manifests, _manifest, share=0.3),
    Target("gpu-revocation", "bytes", seeds.revocation_answers, _revocation, share=0.5),
    Target("os-image", "json", seeds.vm_configs, _os_image),
    Target("os-measurement", "bytes", _measurements_of_images, _os_measurement),
    Target("os-measurements", "json", seeds.measurements, read_measurements, (UsageError,)),
    Target("key-chain", "json", seeds.key_chains, _key_chain),
    Target("audit", "yaml", seeds.compose_files, _audit, (UsageError,), share=0.3),
    Target("job-spec", "yaml", seeds.job_specs, parse_job_spec, (UsageError,), share=0.5),
    Target("policy", "yaml", seeds.policies, _policy, (UsageError,), share=0.3),
    Target("envelope", "json", seeds.envelopes, _envelope, (VerificationError,)),
    Target(
        "receipt-key",
        "bytes",
        seeds.public_keys,
        lambda data: verify_envelope(_honest_envelope(), data),
        (VerificationError,),
    ),
    Target("statement", "json", seeds.statements, _statement, (VerificationError,)),
    Target("record", "json", seeds.records, load_record, (VerificationError,), share=0.2),
    Target(
        "canonical-json",
        "json",
        seeds.evidence,
        lambda data: canonical_json(parse_json(data)),
        (ValueError, UsageError),
    ),
)
