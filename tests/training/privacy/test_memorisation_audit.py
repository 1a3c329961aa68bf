"""What a model memorised, by exact arithmetic on given losses, and on models that did and did not memorise."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from trainer.data.examples.example_set import build_dataset
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.rows import ChatRow, Message, Row, TextRow
from trainer.errors import DataError, ErrorCode, ExitCode
from trainer.ipc.worker_messages import Failed, Finished
from trainer.spec import GATE_OUTSIDERS, REFERENCES, DataSection, JobSpec, PrivacySection
from trainer.training.privacy.canaries import canary_examples, draw_secret_digits, exposures
from trainer.training.privacy.membership import auc, membership, roc, separation, tpr, wilson
from trainer.training.privacy.memorisation_audit import Probes, add_probes
from trainer.training.privacy.privacy_findings import (
    DifferentialPrivacy,
    Exposure,
    Membership,
    Privacy,
    Separation,
)
from trainer.training.privacy.release_gate import refusal
from trainer.training.report.privacy_page import (
    histogram,
    privacy_card_lines,
    render_privacy_section,
)
from trainer.training.tokenizer import load_tokens


def test_the_area_counts_pairs() -> None:
    inside, outside = [3.0, 1.0, 2.0], [0.0, 2.0]
    wins = sum((a > b) + 0.5 * (a == b) for a in inside for b in outside)
    assert auc(inside, outside)[0] == pytest.approx(wins / 6)
    assert auc([1.0, 2.0], [3.0, 4.0])[0] == 0.0
    assert auc([1.0] * 5, [1.0] * 4)[0] == 0.5


def test_equal_distributions_are_not_told_apart() -> None:
    random = Random(7)
    inside, outside = ([random.gauss(0, 1) for _ in range(400)] for _ in range(2))
    found = separation(inside, outside)
    assert found.auc_interval[0] < 0.5 < found.auc_interval[1]
    assert found.auc_interval[1] - found.auc_interval[0] == pytest.approx(
        4 * 1.0 / math.sqrt(12 * 200), rel=0.1
    )
    assert found.tpr_interval[0] < 0.03


def test_found_rows_at_few_false_alarms() -> None:
    outside = [float(number) for number in range(200)]
    assert tpr([500.0, 198.0, 197.5, 0.0], outside, 0.01) == 0.75
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    curve = roc([500.0, 198.0], outside)
    assert curve[0] == (0.0, 0.0)
    assert curve[-1] == (1.0, 1.0)
    assert curve == sorted(curve)


def test_rows_that_got_easier_are_found_though_they_are_hard() -> None:
    found = membership(([9.0, 5.0, 8.0], [6.0, 2.0, 5.0]), ([4.0, 3.0, 7.0], [4.0, 3.0, 7.0]))
    assert found.calibrated.auc == 1.0
    assert found.loss.auc < 1.0
    assert found.worst == 1.0
    assert (found.members, found.outsiders) == (3, 3)


def test_exposure_is_the_papers() -> None:
    references = [float(number) for number in range(1, 1024)]
    assert exposures([0.5, 1.5, 5000.0], references) == (10.0, 9.0, 0.0)
    assert exposures([1.0], [1.0])[0] == 0.0, "an equal one counts as ranked before"


def test_canaries_look_like_rows_and_are_all_different(
    tiny_model: Path, make_spec: Callable[..., JobSpec]
) -> None:
    tokens, data = load_tokens(tiny_model), make_spec().data
    assert len(set(draw_secret_digits(500, Random(1)))) == 500
    assert draw_secret_digits(3, Random(1)) != draw_secret_digits(3, Random(2))
    for like in (
        TextRow("a", 0, "x"),
        ChatRow("a", 0, (Message("user", "x"), Message("assistant", "y"))),
    ):
        canaries, references = canary_examples(
            like, PrivacySection(canaries=4), tokens, data, Random(1)
        )
        assert (len(canaries), len(references)) == (4, REFERENCES)
        assert (
            len({example.ids.tobytes() for example in (*canaries, *references)}) == 4 + REFERENCES
        )


def test_canaries_that_do_not_fit_are_refused(
    tiny_model: Path, make_spec: Callable[..., JobSpec]
) -> None:
    data = make_spec(data={"max_length": 8}).data
    with pytest.raises(DataError, match="canaries") as error:
        canary_examples(
            TextRow("a", 0, "x"),
            PrivacySection(canaries=1),
            load_tokens(tiny_model),
            data,
            Random(1),
        )
    assert error.value.code is ErrorCode.DATASET_NOT_TRAINABLE


def found(area: float = 0.6, bits: float = 3.0, *, width: float = 0.1) -> Privacy:
    one = Separation(auc=area, auc_interval=(0.5, area + width), tpr=0.1, tpr_interval=(0.0, 0.2))
    return Privacy(
        membership=Membership(members=8, outsiders=8, loss=one, calibrated=one),
        exposure=Exposure(canaries=2, repetitions=3, candidates=1024, bits=(0.5, bits)),
    )


def test_the_gate_withholds_what_is_above_its_limits_and_what_was_not_measured() -> None:
    """The upper end of the interval counts: a few held-out rows exclude little, and must not release for it."""
    section = PrivacySection(audit=True, canaries=2, max_exposure=4.0, max_membership_auc=0.7)
    assert refusal(section, found()) is None
    for memorised, word in (
        (found(bits=4.01), "canary"),
        (found(area=0.71), "training rows"),
        (found(area=0.5, width=0.21), "training rows"),
        (Privacy(), "canary"),
    ):
        error = refusal(section, memorised)
        assert error is not None
        assert error.code is ErrorCode.RELEASE_WITHHELD
        assert word in error.message
    assert refusal(PrivacySection(), found(bits=9.9, area=0.99)) is None


def audited_probes(tokens: ModelTokenizer, rows: list[Row], **section: Any) -> Probes:
    data = DataSection()
    dataset = build_dataset(rows, tokens, data, split_key=b"\x5b" * 32)
    return add_probes(
        dataset, rows[0], tokens, (PrivacySection(audit=True, **section), data), random=Random(1)
    )[1]


def test_the_gate_takes_a_minimum_of_held_out_rows_and_no_copies_of_training_rows(
    tiny_model: Path,
) -> None:
    """Copies among the outsiders lose as much in training as members do: the attack would look weak."""
    tokens = load_tokens(tiny_model)
    train: list[Row] = [TextRow("train", number, f"{number} words") for number in range(30)]
    own: list[Row] = [
        TextRow("eval/own", number, f"{number} others") for number in range(GATE_OUTSIDERS)
    ]
    copies: list[Row] = [TextRow("eval/copies", number, f"{number} words") for number in range(30)]
    probes = audited_probes(tokens, [*train, *own, *copies], max_membership_auc=0.7)
    assert len(probes.outsiders) == GATE_OUTSIDERS
    assert not {one.ids.tobytes() for one in probes.outsiders} & {
        one.ids.tobytes() for one in probes.members
    }
    with pytest.raises(DataError, match="no copies") as caught:
        audited_probes(tokens, [*train, *own[1:], *copies], max_membership_auc=0.7)
    assert caught.value.code is ErrorCode.DATASET_INVALID
    assert len(audited_probes(tokens, [*train, *own[:2], *copies]).outsiders) == 2, (
        "without a gate, a report"
    )


def test_under_differential_privacy_no_row_decides_what_canaries_look_like(
    tiny_model: Path,
) -> None:
    """They are trained on: if the only conversation came first, leaving it out would change all of them."""
    tokens, data = load_tokens(tiny_model), DataSection()
    chat = ChatRow("a", 0, (Message("user", "x"), Message("assistant", "y")))
    texts: list[Row] = [TextRow("a", number, f"{number} words") for number in range(30)]
    privacy = PrivacySection(noise_multiplier=1.0, target_delta=1e-5, canaries=2)
    canaries = [
        add_probes(
            build_dataset(rows, tokens, data, split_key=b"\x5b" * 32),
            rows[0],
            tokens,
            (privacy, data),
            random=Random(1),
        )[1].canaries
        for rows in ([chat, *texts], texts)
    ]
    assert canaries[0] == canaries[1]


def test_the_page_shows_it_and_quotes_what_it_is_given() -> None:
    losses = {
        name: [1.0, 2.0]
        for name in ("members_before", "members_after", "outsiders_before", "outsiders_after")
    }
    page = render_privacy_section(found().model_copy(update={"withheld": "<b>"}), losses)
    assert "AUC by loss<td>0.600" in page
    assert "3.00" in page
    assert "&lt;b&gt;" in page
    assert page.count("<svg") == 2
    assert render_privacy_section(None, {}) == ""
    assert sum(share for _, share in histogram([1.0, 2.0], [0.0, 2.0])[::2]) == 1.0
    assert any("exposure of at most 3.00" in line for line in privacy_card_lines(found()))


@pytest.mark.parametrize(
    ("epsilon", "rounded"),
    [(2.9871, 3.0), (0.6543, 0.66), (13.01, 14.0), (3.0, 3.0), (0.0, 0.0), (2.9, 2.9)],
)
def test_what_travels_with_the_weights_is_rounded_up(epsilon: float, rounded: float) -> None:
    """All digits of ε lead to the number of rows, and so to whether one is among them."""
    found = DifferentialPrivacy(
        epsilon=epsilon, delta=1e-5, accountant="prv", noise_multiplier=1.0, max_grad_norm=1.0, sample_rate=0.1,
        expected_rows=4, rows=40, steps=3,
    )  # fmt: skip
    assert found.rounded_epsilon == rounded >= epsilon


RunWorker = Callable[..., Any]
OVERTRAINED = {"max_steps": 60, "learning_rate": 0.02, "per_device_train_batch_size": 16}
AUDITED = {"audit": True, "canaries": 2, "canary_repetitions": 8}


def privacy_of(ended: Any) -> dict[str, Any]:
    assert ended.code == ExitCode.DONE, ended.log
    finished = ended.messages[-1]
    assert isinstance(finished, Finished)
    privacy = finished.summary["privacy"]
    assert isinstance(privacy, dict)
    return privacy


def test_a_model_that_was_not_trained_remembers_nothing(
    run_worker: RunWorker, chat_file: Path, make_spec: Callable[..., JobSpec]
) -> None:
    spec = make_spec(
        privacy=AUDITED, train={"max_steps": 1, "learning_rate": 1e-7}, lora={"lora_r": 16}
    )
    found = privacy_of(run_worker(chat_file, spec))
    low, high = found["membership"]["loss"]["auc_interval"]
    assert low < 0.5 < high
    assert max(found["exposure"]["bits"]) < 9.9
    assert (found["exposure"]["candidates"], found["exposure"]["repetitions"]) == (1024, 8)
    assert found["differential"] is None


def test_an_overtrained_model_is_withheld_with_its_report(
    run_worker: RunWorker, chat_file: Path, make_spec: Callable[..., JobSpec]
) -> None:
    spec = make_spec(
        privacy={**AUDITED, "max_exposure": 5.0, "max_membership_auc": 0.9},
        data={"test_split_size": 0.7},
        train=OVERTRAINED,
        lora={"lora_r": 32},
    )
    ended = run_worker(chat_file, spec)
    assert ended.code == ExitCode.JOB, ended.log
    (failed,) = [message for message in ended.messages if isinstance(message, Failed)]
    assert failed.code is ErrorCode.RELEASE_WITHHELD
    assert not (ended.output_dir / "adapter").exists()
    assert "The adapter is withheld" in (ended.output_dir / "report" / "report.html").read_text()


def test_a_private_run_from_order_to_card(
    run_worker: RunWorker, chat_file: Path, make_spec: Callable[..., JobSpec]
) -> None:
    pytest.importorskip("opacus", reason="the extra `privacy` is not installed")
    spec = make_spec(
        privacy={"noise_multiplier": 2.0, "target_delta": 1e-5},
        train={"engine": "transformers", "max_steps": 3},
        data={"split_turns": "never"},
    )
    ended = run_worker(chat_file, spec)
    found = privacy_of(ended)["differential"]
    assert (found["rows"], found["expected_rows"], found["steps"], found["unit"]) == (
        32,
        4,
        3,
        "row",
    )
    assert found["epsilon"] > 0
    card = (ended.output_dir / "adapter" / "README.md").read_text()
    assert "differential privacy" in card
    assert f"ε ≤ {DifferentialPrivacy.model_validate(found).rounded_epsilon:g} " in card
    for exact in (
        "training loss",
        "in a step",
        "dataset manifest",
        str(found["epsilon"]),
        "noise multiplier",
    ):
        assert exact not in card, "no noise covers it, and a card goes with the weights"
    assert (
        "Differential privacy of each row"
        in (ended.output_dir / "report" / "report.html").read_text()
    )
