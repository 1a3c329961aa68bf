"""Chat templates in the manner of well-known model families, with what each must have the model generate.

They are Jinja data of these tests' own, smaller than the originals, with the same traps: text that is stripped,
generation prompts, start tokens, earlier turns that are rewritten, tools, dates, markers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA = """\
{{- bos_token }}
{%- set date = strftime_now('%d %b %Y') %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date + '\\n\\n<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {%- for call in message.tool_calls %}
            {{- {'name': call.function.name, 'parameters': call.function.arguments} | tojson }}
        {%- endfor %}
        {{- '<|eot_id|>' }}
        {%- continue %}
    {%- endif %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('no system: ' + messages[0].content) }}{% endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('by turns') }}{% endif %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}
    {%- else %}{{ ' ' + message.content.strip() + eos_token }}
    {%- endif %}
{%- endfor %}"""

QWEN = """\
{%- set ns = namespace(last=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.index0 > ns.last %}
        {{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>' + call.function | tojson + '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

DEEPSEEK = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{ '<User>' + message.content }}
    {%- elif message.role == 'assistant' %}
        {{- '<Assistant>' + message.content.split('</think>')[-1] + eos_token }}
    {%- else %}{{ message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<Assistant>' }}{% endif %}"""

MARKED = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


@dataclass(frozen=True)
class Family:
    """A template, the tokenizer that it goes with, and what the model must generate for an answer.

    Attributes:
        template: Jinja text.
        says: answer → what is trained on.
        tokens: options of `make_tokens`.
        alone: whether earlier turns are rewritten, so that each turn becomes an example of its own.
    """

    template: str
    says: Callable[[str], str]
    tokens: dict[str, Any] = field(default_factory=dict)
    alone: bool = False


FAMILIES = {
    "chatml": Family(CHATML, lambda said: f"{said}<|im_end|>"),
    "llama": Family(
        LLAMA,
        lambda said: f"{said.strip()}<|eot_id|>",
        {"eos": "<|eot_id|>", "bos": "<s>", "add_bos": True},
    ),
    "gemma": Family(
        GEMMA,
        lambda said: f"{said.strip()}<end_of_turn>",
        {"eos": "</s>", "bos": "<s>", "add_bos": True, "stop": ("<end_of_turn>",)},
    ),
    "mistral": Family(
        MISTRAL, lambda said: f" {said.strip()}</s>", {"eos": "</s>", "bos": "<s>", "add_bos": True}
    ),
    "qwen": Family(QWEN, lambda said: f"<think>\n\n</think>\n\n{said}<|im_end|>", alone=True),
    "deepseek": Family(
        DEEPSEEK,
        lambda said: f"{said.split('</think>')[-1]}</s>",
        {"eos": "</s>", "bos": "<s>", "add_bos": True},
    ),
    "marked": Family(MARKED, lambda said: f"{said}<|im_end|>"),
}
