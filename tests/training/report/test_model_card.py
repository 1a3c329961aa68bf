"""The model card: statistics and settings, valid metadata, nothing of any row."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import yaml

from trainer.receipt.result_files import require_result_file
from trainer.spec import JobSpec
from trainer.training.report.model_card import perplexity, render_model_card
from trainer.training.report.summary import Summary
from trainer.training.report.tables import table_lines


def summary(**changes: object) -> Summary:
    fields: dict[str, object] = {
        "eval_loss_before": 3.5,
        "eval_loss_after": 2.25,
        "train_loss": 2.9,
        "trained_tokens": 12345,
        "input_tokens": 23456,
        "steps": 60,
        "rows": {"train": 90, "eval": 10},
        "tokens": {"shortest": 3, "longest": 99},
        "seconds": {"total": 15.25},
        "environment": {"device": "a | b"},
        "warnings": (),
    }
    return Summary.model_validate({**fields, **changes})


def metadata(card: str) -> dict[str, object]:
    document: dict[str, object] = yaml.safe_load(card.split("---")[1])
    return document


def test_the_card_says_what_was_done(make_spec: Callable[..., JobSpec]) -> None:
    spec = make_spec(model={"license": "apache-2.0"})
    card = render_model_card(
        summary(adapter={"LoRA on q_proj": "2 modules", "lm_head": "trained in full"}), spec
    )
    assert metadata(card)["license"] == "apache-2.0"
    for words in (
        "held-out loss after | 2.25",
        "perplexity after | 9.49",
        "12345",
        "lora.lora_r | 4",
        "LoRA on q_proj | 2 modules",
        "lm_head | trained in full",
        spec.sha256(),
    ):
        assert words in card
    assert "a \\| b" in card


def test_settings_are_text_in_the_card() -> None:
    """A job whose template looks like HTML must not fail at its end for its own model card."""
    text = "<img src=x> ![](y) [z](JavaScript:1) <|user|> !"
    card = "\n".join(table_lines({"template": text})).encode()
    require_result_file("adapter/README.md", io.BytesIO(card), len(card), copied={})
    assert card.decode().splitlines()[-1] == (
        "| template | &#60;img src=x> &#33;[](y) [z](JavaScript&#58;1) &#60;\\|user\\|> ! |"
    )


def test_a_card_of_preference_training_names_the_method(make_spec: Callable[..., JobSpec]) -> None:
    pairs = {"eval_rewards_accuracies": 0.875, "eval_rewards_margins": 1.5}
    card = render_model_card(summary(pairs=pairs), make_spec(train={"method": "dpo"}))
    assert metadata(card)["tags"] == ["lora", "transformers", "confidential-computing", "dpo"]
    for words in ("2305.18290", "held-out rewards_accuracies | 0.875", "training loss (mean over pairs) | 2.9",
                  "train.beta | 0.1"):  # fmt: skip
        assert words in card
    assert "perplexity" not in card
    assert "2305" not in render_model_card(summary(), make_spec())


def test_a_card_without_held_out_rows_claims_nothing_about_them(
    make_spec: Callable[..., JobSpec],
) -> None:
    card = render_model_card(summary(eval_loss_before=None, eval_loss_after=None), make_spec())
    assert "held-out" not in card
    assert "license" not in metadata(card)


def test_the_base_model_is_named_by_hub_id_and_revision(make_spec: Callable[..., JobSpec]) -> None:
    revision = "ab" * 20
    card = render_model_card(
        summary(),
        make_spec(model={"model_name_or_path": "org/some-model", "model_revision": revision}),
    )
    assert metadata(card)["base_model"] == "org/some-model"
    assert f'from_pretrained("org/some-model", revision="{revision}")' in card


def test_a_local_base_model_is_named_by_digests_and_never_by_its_path(
    make_spec: Callable[..., JobSpec],
) -> None:
    card = render_model_card(
        summary(), make_spec(model={"model_name_or_path": '/home/operator/a: b #"c"'})
    )
    assert "base_model" not in metadata(card)
    assert "operator" not in card
    assert f"| model.safetensors | {'0' * 64} |" in card


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    assert perplexity(0.0) == 1.0
    assert math.isclose(perplexity(math.log(7)), 7)
    assert perplexity(1e9) == math.inf
