"""The form of nvattest's results: what is no whole result is refused with a reason, whatever it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.growth import grows_linearly
from trainer.attestation.nvidia.boot_claims import MAX_BOOT_CHARS, MAX_DEVICES, parse_boot_result
from trainer.simulator.nvattest import (
    GOOD_CHAIN,
    SimulatedGpu,
    SimulatedSwitch,
    detached_eat,
    nvattest_result,
    overall_claims,
    token,
)

NONCE = "5b" * 32
GPU = SimulatedGpu()
REPORT_CHAIN = "x-nvidia-gpu-attestation-report-cert-chain"
HONEST = nvattest_result([GPU], NONCE)


def tokens_of(text: str) -> dict[str, str]:
    return dict(json.loads(text)["detached_eat"][1])


def refusal(text: str) -> str:
    """Why it is refused; empty if it is not."""
    try:
        parse_boot_result(text)
    except ValueError as error:
        return str(error)
    return ""


def other_bundle(overall: Any, tokens: Any) -> str:
    return nvattest_result([GPU], NONCE, detached_eat=[["JWT", overall], tokens])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[]", "the result is no object"),
        (" " * MAX_BOOT_CHARS + "{}", "more than"),
        ("[" * 100_000, "nested"),
        (HONEST.replace('"result_code": 0', '"result_code": 0.0'), "result_code"),
        (nvattest_result([], NONCE), "no list"),
        (nvattest_result([GPU] * (MAX_DEVICES + 1), NONCE), "no list"),
        (nvattest_result([GPU], NONCE, claims={}), "no list"),
        (nvattest_result([GPU], NONCE, claims=[None]), "claim 0 is no object"),
        (nvattest_result([SimulatedSwitch()], NONCE), "no GPU"),
        (
            nvattest_result([SimulatedGpu(ueid="\n")], NONCE),
            "GPU-0: ueid is no short printable text",
        ),
        (nvattest_result([SimulatedGpu(ueid="1" * 201)], NONCE), "GPU-0: ueid"),
        (nvattest_result([SimulatedGpu(changes={"ueid": 1})], NONCE), "GPU-0: ueid"),
        (nvattest_result([SimulatedGpu(changes={"secboot": 1})], NONCE), "secboot is neither"),
        (
            nvattest_result([SimulatedGpu(changes={"x-nvidia-gpu-arch-check": "HOPPER"})], NONCE),
            "arch-check",
        ),
        (
            nvattest_result([SimulatedGpu(changes={REPORT_CHAIN: "valid"})], NONCE),
            "cert-chain is no object",
        ),
        (
            nvattest_result(
                [SimulatedGpu(changes={REPORT_CHAIN: {**GOOD_CHAIN, "x-nvidia-cert-status": 1}})],
                NONCE,
            ),
            "cert-status",
        ),
        (nvattest_result([GPU], NONCE, detached_eat=[]), "one token per device"),
        (nvattest_result([GPU], NONCE, detached_eat="eyJ"), "one token per device"),
        (nvattest_result([GPU], NONCE, detached_eat=[["CBOR", "a"], {}]), "one token per device"),
        (other_bundle("a.b", {}), "the overall token: no JWT"),
        (other_bundle(1, {}), "the overall token: no JWT"),
        (other_bundle("A.bQ.", {}), "the overall token: not base64url"),
        (other_bundle("bR.bQ.", {}), "the overall token: not base64url"),
        (other_bundle("_w.bQ.", {}), "the overall token: not UTF-8"),
        (other_bundle("MQ.MQ.", {}), "the overall token: a part is no object"),
        (other_bundle("e30.e30.", {}), "the overall token: signature and algorithm"),
        (other_bundle(token({}), {}), "submods is no object"),
        (other_bundle(token({"submods": {}}), {}), "other devices"),
        (other_bundle(token(overall_claims(tokens_of(HONEST), NONCE)), {}), "other devices"),
        (
            other_bundle(
                token({**overall_claims(tokens_of(HONEST), NONCE), "eat_nonce": 1}),
                tokens_of(HONEST),
            ),
            "eat_nonce",
        ),
        (other_bundle(token(overall_claims({"GPU-0": "a"}, NONCE)), {"GPU-0": 1}), "GPU-0: no JWT"),
        (
            other_bundle(token(overall_claims({"GPU-0": "é"}, NONCE)), {"GPU-0": "é"}),
            "GPU-0: no JWT",
        ),
        (
            nvattest_result([SimulatedGpu(changes={"deep": [[[[[[[[1]]]]]]]]})], NONCE),
            "its token differs from the list of claims",
        ),
    ],
)
def test_what_is_no_result_is_refused_with_a_reason(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        parse_boot_result(text)
    assert str(refused.value).isprintable()


def test_a_token_says_the_same_as_the_list_or_is_refused() -> None:
    claims = GPU.claims(NONCE)
    for change in ({"new": 1}, {"secboot": None}, {"x-nvidia-mismatch-measurement-records": [1]}):
        for listed, stated in ((claims, {**claims, **change}), ({**claims, **change}, claims)):
            tokens = {"GPU-0": token(stated)}
            bundle = detached_eat(overall_claims(tokens, NONCE), tokens)
            with pytest.raises(
                ValueError, match="GPU-0: its token differs from the list of claims"
            ):
                parse_boot_result(
                    nvattest_result([GPU], NONCE, claims=[listed], detached_eat=bundle)
                )


def test_devices_are_told_apart_by_the_names_of_their_tokens() -> None:
    first, second = SimulatedGpu(ueid="1"), SimulatedGpu(ueid="2")
    document = json.loads(nvattest_result([first, second], NONCE))
    document["claims"].reverse()
    with pytest.raises(ValueError, match="GPU-0: its token differs from the list of claims"):
        parse_boot_result(json.dumps(document))


def test_what_nobody_says_is_none() -> None:
    bare = {"x-nvidia-device-type": "gpu"}
    result = parse_boot_result(json.dumps({"result_code": 0, "claims": [bare]}))
    (gpu,) = result.gpus
    assert result.overall is None
    assert len(gpu.unverified) == 14
    assert (gpu.nonce, gpu.measurements, gpu.secure_boot, gpu.debug, gpu.model, gpu.ueid) == (
        None,
    ) * 6
    assert {chain.status for chain in gpu.chains} == {None}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    assert refusal(text).isprintable()


@given(JSON_VALUES)
def test_any_document_is_parsed_or_refused(value: object) -> None:
    assert refusal(json.dumps(value)).isprintable()


@given(name=st.sampled_from(sorted(GPU.claims(NONCE))), value=JSON_VALUES)
def test_any_value_of_a_claim_is_parsed_or_refused(name: str, value: object) -> None:
    assert refusal(nvattest_result([SimulatedGpu(changes={name: value})], NONCE)).isprintable()


@given(value=JSON_VALUES)
def test_any_bundle_is_parsed_or_refused(value: object) -> None:
    assert refusal(nvattest_result([GPU], NONCE, detached_eat=value)).isprintable()
    assert refusal(other_bundle(token({"submods": value}), value)).isprintable()


@given(at=st.integers(min_value=0, max_value=len(HONEST) - 1), character=st.characters())
def test_any_changed_character_is_parsed_or_refused(at: int, character: str) -> None:
    assert refusal(HONEST[:at] + character + HONEST[at + 1 :]).isprintable()


@given(st.text())
def test_any_token_is_parsed_or_refused(text: str) -> None:
    tokens = {"GPU-0": f"{text}"}
    try:
        overall = overall_claims(tokens, NONCE)
    except UnicodeEncodeError:
        return
    assert refusal(
        nvattest_result([GPU], NONCE, detached_eat=detached_eat(overall, tokens))
    ).isprintable()


def test_the_time_for_many_gpus_is_linear() -> None:
    texts = {
        count: nvattest_result([SimulatedGpu(ueid=str(number)) for number in range(count)], NONCE)
        for count in (2, 8)
    }
    assert grows_linearly(lambda count: parse_boot_result(texts[count]), 2)
