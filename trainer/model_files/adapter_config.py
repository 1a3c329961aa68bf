"""The `adapter_config.json` of an adapter that training starts from: does it agree with section `lora`?

No library reads that file: the job attaches an adapter by section `lora`, and takes tensors alone from the earlier
one. So every key is of one of three kinds: it must agree with the section; it must be off, because the section has
nothing of the kind; or it has no effect on what the tensors compute. Any other key is refused: it may stand for a
computation that this version does not know. The modules are compared by the tensors' names, in `adapter_tensors`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

from trainer.data.rows.file_roles import read_json_object
from trainer.errors import DataError, ErrorCode
from trainer.spec import LoraSection

ADAPTER_PREFIX: Final = "adapter/"
CONFIG_FILE: Final = "adapter/adapter_config.json"

_ABSENT: Final = object()

_OFF: Final = frozenset(
    [
        "alora_invocation_tokens",
        "arrow_config",
        "auto_mapping",
        "corda_config",
        "eva_config",
        "kasa_config",
        "layer_replication",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_bias",
        "lora_ga_config",
        "megatron_config",
        "monteclora_config",
        "runtime_config",
        "trainable_token_indices",
        "use_bdlora",
        "use_qalora",
        "velora_config",
    ]
)
"""Keys of PEFT that change what the tensors mean, or need further ones; null, false or empty switches each off."""

_WITHOUT_EFFECT: Final = frozenset(
    [
        "base_model_name_or_path",
        "ensure_weight_tying",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "modules_to_save",
        "peft_version",
        "qalora_group_size",
        "revision",
        "target_modules",
        "target_parameters",
    ]
)
"""Keys of PEFT that name modules, which the tensors' names do too, or that say how training went."""

_FUSED_EXPERTS: Final = r".*\.gate_up_proj"
"""The pattern that PEFT itself writes for experts whose gate and up projections transformers has fused.

Their adapter has twice the rank and twice the alpha: two adapters side by side.
"""


def check_adapter_config(path: Path, lora: LoraSection) -> None:
    """Requires that an adapter's configuration agrees with section `lora`.

    Raises:
        DataError: `DATASET_INVALID`: names the key, and the value that the section has.
    """
    found = read_json_object(CONFIG_FILE, path)
    agreements = list(_agreements(lora, has_pattern=bool(found.get("rank_pattern"))))
    for key, expected, meant in agreements:
        if not any(_is_same(found.get(key, _ABSENT), value) for value in expected):
            raise _disagreement(key, meant, found)
    for key in sorted(found.keys() & _OFF):
        if found[key]:
            raise _disagreement(
                key, "null, false or empty: section lora has nothing of the kind", found
            )
    known = {key for key, _, _ in agreements} | _OFF | _WITHOUT_EFFECT
    if unknown := sorted(found.keys() - known):
        name = unknown[0] if re.fullmatch(r"\w{1,64}", unknown[0]) else None
        raise DataError(
            ErrorCode.DATASET_INVALID,
            "the start adapter has a key that is not known",
            file=CONFIG_FILE,
            field=name,
            expected="keys of a LoRA adapter of the PEFT version that this job has",
            found=f"{len(unknown)} others",
        )


def _agreements(
    lora: LoraSection, *, has_pattern: bool
) -> Iterator[tuple[str, Collection[object], str]]:
    """Yields each key that must agree, the values that do, and how a message says it.

    Args:
        lora: the section.
        has_pattern: whether the adapter has other ranks in some modules; PEFT then scales these by another alpha.
    """
    yield "peft_type", ["LORA"], '"LORA"'
    yield "task_type", ["CAUSAL_LM", None, _ABSENT], '"CAUSAL_LM"'
    yield "bias", ["none", _ABSENT], '"none"'
    yield (
        "init_lora_weights",
        [True, False, "gaussian", "orthogonal", _ABSENT],
        "one that keeps the base weights",
    )
    yield "r", [lora.lora_r], f"{lora.lora_r} (lora.lora_r)"
    yield "lora_alpha", [lora.lora_alpha], f"{lora.lora_alpha} (lora.lora_alpha)"
    for key in ("use_rslora", "use_dora"):
        value = getattr(lora, key)
        yield key, [value] if value else [False, None, _ABSENT], f"{json.dumps(value)} (lora.{key})"
    for key, value in (("rank_pattern", lora.lora_r), ("alpha_pattern", lora.lora_alpha)):
        yield (
            key,
            [{_FUSED_EXPERTS: 2 * value}] if has_pattern else [{}, None, _ABSENT],
            "one value for all modules",
        )


def _is_same(found: object, expected: object) -> bool:
    # In Python true equals 1, and in JSON it does not; 32.0 is the same number as 32 in both.
    return found is expected or (
        found == expected and isinstance(found, bool) == isinstance(expected, bool)
    )


def _disagreement(key: str, expected: str, document: Mapping[str, object]) -> DataError:
    found = document.get(key, _ABSENT)
    return DataError(
        ErrorCode.DATASET_INVALID,
        "the start adapter is another one than section lora describes",
        file=CONFIG_FILE,
        field=key,
        expected=expected,
        found="no such key" if found is _ABSENT else _shown(found),
        hint="section lora must be that of the job that made the adapter; after pissa or olora its lora_r and "
        "lora_alpha are twice as large",
    )


def _shown(value: object) -> str:
    """Returns a number, a word or a literal as JSON; of anything else the type."""
    text = json.dumps(value)
    return (
        text
        if re.fullmatch(r'-?[\d.]{1,24}|"\w{1,32}"|true|false|null', text)
        else type(value).__name__
    )
