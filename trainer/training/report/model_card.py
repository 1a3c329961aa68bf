"""The adapter's model card: what it was made from and how, in statistics only; nothing of any row.

Format: a README.md with YAML metadata, as model hubs read it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Final

from trainer.spec import JobSpec
from trainer.training.methods.registry import METHODS
from trainer.training.report.privacy_page import card_lines
from trainer.training.report.summary import Summary

_PARTS: Final = ("lora", "data", "train")


def model_card(summary: Summary, spec: JobSpec) -> str:
    """The card as Markdown."""
    return "\n".join((*_metadata(spec), *_body(summary, spec))) + "\n"


def _metadata(spec: JobSpec) -> Iterator[str]:
    """The YAML block; values are JSON strings, which are YAML as well and cannot break out of it."""
    yield "---"
    yield f"base_model: {json.dumps(spec.model.model_name_or_path)}"
    if spec.model.license is not None:
        yield f"license: {json.dumps(spec.model.license)}"
    yield "library_name: peft"
    yield "pipeline_tag: text-generation"
    yield "tags:"
    yield from ("- lora", "- transformers", "- confidential-computing")
    yield from (f"- {tag}" for tag in METHODS[spec.train.method].words.card_tags)
    yield "---"


def _body(summary: Summary, spec: JobSpec) -> Iterator[str]:
    name = spec.model.model_name_or_path
    revision = f" at revision `{spec.model.model_revision}`" if spec.model.model_revision else ""
    yield from ("", "# LoRA adapter", "")
    yield f"Made for the base model `{name}`{revision}."
    if sentence := METHODS[spec.train.method].words.card_sentence:
        yield sentence
    yield from ("", "```python", "from peft import PeftModel", "from transformers import AutoModelForCausalLM", "")
    yield f"base = AutoModelForCausalLM.from_pretrained({json.dumps(name)})"
    yield 'model = PeftModel.from_pretrained(base, "adapter")'
    yield "```"
    if summary.privacy is not None:
        yield from card_lines(summary.privacy)
    if not spec.privacy.differential:  # a card goes where the weights go, and no noise covers these numbers
        yield from _figures(summary, spec)
    yield from ("", "## Settings", "")
    yield from _table({"job spec (SHA-256)": spec.sha256(), **_settings(spec)})
    yield from ("", "## Environment", "", *_table(summary.environment))


def _figures(summary: Summary, spec: JobSpec) -> Iterator[str]:
    yield from ("", "## Result", "", *_table(_result(summary, spec)))
    yield from ("", "## Data", "", "The rows themselves are private; these are counts over them.", "")
    yield from _table({**summary.rows, **{f"tokens: {key}": value for key, value in summary.tokens.items()}})


def _result(summary: Summary, spec: JobSpec) -> dict[str, object]:
    words = METHODS[spec.train.method].words
    result: dict[str, object] = {
        f"training loss ({words.loss_unit})": round(summary.train_loss, 4),
        "optimizer steps": summary.steps,
        "tokens trained on": summary.trained_tokens,
    }
    for name, loss in (("before", summary.eval_loss_before), ("after", summary.eval_loss_after)):
        if loss is not None:
            result[f"held-out loss {name}"] = round(loss, 4)
            if words.has_perplexity:
                result[f"held-out perplexity {name}"] = round(perplexity(loss), 2)
    return result | {f"held-out {name[5:]}": round(value, 4) for name, value in summary.pairs.items()}


def perplexity(loss: float) -> float:
    """Exp of a loss in nats per token; infinite where that is beyond a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _settings(spec: JobSpec) -> dict[str, object]:
    sections = spec.model_dump(mode="json", include=set(_PARTS))
    return {f"{part}.{leaf}": value for part in _PARTS for leaf, value in sections[part].items()}


def _table(values: Mapping[str, object]) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    for name, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value)
        yield f"| {name} | {text.replace('|', chr(92) + '|')} |"
