"""Attacks on what OS and GPUs say of the GPUs: name -> (code that must answer, change)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec

from tests.attestation.tampering import (
    altered,
    another_gpu,
    gpu_event,
    measuring,
    renamed,
    replaced,
)

if TYPE_CHECKING:
    from trainer.simulator.appraisal_world import World


def without_fwid(world: World) -> World:
    """A GPU whose firmware is of an older release, which does not name itself."""
    return world.with_gpu(
        opaque={kind: value for kind, value in world.bench.opaque.items() if kind != 20}
    )


def two_gpus(world: World, opaque: dict[int, bytes]) -> World:
    """A GPU that names no firmware, and another one with other opaque fields."""
    older = without_fwid(world).gpu.fresh
    chain = (
        renamed(world.bench.leaf, scalar=2005),
        renamed(world.bench.ca, scalar=2006),
        world.bench.root,
    )
    changed = world.bench.answer(*chain, opaque=opaque)
    return world.answering(*older, changed).demanding("gpu", boot="any", count=2)


ATTACKS: dict[str, tuple[str, Callable[[World], World]]] = {
    "other fresh GPU evidence": (
        "gpu-evidence",
        lambda w: w.showing(gpu=w.with_gpu(*another_gpu(w)).gpu),
    ),
    "GPU evidence that nobody claimed": (
        "gpu-evidence",
        lambda w: w.claiming(gpu_evidence_sha256=None),
    ),
    "boot evidence that the OS did not measure": (
        "gpu-boot",
        lambda w: measuring(w, replaced("gpu-attestation", gpu_event(evidence_sha256="00" * 32))),
    ),
    "a GPU event of another form": (
        "gpu-boot",
        lambda w: measuring(w, replaced("gpu-attestation", b"{}")),
    ),
    "a GPU open to developer tools": (
        "gpu-devtools",
        lambda w: measuring(w, replaced("gpu-attestation", gpu_event(devtools=True))),
    ),
    "GPUs of another maker": (
        "gpu-required",
        lambda w: measuring(w, replaced("gpu-attestation", gpu_event(provider="other"))),
    ),
    "a GPU outside confidential mode": (
        "gpu-cc-mode",
        lambda w: measuring(w, replaced("gpu-attestation", gpu_event(cc_mode="off"))),
    ),
    "a GPU report with a byte too many": ("gpu-report-format", lambda w: w.with_gpu(tail=b"!")),
    "a GPU report with content after zeros": (
        "gpu-report-format",
        lambda w: w.with_gpu(tail=bytes(9) + b"!"),
    ),
    "GPU certificates of a home-made root": (
        "gpu-report-chain",
        lambda w: w.with_gpu(w.bench.leaf, w.bench.ca, renamed(w.bench.root, scalar=2001)),
    ),
    "no GPU certificates": (
        "gpu-report-chain",
        lambda w: w.answering(w.bench.answer().model_copy(update={"certificate_chain": "none"})),
    ),
    "an expired GPU certificate": (
        "gpu-report-chain",
        lambda w: w.with_gpu(renamed(w.bench.leaf, end=w.now - 1), w.bench.ca, w.bench.root),
    ),
    "a GPU's own certificate as authority": (
        "gpu-report-chain",
        lambda w: w.with_gpu(
            renamed(w.bench.leaf, scalar=2002), w.bench.leaf, w.bench.ca, w.bench.root
        ),
    ),
    "a GPU measurement changed after signing": (
        "gpu-report-signature",
        lambda w: w.answering(altered(w, 60)),
    ),
    "a driver version changed after signing": (
        "gpu-report-signature",
        lambda w: w.answering(altered(w, bytes.fromhex(w.gpu.fresh[0].report).index(b"0.90.07"))),
    ),
    "a bit of a GPU's signature": ("gpu-report-signature", lambda w: w.answering(altered(w, -1))),
    "a report that another key signed": (
        "gpu-report-signature",
        lambda w: w.with_gpu(key=renamed(w.bench.leaf, scalar=2003).key),
    ),
    "a GPU key on another curve": (
        "gpu-report-signature",
        lambda w: w.with_gpu(renamed(w.bench.leaf, curve=ec.SECP256R1()), w.bench.ca, w.bench.root),
    ),
    "an earlier GPU report": ("gpu-report-nonce", lambda w: w.with_gpu(nonce=bytes(32))),
    "the provider's nonce itself, without the domain": (
        "gpu-report-nonce",
        lambda w: w.with_gpu(nonce=bytes.fromhex(w.nonce)),
    ),
    "other GPU firmware than certified": (
        "gpu-report-fwid",
        lambda w: w.with_gpu(opaque={**w.bench.opaque, 20: bytes(48)}),
    ),
    "a GPU certificate without firmware id": (
        "gpu-report-fwid",
        lambda w: w.with_gpu(renamed(w.bench.leaf, extensions=()), w.bench.ca, w.bench.root),
    ),
    "a GPU report that names no firmware": ("gpu-report-fwid", without_fwid),
    "no firmware named by one GPU, and a false one by the next, where the policy leaves it open": (
        "gpu-report-fwid",
        lambda w: two_gpus(w, w.bench.opaque | {20: bytes(48)}).demanding("gpu", firmware_id="any"),
    ),
    "no fresh GPU report": ("gpu-report-count", lambda w: w.answering()),
    "one GPU that answers for two": (
        "gpu-report-count",
        lambda w: w.answering(*w.gpu.fresh, *w.gpu.fresh).demanding("gpu", boot="any", count=2),
    ),
    "one GPU that answers twice": (
        "gpu-report-count",
        lambda w: w.answering(*w.gpu.fresh, *w.gpu.fresh).demanding("gpu", count="any"),
    ),
    "one GPU that answers with the keys of two firmwares": (
        "gpu-report-count",
        lambda w: w.answering(
            *w.gpu.fresh,
            w.bench.answer(renamed(w.bench.leaf, scalar=2004), w.bench.ca, w.bench.root),
        ).demanding("gpu", boot="any", count=2),
    ),
    "a GPU that keeps silent": (
        "gpu-report-count",
        lambda w: w.demanding("gpu", boot="any", count=2),
    ),
    "an old driver": (
        "gpu-report-versions",
        lambda w: w.with_gpu(opaque={**w.bench.opaque, 3: b"550.54.15\0"}),
    ),
    "an old VBIOS": (
        "gpu-report-versions",
        lambda w: w.with_gpu(opaque={**w.bench.opaque, 6: bytes.fromhex("009e009601000000")}),
    ),
}
