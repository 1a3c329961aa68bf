"""When each key of a job spec means something.

A key that is set and means nothing is refused: its author would believe that it has an effect, and that of a limit
without its measurement is protection. A value that switches off what is off by default, such as `false` or 0, is
accepted anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trainer.spec.data_section import RowFormat
from trainer.spec.train_section import ADAM_OPTIMIZERS, Engine
from trainer.spec.training_methods import METHOD_RULES

if TYPE_CHECKING:
    from trainer.spec.job_spec import JobSpec


@dataclass(frozen=True)
class Meaning:
    """A condition under which a key means something.

    Attributes:
        when: whether the condition holds in a job spec.
        otherwise: what it means nothing to or without, as a format string over `spec`.
    """

    when: Callable[[JobSpec], bool]
    otherwise: str


def is_evaluated(spec: JobSpec) -> bool:
    """Returns whether rows are held out: a fraction of all, or those of files that the job spec names."""
    return spec.data.test_split_size > 0 or "eval_files" in spec.data.model_fields_set


def meaningless_keys(spec: JobSpec) -> Iterator[str]:
    """Yields a message for each key that is set and means nothing."""
    for section in type(spec).model_fields:
        values = getattr(spec, section)
        for leaf in sorted(getattr(values, "model_fields_set", ())):
            key, value = f"{section}.{leaf}", getattr(values, leaf)
            is_off = not value and value == type(values).model_fields[leaf].default
            broken = next((meaning for meaning in MEANINGS[key] if not meaning.when(spec)), None)
            if broken is not None and not is_off:
                yield f"{key} means nothing {broken.otherwise.format(spec=spec)}"


_HELD_OUT: Final = "without held-out rows: set data.test_split_size above 0, or data.eval_files"
_CHATS: Final = frozenset(
    {RowFormat.AUTO, RowFormat.MESSAGES, RowFormat.SHAREGPT, RowFormat.ALPACA}
)
_PROMPTS: Final = frozenset({RowFormat.AUTO, RowFormat.PROMPT_COMPLETION})


def _has_answers(spec: JobSpec) -> bool:
    """Returns whether some of a row's tokens are trained on and others not, as the job spec decides."""
    data = spec.data
    masked = (data.format in _CHATS and data.assistant_only_loss) or (
        data.format in _PROMPTS and data.completion_only_loss
    )
    return masked and not METHOD_RULES[spec.train.method].judges_answers


def _learns_from_rows(spec: JobSpec) -> bool:
    return not METHOD_RULES[spec.train.method].judges_answers


def _for_methods(key: str) -> Meaning:
    """Returns the meaning of a key of section `train` that belongs to some methods."""
    owners = [name for name, rules in METHOD_RULES.items() if key in rules.keys]
    return Meaning(
        lambda spec: spec.train.method in owners,
        f"to method {{spec.train.method}}; it belongs to method {' and '.join(owners)}",
    )


_ANSWERS: Final = Meaning(_has_answers, "where every token is trained on, or answers are judged")
_RENDERED: Final = Meaning(
    lambda spec: spec.data.format is not RowFormat.TEXT,
    "to data.format text, which has no messages",
)
_EVALUATION: Final = Meaning(is_evaluated, _HELD_OUT)
_PROMPTED: Final = Meaning(
    lambda spec: spec.data.format is not RowFormat.TEXT,
    "to data.format text, which has no prompts and no answers",
)
_TASK: Final = Meaning(lambda spec: bool(spec.evaluation.metrics), "without evaluation.metrics")
_EVALUATION_STEPS: Final = Meaning(
    lambda spec: spec.train.eval_steps is not None, "without train.eval_steps"
)
_ADAM: Final = Meaning(
    lambda spec: spec.train.optim in ADAM_OPTIMIZERS, "to optim {spec.train.optim}"
)
_WARMUP: Final = Meaning(
    lambda spec: spec.train.lr_scheduler_type != "constant",
    "to lr_scheduler_type constant: constant_with_warmup has a warm-up",
)
_CANARIES: Final = Meaning(lambda spec: spec.privacy.canaries > 0, "without privacy.canaries")
_AUDIT: Final = Meaning(lambda spec: spec.privacy.audit, "without privacy.audit: true")
_DP: Final = Meaning(
    lambda spec: spec.privacy.differential, "without target_epsilon or noise_multiplier"
)

_HTTP: Final = Meaning(
    lambda spec: spec.exchange.store is None, "beside exchange.store: there is no HTTP then"
)

_MEANS_ALWAYS: Final = (
    "model.model_name_or_path model.model_file_sha256 model.dtype model.load_in_4bit model.load_in_8bit "
    "model.trust_remote_code model.license "
    "lora.lora_r lora.lora_alpha lora.lora_dropout lora.lora_target_modules lora.use_rslora lora.use_dora "
    "lora.exclude_modules lora.modules_to_save lora.start_from "
    "data.format data.columns data.ignore_columns data.eval_files data.max_length data.on_overlong data.max_rows "
    "data.mix train.loraplus_lr_ratio "
    "train.method train.engine train.num_processes train.fsdp train.per_device_train_batch_size "
    "train.gradient_accumulation_steps train.learning_rate train.lr_scheduler_type train.lr_scheduler_kwargs "
    "train.weight_decay train.max_steps train.max_grad_norm train.seed train.gradient_checkpointing "
    "train.torch_compile train.optim train.bf16 train.logging_steps train.save_steps "
    "output.include_logs output.merged_16bit "
    "privacy.target_epsilon privacy.target_delta privacy.noise_multiplier privacy.canaries "
    "exchange.store exchange.max_upload_bytes exchange.dataset_timeout_seconds "
    "exchange.dataset_tries exchange.linger_seconds exchange.joint exchange.providers "
    "tee.evidence_lifetime_seconds tee.sandbox"
)

