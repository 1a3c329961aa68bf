"""Joint jobs: who takes part, and what would tell one provider of another's rows."""

from __future__ import annotations

import pytest

from tests.spec.test_job_spec import MINIMAL, refused
from trainer.spec import parse_job_spec
from trainer.spec.pool_names import name_in_bundle, number_in_pool, pool_name, pool_sha256

KEYS = tuple(f"ed25519:{letter * 64}" for letter in "ab")
JOINT = f"exchange: {{joint: true, providers: ['{KEYS[0]}', '{KEYS[1]}']}}\n"
OUTPUT = "output: {samples: 0, include_logs: false}\n"
STEPS = "train: {max_steps: 5}\n"


def test_a_joint_job_says_whom_it_waits_for() -> None:
    exchange = parse_job_spec((MINIMAL + JOINT + OUTPUT + STEPS).encode()).exchange
    assert exchange.providers == KEYS
    assert (
        exchange.who_may_submit
        == f"each of these providers has to submit a dataset: {', '.join(KEYS)}"
    )


@pytest.mark.parametrize(
    ("exchange", "expected"),
    [
        ("{joint: true}", "at least 2 provider keys"),
        (f"{{joint: true, providers: ['{KEYS[0]}']}}", "at least 2 provider keys"),
        (f"{{providers: ['{KEYS[0]}', '{KEYS[0]}']}}", "each provider key once"),
    ],
)
def test_a_joint_job_has_several_providers(exchange: str, expected: str) -> None:
    assert expected in str(refused(f"{MINIMAL}exchange: {exchange}\n{OUTPUT}{STEPS}"))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (OUTPUT, "train.max_steps: must be above 0"),
        (STEPS, "output.samples: must be 0"),
        (STEPS + "output: {samples: 0}\n", "output.include_logs: must be false"),
        (STEPS + OUTPUT + "data: {on_overlong: drop}\n", "data.on_overlong: must be error"),
        (
            STEPS + OUTPUT + "evaluation: {metrics: [exact_match]}\n",
            "evaluation.metrics: must be left out",
        ),
        (STEPS + OUTPUT + "privacy: {audit: true}\n", "privacy: must be left out"),
        (STEPS + OUTPUT + "lora: {start_from: adapter}\n", "lora.start_from: must be left out"),
        (
            STEPS + OUTPUT + "privacy: {target_epsilon: 3.0, target_delta: 1.0e-5}\n"
            "lora: {lora_dropout: 0}\ndata: {split_turns: never}\n",
            "privacy: must be left out",
        ),
    ],
)
def test_what_would_tell_of_the_rows_of_others_is_refused(sections: str, expected: str) -> None:
    text = MINIMAL.replace("lora: {}\n", "") + JOINT + sections
    assert expected in str(refused(text))


def test_a_name_in_the_pool_leads_back_to_its_bundle() -> None:
    name = pool_name(3, "eval/rows.jsonl")
    assert name == "provider-03//eval/rows.jsonl"
    assert (number_in_pool(name), name_in_bundle(name)) == (3, "eval/rows.jsonl")
    assert (number_in_pool("eval/rows.jsonl"), name_in_bundle("eval/rows.jsonl")) == (
        None,
        "eval/rows.jsonl",
    )


def test_the_digest_of_a_pool_depends_on_the_order() -> None:
    assert pool_sha256(["aa" * 32, "bb" * 32]) != pool_sha256(["bb" * 32, "aa" * 32])
