"""Attacks on what the measured OS found out about GPUs at boot: each changes one thing."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.attestation.gpu_boots import (
    DRIVER_CHAIN,
    GPU,
    NONCE,
    REPORT_CHAIN,
    World,
    booted,
    chain_with,
    header,
    shown,
    with_claims,
    with_devices,
    with_overall,
    with_switch,
    with_tokens,
    with_two,
)
from trainer.simulator.nvattest import SimulatedGpu, SimulatedSwitch, token

Edit = Callable[[World], World]

BOOT_CODES = (
    "gpu-boot-claims",
    "gpu-boot-result",
    "gpu-boot-secure-boot",
    "gpu-boot-debug",
    "gpu-boot-nonce",
    "gpu-boot-revocation",
    "gpu-boot-count",
    "gpu-boot-models",
    "gpu-boot-versions",
)

ATTACKS: dict[str, tuple[str, Edit]] = {
    # the event
    "boot evidence written anew with the same values": (
        "gpu-boot",
        lambda w: shown(w, json.dumps(json.loads(w.gpu.boot)) + "\n"),
    ),
    "boot evidence without its final newline": ("gpu-boot", lambda w: shown(w, w.gpu.boot[:-1])),
    "no boot evidence for a measured GPU": ("gpu-boot", lambda w: shown(w, "")),
    "GPUs by another provider in the event": (
        "gpu-required",
        lambda w: booted(w, w.gpu.boot, provider="amd"),
    ),
    "confidential mode in devtools form": (
        "gpu-cc-mode",
        lambda w: booted(w, w.gpu.boot, cc_mode="devtools"),
    ),
    "devtools in the event": ("gpu-devtools", lambda w: booted(w, w.gpu.boot, devtools=True)),
    # gpu-boot-claims
    "a text that is no result": ("gpu-boot-claims", lambda w: booted(w, "Ok\n")),
    "a key twice in the result": (
        "gpu-boot-claims",
        lambda w: booted(
            w, w.gpu.boot.replace('"result_code": 0', '"result_code": 1, "result_code": 0')
        ),
    ),
    "a run that failed": ("gpu-boot-claims", lambda w: with_devices(w, GPU, result_code=13)),
    "false for a result code": (
        "gpu-boot-claims",
        lambda w: with_devices(w, GPU, result_code=False),
    ),
    "no claims at all": ("gpu-boot-claims", lambda w: with_devices(w, GPU, claims=[])),
    "claims beside another GPU's token": (
        "gpu-boot-claims",
        lambda w: with_devices(w, GPU, claims=[SimulatedGpu(ueid="2").claims(NONCE)]),
    ),
    "one for true in a GPU's token": (
        "gpu-boot-claims",
        lambda w: with_tokens(w, lambda _: token({**GPU.claims(NONCE), "secboot": 1})),
    ),
    "a token that was exchanged": (
        "gpu-boot-claims",
        lambda w: with_tokens(
            w, lambda _: token({**GPU.claims(NONCE), "iat": 0}), digests_follow=False
        ),
    ),
    "a token without its final dot": (
        "gpu-boot-claims",
        lambda w: with_tokens(w, lambda jwt: jwt[:-1]),
    ),
    "an unsigned token with a signature": (
        "gpu-boot-claims",
        lambda w: with_tokens(w, lambda jwt: jwt + "AAAA"),
    ),
    "a signed token without its signature": (
        "gpu-boot-claims",
        lambda w: with_tokens(w, header("ES384")),
    ),
    "a device of an unknown kind": (
        "gpu-boot-claims",
        lambda w: with_claims(w, {"x-nvidia-device-type": "dpu"}),
    ),
    "a device of no kind": (
        "gpu-boot-claims",
        lambda w: with_claims(w, {}, ("x-nvidia-device-type",)),
    ),
    "a switch in the GPU's place": (
        "gpu-boot-claims",
        lambda w: with_devices(w, SimulatedSwitch(), number=1),
    ),
    "a word for secure boot": ("gpu-boot-claims", lambda w: with_claims(w, {"secboot": "true"})),
    # gpu-boot-result
    "measurements that fail": ("gpu-boot-result", lambda w: with_claims(w, {"measres": "fail"})),
    "measurements that nobody compared": (
        "gpu-boot-result",
        lambda w: with_claims(w, {"measres": "not-run"}),
    ),
    "no word on measurements": ("gpu-boot-result", lambda w: with_claims(w, {}, ("measres",))),
    "a report signature that does not hold": (
        "gpu-boot-result",
        lambda w: with_claims(w, {"x-nvidia-gpu-attestation-report-signature-verified": False}),
    ),
    "a report for another nonce": (
        "gpu-boot-result",
        lambda w: with_claims(w, {"x-nvidia-gpu-attestation-report-nonce-match": False}),
    ),
    "other firmware than certified, at boot": (
        "gpu-boot-result",
        lambda w: with_claims(w, {"x-nvidia-gpu-attestation-report-cert-chain-fwid-match": False}),
    ),
    "a verification left out": (
        "gpu-boot-result",
        lambda w: with_claims(w, {}, ("x-nvidia-gpu-driver-rim-signature-verified",)),
    ),
    "a verification that is null": (
        "gpu-boot-result",
        lambda w: with_claims(w, {"x-nvidia-gpu-vbios-rim-version-match": None}),
    ),
    "a measurement that differs": (
        "gpu-boot-result",
        lambda w: with_claims(w, {"x-nvidia-mismatch-measurement-records": [{"index": 9}]}),
    ),
    "an opaque value that differs": (
        "gpu-boot-result",
        lambda w: with_claims(w, {"x-nvidia-mismatch-opaque-data-records": [{"id": 37}]}),
    ),
    "expired reference values": (
        "gpu-boot-result",
        lambda w: with_claims(w, {DRIVER_CHAIN: chain_with(status="expired")}),
    ),
    "no word on who signed the reference values": (
        "gpu-boot-result",
        lambda w: with_claims(
            w,
            {
                name: {"x-nvidia-cert-status": "valid"}
                for name in (REPORT_CHAIN, "x-nvidia-gpu-vbios-rim-cert-chain")
            },
            (DRIVER_CHAIN,),
        ),
    ),
    "an overall result of false": (
        "gpu-boot-result",
        lambda w: with_overall(w, {"x-nvidia-overall-att-result": False}),
    ),
    "no overall result": (
        "gpu-boot-result",
        lambda w: with_overall(w, {"x-nvidia-overall-att-result": None}),
    ),
    "a second GPU that failed": (
        "gpu-boot-result",
        lambda w: with_two(w, SimulatedGpu(ueid="2", changes={"x-nvidia-gpu-arch-check": False})),
    ),
    "a switch that failed": (
        "gpu-boot-result",
        lambda w: with_switch(w, changes={"measres": "fail"}),
    ),
    # the rest of what is said of each device
    "no secure boot": ("gpu-boot-secure-boot", lambda w: with_claims(w, {"secboot": False})),
    "no word on secure boot": ("gpu-boot-secure-boot", lambda w: with_claims(w, {"secboot": None})),
    "a switch without secure boot": (
        "gpu-boot-secure-boot",
        lambda w: with_switch(w, changes={"secboot": False}),
    ),
    "a GPU open to a debugger": (
        "gpu-boot-debug",
        lambda w: with_claims(w, {"dbgstat": "enabled"}),
    ),
    "no word on debugging": ("gpu-boot-debug", lambda w: with_claims(w, {}, ("dbgstat",))),
    "a switch open to a debugger": (
        "gpu-boot-debug",
        lambda w: with_switch(w, changes={"dbgstat": "enabled"}),
    ),
    "a GPU asked at another time": (
        "gpu-boot-nonce",
        lambda w: with_two(w, SimulatedGpu(ueid="2", changes={"eat_nonce": "5c" * 32})),
    ),
    "a switch asked at another time": (
        "gpu-boot-nonce",
        lambda w: with_switch(w, changes={"eat_nonce": "5c" * 32}),
    ),
    "another nonce in the overall token": (
        "gpu-boot-nonce",
        lambda w: with_overall(w, {"eat_nonce": "5c" * 32}),
    ),
    "no nonce in the overall token": (
        "gpu-boot-nonce",
        lambda w: with_overall(w, {"eat_nonce": None}),
    ),
    "a short nonce": ("gpu-boot-nonce", lambda w: with_devices(w, GPU, nonce="5b")),
    "a word for a nonce": ("gpu-boot-nonce", lambda w: with_devices(w, GPU, nonce="nonce")),
    "a revoked GPU certificate at boot": (
        "gpu-boot-revocation",
        lambda w: with_claims(w, {REPORT_CHAIN: chain_with(ocsp_status="revoked")}),
    ),
    "a reason for revocation": (
        "gpu-boot-revocation",
        lambda w: with_claims(w, {DRIVER_CHAIN: chain_with(revocation_reason="keyCompromise")}),
    ),
    "a certificate that the responder does not know": (
        "gpu-boot-revocation",
        lambda w: with_claims(w, {DRIVER_CHAIN: chain_with(ocsp_status="unknown")}),
    ),
    "a responder's answer of an earlier day": (
        "gpu-boot-revocation",
        lambda w: with_claims(w, {REPORT_CHAIN: chain_with(ocsp_nonce_matches=False)}),
    ),
    "a responder's answer with a bad signature": (
        "gpu-boot-revocation",
        lambda w: with_claims(w, {REPORT_CHAIN: chain_with(ocsp_response_valid=False)}),
    ),
    "no word on revocation for one chain of three": (
        "gpu-boot-revocation",
        lambda w: with_claims(w, {REPORT_CHAIN: {"x-nvidia-cert-status": "valid"}}),
    ),
    "a revoked switch": (
        "gpu-boot-revocation",
        lambda w: with_switch(
            w,
            changes={
                "x-nvidia-switch-attestation-report-cert-chain": chain_with(ocsp_status="revoked")
            },
        ),
    ),
    "fewer GPUs in the claims than measured": (
        "gpu-boot-count",
        lambda w: with_devices(w, GPU, number=2),
    ),
    "one GPU that stands for two": ("gpu-boot-count", lambda w: with_two(w, GPU)),
    "GPUs without a number of their own": (
        "gpu-boot-count",
        lambda w: with_claims(w, {"ueid": ""}),
    ),
    "a switch that stands for a GPU": (
        "gpu-boot-count",
        lambda w: with_devices(w, GPU, SimulatedSwitch(), number=2).demanding("gpu", count="any"),
    ),
    "fewer GPUs at boot than demanded": (
        "gpu-boot-count",
        lambda w: with_devices(w, GPU).answering().demanding("gpu", count=2, fresh="any"),
    ),
    "a GPU of another model at boot": (
        "gpu-boot-models",
        lambda w: with_devices(w, SimulatedGpu(hwmodel="GA100 A01 GSP BROM")),
    ),
    "a listed model's name not at the start": (
        "gpu-boot-models",
        lambda w: with_devices(w, SimulatedGpu(hwmodel="not a GH100")),
    ),
    "a GPU without a model": ("gpu-boot-models", lambda w: with_claims(w, {}, ("hwmodel",))),
    "an old driver at boot": (
        "gpu-boot-versions",
        lambda w: with_devices(w, SimulatedGpu(driver_version="550.54.15")),
    ),
    "an old VBIOS at boot": (
        "gpu-boot-versions",
        lambda w: with_devices(w, SimulatedGpu(vbios_version="96.00.9E.00.01")),
    ),
    "no driver version at boot": (
        "gpu-boot-versions",
        lambda w: with_claims(w, {}, ("x-nvidia-gpu-driver-version",)),
    ),
    "a VBIOS version of another form": (
        "gpu-boot-versions",
        lambda w: with_devices(w, SimulatedGpu(vbios_version="latest")),
    ),
}


def test_every_boot_check_has_an_attack() -> None:
    assert {code for code, _ in ATTACKS.values()} >= {
        *BOOT_CODES,
        "gpu-required",
        "gpu-cc-mode",
        "gpu-devtools",
    }