MEANINGS: Final[Mapping[str, tuple[Meaning, ...]]] = {
    **dict.fromkeys(_MEANS_ALWAYS.split(), ()),
    **{
        f"train.{key}": (_for_methods(key),)
        for rules in METHOD_RULES.values()
        for key in rules.keys
    },
    "model.model_revision": (
        Meaning(
            lambda spec: not spec.model.is_local,
            "to a local directory, which is pinned by its digests",
        ),
    ),
    "model.model_urls": (
        Meaning(
            lambda spec: not spec.model.is_local, "to a local directory, whose files are copied"
        ),
    ),
    "model.attn_implementation": (
        Meaning(
            lambda spec: spec.train.engine is not Engine.UNSLOTH,
            "to engine unsloth, which brings its own attention",
        ),
    ),
    "lora.init_lora_weights": (
        Meaning(
            lambda spec: spec.lora.start_from is None,
            "beside lora.start_from, which gives the initial weights",
        ),
    ),
    "data.test_split_size": (
        Meaning(
            lambda spec: (
                "eval_files" not in spec.data.model_fields_set or not spec.data.test_split_size
            ),
            "with data.eval_files: the files decide",
        ),
    ),
    "data.assistant_only_loss": (
        Meaning(
            lambda spec: spec.data.format in _CHATS and _learns_from_rows(spec),
            "to data.format {spec.data.format} and train.method {spec.train.method}",
        ),
    ),
    "data.completion_only_loss": (
        Meaning(
            lambda spec: spec.data.format in _PROMPTS and _learns_from_rows(spec),
            "to data.format {spec.data.format} and train.method {spec.train.method}",
        ),
    ),
    "data.train_on": (_ANSWERS,),
    "data.split_turns": (
        Meaning(
            # A private run must rule out several examples of one row, whatever its rows are.
            lambda spec: _has_answers(spec) or spec.privacy.differential,
            _ANSWERS.otherwise,
        ),
    ),
    "data.ignore_message_keys": (_RENDERED,),
    "data.chat_template": (_RENDERED,),
    "data.allow_unrendered": (_RENDERED,),
    "data.chat_template_path": (_RENDERED,),
    "data.chat_template_kwargs": (_RENDERED,),
    "data.packing": (
        Meaning(
            _learns_from_rows,
            "to train.method {spec.train.method}: answers that are judged are not packed",
        ),
    ),
    "data.packing_strategy": (
        Meaning(lambda spec: spec.data.packing, "without data.packing: true"),
    ),
    "train.per_device_eval_batch_size": (_EVALUATION,),
    "train.warmup_steps": (_WARMUP,),
    "train.warmup_ratio": (
        _WARMUP,
        Meaning(
            lambda spec: not spec.train.warmup_steps,
            "beside train.warmup_steps, which has precedence",
        ),
    ),
    "train.adam_beta1": (_ADAM,),
    "train.adam_beta2": (_ADAM,),
    "train.adam_epsilon": (_ADAM,),
    "train.num_train_epochs": (
        Meaning(
            lambda spec: spec.train.max_steps < 0, "beside train.max_steps, which has precedence"
        ),
    ),
    "train.neftune_noise_alpha": (Meaning(_learns_from_rows, "to method {spec.train.method}"),),
    "train.torch_compile_mode": (
        Meaning(lambda spec: spec.train.torch_compile, "without torch_compile: true"),
    ),
    "train.eval_steps": (_EVALUATION,),
    "train.max_eval_rows": (_EVALUATION,),
    "train.early_stopping_patience": (_EVALUATION_STEPS, _EVALUATION),
    "train.early_stopping_threshold": (
        Meaning(
            lambda spec: spec.train.early_stopping_patience is not None,
            "without train.early_stopping_patience",
        ),
    ),
    "train.load_best_model_at_end": (_EVALUATION_STEPS, _EVALUATION),
    "evaluation.metrics": (_EVALUATION, _PROMPTED),
    "evaluation.max_rows": (_TASK,),
    "evaluation.max_new_tokens": (
        Meaning(
            lambda spec: spec.evaluation.generates,
            "without exact_match or token_f1 in evaluation.metrics",
        ),
    ),
    "train.save_total_limit": (
        Meaning(lambda spec: spec.train.save_steps is not None, "without train.save_steps"),
    ),
    "output.samples": (
        Meaning(lambda spec: is_evaluated(spec) or not spec.output.samples, _HELD_OUT),
    ),
    "output.sample_max_new_tokens": (
        Meaning(lambda spec: spec.output.samples > 0, "without output.samples"),
        _EVALUATION,
    ),
    "exchange.host": (_HTTP,),
    "exchange.port": (_HTTP,),
    "privacy.max_grad_norm": (_DP,),
    "privacy.accountant": (_DP,),
    "privacy.audit": (_EVALUATION,),
    "privacy.audit_rows": (_AUDIT,),
    "privacy.max_membership_auc": (_AUDIT,),
    "privacy.canary_repetitions": (_CANARIES,),
    "privacy.max_exposure": (_CANARIES,),
}
"""Key → the conditions under which it means something, all of which must hold; for every key of a job spec."""
