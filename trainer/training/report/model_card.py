"""The adapter's model card: from what it was made and how, in statistics only; nothing of any row.

Format: README.md with a YAML block of metadata in front, as model hubs read it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Final

from trainer.data.examples.mixing import SetCounts
from trainer.spec import JobSpec
from trainer.training.methods.registry import METHODS
from trainer.training.report.privacy_page import privacy_card_lines
from trainer.training.report.summary import Summary
from trainer.training.report.tables import table_lines

_SECTIONS: Final = ("lora", "data", "train")


def render_model_card(summary: Summary, spec: JobSpec) -> str:
    """Renders the card as Markdown."""
    lines = [*_metadata_lines(spec), *_introduction_lines(spec)]
    if summary.privacy is not None:
        lines += privacy_card_lines(summary.privacy)
    # The card goes where the weights go. Under differential privacy only what the noise covers may go with them;
    # it covers neither losses nor row counts.
    if not spec.privacy.differential:
        lines += ["", "## Result", "", *table_lines(_result_values(summary, spec))]
    if not spec.privacy.differential and not spec.exchange.joint:
        lines += [
            "",
            "## Data",
            "",
            "The rows themselves are private; these are counts over them.",
            "",
        ]
        token_counts = {f"tokens: {name}": value for name, value in summary.tokens.items()}
        # A pattern is a text of the job spec: it belongs into a cell, which is escaped.
        sets = {
            f"data.mix {number}": f"{name}: {SetCounts(**counts)}"
            for number, (name, counts) in enumerate(summary.mix.items(), 1)
        }
        lines += table_lines({**summary.rows, **sets, **token_counts})
    sections = spec.model_dump(mode="json", include=set(_SECTIONS))
    settings = {
        f"{section}.{key}": value
        for section in _SECTIONS
        for key, value in sections[section].items()
    }
    lines += [
        "",
        "## Settings",
        "",
        *table_lines({"job spec (SHA-256)": spec.sha256(), **settings}),
    ]
    lines += ["", "## Adapter", "", *table_lines(summary.adapter)]
    lines += ["", "## Environment", "", *table_lines(summary.environment)]
    return "\n".join(lines) + "\n"


def _metadata_lines(spec: JobSpec) -> Iterator[str]:
    """Yields the YAML block. Texts are JSON strings, which are YAML as well and cannot end the block."""
    yield "---"
    if not spec.model.is_local:
        yield f"base_model: {json.dumps(spec.model.model_name_or_path)}"
    if spec.model.license is not None:
        yield f"license: {json.dumps(spec.model.license)}"
    yield "library_name: peft"
    yield "pipeline_tag: text-generation"
    yield "tags:"
    yield from ("- lora", "- transformers", "- confidential-computing")
    yield from (f"- {tag}" for tag in METHODS[spec.train.method].words.card_tags)
    yield "---"


def _introduction_lines(spec: JobSpec) -> Iterator[str]:
    model = spec.model
    revision = f" at revision `{model.model_revision}`" if model.model_revision else ""
    name = (
        "the base model with the files below"
        if model.is_local
        else f"the base model `{model.model_name_or_path}`"
    )
    yield from ("", "# LoRA adapter", "")
    yield f"Made for {name}{revision}."
    if sentence := METHODS[spec.train.method].words.card_sentence:
        yield sentence
    # A path of the operator's machine means nothing elsewhere. A JSON string is a string of Python as well: no
    # name of a model can end the string or the line.
    arguments = json.dumps("path/to/the/base/model" if model.is_local else model.model_name_or_path)
    arguments += f', revision="{model.model_revision}"' if model.model_revision else ""
    yield from ("", "```python", "from peft import PeftModel")
    yield from ("from transformers import AutoModelForCausalLM, AutoTokenizer", "")
    yield f"base = AutoModelForCausalLM.from_pretrained({arguments})"
    yield 'model = PeftModel.from_pretrained(base, "adapter")'
    yield 'tokenizer = AutoTokenizer.from_pretrained("adapter")  # with the chat template that was trained with'
    yield "```"
    if model.is_local:
        yield from ("", "## Base model", "", *table_lines(dict(model.model_file_sha256)))


def _result_values(summary: Summary, spec: JobSpec) -> dict[str, object]:
    words = METHODS[spec.train.method].words
    values: dict[str, object] = {
        f"training loss ({words.loss_unit})": round(summary.train_loss, 4),
        "optimizer steps": summary.steps,
        "tokens trained on": summary.trained_tokens,
    }
    for name, loss in (("before", summary.eval_loss_before), ("after", summary.eval_loss_after)):
        if loss is not None:
            values[f"held-out loss {name}"] = round(loss, 4)
            if words.has_perplexity:
                values[f"held-out perplexity {name}"] = round(perplexity(loss), 2)
    held_out: dict[str, object] = {
        f"held-out {name.removeprefix('eval_')}": round(value, 4)
        for name, value in summary.pairs.items()
    }
    for name, before, after in summary.task.changes() if summary.task else ():
        held_out |= {
            f"held-out {name} before": round(before, 4),
            f"held-out {name} after": round(after, 4),
        }
    return (
        values | held_out | ({"held-out rows judged": summary.task.judged} if summary.task else {})
    )


def perplexity(loss: float) -> float:
    """Returns exp(loss) of a loss in nats per token; infinity where that exceeds a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
