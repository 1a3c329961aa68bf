"""The job.yaml that `trainer job init` writes parses, for every kind of rows, and says what to fill in."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainer.data.rows.kinds import ROW_KINDS
from trainer.deployment import ModelPins, pin_model, render_job_template
from trainer.spec import RowFormat, parse_job_spec


@pytest.mark.parametrize("kind", ROW_KINDS)
@pytest.mark.parametrize("model", ["org/name", "./model"])
def test_the_template_is_a_job_spec(kind: str, model: str) -> None:
    text = render_job_template(model, kind)
    spec = parse_job_spec(text.encode())
    assert spec.model.model_name_or_path == model
    assert spec.data.format == RowFormat(kind)
    assert spec.train.method == {"preference": "dpo", "unpaired_preference": "kto"}.get(kind, "sft")
    assert spec.exchange.host == "0.0.0.0"
    assert {*spec.model.model_file_sha256.values()} == {"0" * 64}
    assert text.count("FILL IN:") == (1 if spec.model.is_local else 2)


def test_the_template_can_be_pinned() -> None:
    digests = {"config.json": "1" * 64, "model.safetensors": "2" * 64}
    pinned = pin_model(render_job_template("org/name", "messages"), ModelPins("3" * 40, digests))
    assert dict(parse_job_spec(pinned.encode()).model.model_file_sha256) == digests
    assert "FILL IN:" not in pinned


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=40))
@example("{% for m in messages %}\n  {{ m.content }}\n{% endfor %}\n")
@example("...\n\n")
@example("  {{- bos_token }}\n\n\n")
@example("{{ '<\uff5cUser\uff5c>' }} \n\t{% if a %}\r\n# no comment\n--- \n")
def test_a_chat_template_arrives_as_it_is(template: str) -> None:
    template = template + "{{ messages }}" + template
    text = render_job_template("./model", "messages", template)
    assert parse_job_spec(text.encode()).data.chat_template == template


def test_a_chat_template_can_be_read_line_by_line() -> None:
    text = render_job_template(
        "./model", "messages", "{% for m in messages %}\n{{ m.content }}\n{% endfor %}"
    )
    assert (
        "\n    {% for m in messages %}\n    {{ m.content }}\n    {% endfor %}\n  on_overlong"
        in text
    )
