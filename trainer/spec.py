"""The job spec (job.yaml): what to train, how, and under which limits. Public, measured, and pinned by digest.

Leaf names are the ones of TRL, PEFT and Hugging Face. The digest of a spec is the SHA-256 of the RFC 8785 form
of the document *as written*, without defaults: anyone can recompute it with any YAML parser.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from trainer.confinement.walls import Wall
from trainer.encoding import canonical_json, sha256_hex
from trainer.errors import ErrorCode, UsageError
from trainer.models import Sha256Hex, Strict

MAX_SPEC_BYTES: Final = 1 << 18
_MAX_TOKENS: Final = 20_000
"""Bounds the time that PyYAML takes, well below a second; a job spec has hundreds."""
_MAX_DEPTH: Final = 64

MODEL_FILE_SUFFIXES: Final = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""What a base model may consist of. Pickles and code have other endings and are refused by name."""


class Engine(StrEnum):
    """What runs the training step."""

    AUTO = "auto"
    TRANSFORMERS = "transformers"
    UNSLOTH = "unsloth"


class OnOverlong(StrEnum):
    """What happens to a row with more than `data.max_length` tokens."""

    ERROR = "error"
    DROP = "drop"
    TRUNCATE = "truncate"


class Dtype(StrEnum):
    """Element type of the frozen base weights in memory."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class ModelSection(Strict):
    """Which base model: a local directory (`./…` or `/…`) or a hub id with a revision; every file by digest.

    `model_file_sha256` maps each file's name, relative to the model's directory, to its SHA-256. Files that
    are not listed are neither fetched nor shown to the worker.
    """

    model_name_or_path: Annotated[str, Field(min_length=1, max_length=512)]
    model_revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    model_file_sha256: Annotated[dict[str, Sha256Hex], Field(min_length=2, max_length=1024)]
    dtype: Dtype = Dtype.BFLOAT16
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    trust_remote_code: Literal[False] = False
    license: Annotated[str, Field(pattern=r"^[\w. +-]{1,128}$")] | None = None
    """The base model's licence, as the adapter's model card is to name it."""

    @property
    def is_local(self) -> bool:
        """Whether the model is a directory rather than a hub id."""
        return self.model_name_or_path.startswith(("./", "../", "/"))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other")
        if self.is_local and self.model_revision is not None:
            raise ValueError("model_revision belongs to a hub id; a local directory is pinned by its digests")
        if not self.is_local:
            self._check_hub_id()
        for name in self.model_file_sha256:
            _check_model_file_name(name)
        names = self.model_file_sha256
        if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
            raise ValueError("model_file_sha256 must list config.json and at least one .safetensors file")
        return self

    def _check_hub_id(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", self.model_name_or_path):
            raise ValueError("model_name_or_path must be ./DIR, /DIR or a hub id such as org/name")
        if self.model_revision is None:
            raise ValueError("a hub id needs model_revision: the 40 hex digits of a commit, not a branch")


def _check_model_file_name(name: str) -> None:
    path = PurePosixPath(name)
    parts_safe = all(re.fullmatch(r"[A-Za-z0-9_][\w.-]*", part) for part in path.parts)
    if path.is_absolute() or str(path) != name or not parts_safe:
        raise ValueError(f"model_file_sha256: {name!r} is not a plain relative file name")
    if path.suffix not in MODEL_FILE_SUFFIXES:
        raise ValueError(
            f"model_file_sha256: {name!r} is not of a kind that can be loaded safely; "
            f"expected one of {', '.join(MODEL_FILE_SUFFIXES)}"
        )


class LoraSection(Strict):
    """The adapter, in PEFT's terms.

    `init_lora_weights` says what A and B start as; `pissa` (or `pissa_niter_16`, quicker) and `olora` start from
    the base model's own weights, and the result is converted to a plain adapter for the unchanged base model.
    """

    lora_r: Annotated[int, Field(ge=1, le=1024)] = 16
    lora_alpha: Annotated[int, Field(ge=1, le=4096)] = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lora_target_modules: (
        Literal["all-linear"]
        | Annotated[tuple[Annotated[str, Field(pattern=r"^[\w.]{1,128}$")], ...], Field(min_length=1)]
    ) = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: (
        Literal[True, "gaussian", "orthogonal", "olora", "pissa"]
        | Annotated[str, Field(pattern=r"^pissa_niter_[1-9][0-9]?$")]
    ) = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.changes_base and self.use_dora:
            raise ValueError(f"init_lora_weights {self.init_lora_weights} and use_dora exclude each other")
        if self.changes_base and self.use_rslora:
            raise ValueError(f"init_lora_weights {self.init_lora_weights} and use_rslora exclude each other")
        if self.init_lora_weights == "orthogonal" and self.lora_r % 2:
            raise ValueError("init_lora_weights orthogonal needs an even lora_r")
        return self

    @property
    def changes_base(self) -> bool:
        """Whether the start takes something out of the base weights, so that the result must be converted."""
        return str(self.init_lora_weights).startswith(("pissa", "olora"))


class RowFormat(StrEnum):
    """Kinds of rows. `auto` tells them by the keys of each row."""

    AUTO = "auto"
    MESSAGES = "messages"
    SHAREGPT = "sharegpt"
    ALPACA = "alpaca"
    PROMPT_COMPLETION = "prompt_completion"
    PREFERENCE = "preference"
    TEXT = "text"


class TrainOn(StrEnum):
    """Which of a conversation's trainable turns are trained on."""

    ALL_TURNS = "all_turns"
    LAST_TURN = "last_turn"


class SplitTurns(StrEnum):
    """Whether a conversation may become an example for each of its turns, where one mask for all is not exact."""

    AUTO = "auto"
    NEVER = "never"


ColumnName = Annotated[str, Field(min_length=1, max_length=256)]


class DataSection(Strict):
    """How files become rows, and rows become token sequences.

    `columns` maps our name of a column to the one that it has in the files, and `ignore_columns` lists what is
    left out; any other column is refused. `eval_files` is a shell's pattern of names relative to `data/`: what
    matches is evaluated on; without such a file `test_split_size`, a share (0 to 1) of the rows, is held out by
    `train.seed`. `assistant_only_loss` and `completion_only_loss` say on which tokens the loss is taken for
    conversations and for prompts with completions; text is trained on whole. `chat_template` is Jinja text that
    takes the place of the base model's own, or of one that it lacks. With `packing` a unit of
    `train.per_device_train_batch_size` is not a row but a bin of up to `max_length` tokens, filled with whole rows
    that do not see one another.
    """

    format: RowFormat = RowFormat.AUTO
    columns: Annotated[dict[ColumnName, ColumnName], Field(max_length=32)] = {}  # noqa: RUF012 -- frozen, and copied
    ignore_columns: Annotated[tuple[ColumnName, ...], Field(max_length=1024)] = ()
    eval_files: Annotated[str, Field(min_length=1, max_length=256)] = "eval/*"
    max_length: Annotated[int, Field(ge=8, le=1 << 20)] = 1024
    on_overlong: OnOverlong = OnOverlong.ERROR
    test_split_size: Annotated[float, Field(ge=0, lt=1)] = 0.1
    assistant_only_loss: bool = True
    completion_only_loss: bool = True
    train_on: TrainOn = TrainOn.ALL_TURNS
    split_turns: SplitTurns = SplitTurns.AUTO
    chat_template: Annotated[str, Field(min_length=1, max_length=1 << 16)] | None = None
    packing: bool = False
    packing_strategy: Literal["bfd"] = "bfd"
    max_rows: Annotated[int, Field(ge=1, le=100_000_000)] = 10_000_000

    @model_validator(mode="after")
    def _known_columns(self) -> Self:
        for name in self.columns:
            if name not in ROW_COLUMNS:
                raise ValueError(
                    f"columns: {name!r} is no column of ours; expected one of {', '.join(ROW_COLUMNS)}"
                )
        if len(set(self.columns.values())) != len(self.columns):
            raise ValueError("columns: two of ours have the same name in the files")
        return self


ROW_COLUMNS: Final = (
    "messages", "tools", "conversations", "system", "instruction", "input", "output", "history",
    "prompt", "completion", "chosen", "rejected", "text",
)  # fmt: skip
"""Names of columns that rows of some kind have."""


_SCHEDULE_KEYS: Final[Mapping[str, frozenset[str]]] = {
    "cosine_with_restarts": frozenset({"num_cycles"}),
    "cosine_with_min_lr": frozenset({"num_cycles", "min_lr", "min_lr_rate"}),
    "polynomial": frozenset({"lr_end", "power"}),
    "inverse_sqrt": frozenset({"timescale"}),
    "warmup_stable_decay": frozenset({"num_decay_steps", "num_stable_steps", "min_lr_ratio", "num_cycles"}),
}
"""What `lr_scheduler_kwargs` may hold for each schedule that takes any."""

_COUNTS: Final = frozenset({"timescale", "num_decay_steps", "num_stable_steps"})
_ADAM: Final = ("adamw_torch", "adamw_torch_fused", "adamw_8bit")


class TrainSection(Strict):
    """The optimizer's schedule, in HF `TrainingArguments` terms. `max_steps` above 0 overrides the epochs.

    `per_device_train_batch_size` times `gradient_accumulation_steps` rows make an optimizer step. What goes
    through the model at once may be cut differently: every trained token of a step weighs the same for every cut.
    `warmup_steps` above 0 overrides `warmup_ratio`.
    """

    engine: Engine = Engine.AUTO
    per_device_train_batch_size: Annotated[int, Field(ge=1, le=4096)] = 4
    per_device_eval_batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=4096)] = 1
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "constant",
        "constant_with_warmup",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = "linear"
    lr_scheduler_kwargs: Annotated[dict[str, Annotated[float, Field(ge=0)]], Field(max_length=8)] = {}  # noqa: RUF012
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    num_train_epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0
    max_steps: Annotated[int, Field(ge=-1, le=100_000_000)] = -1
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    neftune_noise_alpha: Annotated[float, Field(gt=0, le=1000)] | None = None
    gradient_checkpointing: bool = False
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "adafactor", "sgd"] = "adamw_torch"
    bf16: bool = True
    logging_steps: Annotated[int, Field(ge=1)] = 1
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    early_stopping_threshold: Annotated[float, Field(ge=0)] = 0.0
    load_best_model_at_end: bool = False
    save_steps: None = None

    @property
    def may_compile(self) -> bool:
        """Whether kernels may be compiled at run time, so that the worker must be able to run a compiler."""
        return self.engine is not Engine.TRANSFORMERS

    @model_validator(mode="after")
    def _some_steps(self) -> Self:
        if self.max_steps == 0:
            raise ValueError("max_steps must be -1 (use num_train_epochs) or at least 1")
        return self

    @model_validator(mode="after")
    def _evaluated(self) -> Self:
        for name in ("early_stopping_patience", "load_best_model_at_end"):
            if getattr(self, name) and self.eval_steps is None:
                raise ValueError(f"{name} needs eval_steps")
        return self

    @model_validator(mode="after")
    def _adam_only(self) -> Self:
        adam = {"adam_beta1", "adam_beta2", "adam_epsilon"} & self.model_fields_set
        if adam and self.optim not in _ADAM:
            raise ValueError(f"{min(adam)} means nothing to optim {self.optim}")
        return self

    @model_validator(mode="after")
    def _schedule(self) -> Self:
        name, given = self.lr_scheduler_type, self.lr_scheduler_kwargs
        unknown = sorted(set(given) - _SCHEDULE_KEYS.get(name, frozenset()))
        if unknown:
            raise ValueError(f"lr_scheduler_kwargs: {unknown[0]!r} means nothing to lr_scheduler_type {name}")
        broken = sorted(key for key in _COUNTS & set(given) if given[key] != int(given[key]))
        if broken:
            raise ValueError(f"lr_scheduler_kwargs: {broken[0]} must be a whole number")
        if name == "cosine_with_min_lr" and ("min_lr" in given) == ("min_lr_rate" in given):
            raise ValueError("cosine_with_min_lr needs lr_scheduler_kwargs: min_lr or min_lr_rate")
        if name == "warmup_stable_decay" and "num_decay_steps" not in given:
            raise ValueError("warmup_stable_decay needs lr_scheduler_kwargs: num_decay_steps")
        if name == "polynomial" and given.get("lr_end", 1e-7) >= self.learning_rate:
            raise ValueError("lr_scheduler_kwargs: lr_end must be below learning_rate")
        return self


class OutputSection(Strict):
    """What the sealed result holds beside the adapter and the receipt.

    `samples` held-out prompts are answered before and after training, with at most `sample_max_new_tokens` tokens.
    `merged_16bit` adds the whole model, base and adapter in one, in bfloat16.
    """

    include_logs: bool = True
    merged_16bit: bool = False
    samples: Annotated[int, Field(ge=0, le=64)] = 3
    sample_max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 32


class PrivacySection(Strict):
    """Privacy of the weights themselves. No mechanism is offered yet, so every key is refused."""


class ExchangeSection(Strict):
    """Limits of the untrusted carrier. Times in seconds, sizes in bytes."""

    host: Annotated[str, Field(pattern=r"^[0-9A-Za-z.:-]{1,253}$")] = "0.0.0.0"  # noqa: S104 -- inside a VM
    port: Annotated[int, Field(ge=0, le=65535)] = 8443
    max_upload_bytes: Annotated[int, Field(ge=1 << 10, le=1 << 44)] = 1 << 34
    dataset_timeout_seconds: Annotated[int, Field(ge=1, le=30 * 86400)] = 86400
    linger_seconds: Annotated[int, Field(ge=0, le=30 * 86400)] = 3600


class TeeSection(Strict):
    """What the job claims about itself.

    `evidence_lifetime_seconds` bounds the validity of its claims. `sandbox` names walls that must stand, or the
    job ends before it has keys.
    """

    evidence_lifetime_seconds: Annotated[int, Field(ge=60, le=30 * 86400)] = 86400
    sandbox: Annotated[tuple[Annotated[Wall, Field(strict=False)], ...], Field(max_length=64)] = ()


class JobSpec(Strict):
    """One job, whole."""

    version: Literal[1]
    model: ModelSection
    lora: LoraSection = LoraSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    output: OutputSection = OutputSection()
    privacy: PrivacySection = PrivacySection()
    exchange: ExchangeSection = ExchangeSection()
    tee: TeeSection = TeeSection()

    def canonical(self) -> bytes:
        """RFC 8785 form of the document as written."""
        return canonical_json(self.model_dump(mode="json", exclude_unset=True))

    def sha256(self) -> str:
        """The job spec's digest: what claims, keys, grants and receipts are bound to."""
        return sha256_hex(self.canonical())


def read_job_spec(path: Path) -> JobSpec:
    """Read job.yaml.

    Raises:
        UsageError: no such file, or not a job spec.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise UsageError(ErrorCode.FILE_NOT_FOUND, f"cannot read the job spec {path}: {error.strerror}") from error
    return parse_job_spec(data)


def parse_job_spec(data: bytes) -> JobSpec:
    """Parse the bytes of a job.yaml.

    Raises:
        UsageError: too large, not YAML, a key twice, an unknown key (names the key meant), a value out of range.
    """
    document = parse_yaml(data, what="job spec", limit=MAX_SPEC_BYTES, code=ErrorCode.SPEC_INVALID)
    try:
        return JobSpec.model_validate_json(canonical_json(document))
    except ValidationError as error:
        raise _spec_error(error) from error


def parse_yaml(data: bytes, *, what: str, limit: int, code: ErrorCode) -> object:
    """Parse a YAML document without aliases, tags or duplicate keys; numbers such as `2e-4` are numbers.

    Raises:
        UsageError: with `code`, or `spec-too-large` above `limit` bytes.
    """
    if len(data) > limit:
        raise UsageError(
            ErrorCode.SPEC_TOO_LARGE,
            f"the {what} is too large",
            expected=f"at most {limit} bytes",
            found="more",
        )
    try:
        return yaml.load(data, Loader=_StrictLoader)  # noqa: S506 -- a SafeLoader with fewer features
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(code, f"the {what} is not acceptable YAML: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader without duplicate keys, anchors, aliases or timestamps, YAML 1.2 numbers; bounded."""

    tokens_seen = 0

    def fetch_more_tokens(self) -> None:
        # The scanner looks at every open bracket for each token: depth and number together bound the time.
        self.tokens_seen += 1
        if self.tokens_seen > _MAX_TOKENS or self.flow_level > _MAX_DEPTH or len(self.indents) > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="too large or too deep", problem_mark=self.get_mark())
        super().fetch_more_tokens()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.constructor.ConstructorError(
                None, None, "anchors and aliases are not accepted", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "keys must be text", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return dict(super().construct_mapping(node, deep=deep))


# YAML 1.1 reads `yes` as true, `1:30` as 90, `010` as 8 and `2e-4` as text; the core schema of YAML 1.2 does not.
_StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+0123456789."),
):
    _first_characters = [character.replace("\0", "") for character in _first]
    _StrictLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first_characters
    )


_MEANT: Final[Mapping[str, str]] = {
    "base_model": "model.model_name_or_path",
    "model_name": "model.model_name_or_path",
    "revision": "model.model_revision",
    "torch_dtype": "model.dtype",
    "quantization_bit": "model.load_in_4bit",
    "r": "lora.lora_r",
    "lora_rank": "lora.lora_r",
    "alpha": "lora.lora_alpha",
    "target_modules": "lora.lora_target_modules",
    "lora_target": "lora.lora_target_modules",
    "lora_target_linear": "lora.lora_target_modules",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "sample_packing": "data.packing",
    "type": "data.format",
    "formatting": "data.format",
    "dataset_format": "data.format",
    "dataset_text_field": "data.columns",
    "column_mapping": "data.columns",
    "field_messages": "data.columns",
    "field_instruction": "data.columns",
    "field_output": "data.columns",
    "remove_unused_columns": "data.ignore_columns",
    "remove_columns": "data.ignore_columns",
    "eval_dataset": "data.eval_files",
    "test_datasets": "data.eval_files",
    "validation_file": "data.eval_files",
    "mask_history": "data.train_on",
    "chat_template_path": "data.chat_template",
    "chat_template_jinja": "data.chat_template",
    "template": "data.chat_template",
    "roles_to_train": "data.assistant_only_loss",
    "drop_exceeding_length": "data.on_overlong",
    "truncation_mode": "data.on_overlong",
    "excess_length_strategy": "data.on_overlong",
    "val_set_size": "data.test_split_size",
    "val_size": "data.test_split_size",
    "train_on_inputs": "data.completion_only_loss",
    "train_on_prompt": "data.completion_only_loss",
    "completion_only": "data.completion_only_loss",
    "train_on_responses_only": "data.assistant_only_loss",
    "batch_size": "train.per_device_train_batch_size",
    "micro_batch_size": "train.per_device_train_batch_size",
    "eval_batch_size": "train.per_device_eval_batch_size",
    "grad_accum": "train.gradient_accumulation_steps",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.lr_scheduler_type",
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "steps": "train.max_steps",
    "random_state": "train.seed",
    "optimizer": "train.optim",
    "noisy_embedding_alpha": "train.neftune_noise_alpha",
    "init_weights": "lora.init_lora_weights",
    "gradient_clipping": "train.max_grad_norm",
}
"""What other fine-tuning tools call a key → what it is called here."""


def leaf_names() -> Iterator[str]:
    """Every `section.key` that a job spec may hold."""
    for section, field in JobSpec.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Strict):
            yield from (f"{section}.{leaf}" for leaf in annotation.model_fields)


def meant_key(unknown: str, known: Iterable[str]) -> str | None:
    """The known `section.key` that the author of `unknown` most likely meant, or None.

    Args:
        unknown: the key as found, with its section if it stood in one.
        known: all acceptable `section.key` names.
    """
    leaf = unknown.rpartition(".")[2]
    if leaf in _MEANT:
        return _MEANT[leaf]
    by_leaf = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.6)
    return by_leaf[close[0]] if close else None


def _spec_error(error: ValidationError) -> UsageError:
    first = error.errors(include_url=False, include_context=False, include_input=True)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        meant = meant_key(where, [*leaf_names(), *JobSpec.model_fields])
        return UsageError(
            ErrorCode.SPEC_UNKNOWN_KEY,
            f"job spec: unknown key {where!r}",
            hint=f"did you mean {meant}?" if meant else "see trainer/SPEC.md for all keys",
        )
    if first["type"] == "missing":
        return UsageError(ErrorCode.SPEC_INVALID, f"job spec: {where} is missing")
    if first["type"] == "value_error":
        return UsageError(
            ErrorCode.SPEC_INVALID, f"job spec: {where}: {first['msg'].removeprefix('Value error, ')}"
        )
    return UsageError(
        ErrorCode.SPEC_INVALID,
        f"job spec: {where}",
        expected=first["msg"].removeprefix("Input should be "),
        found=repr(first["input"]),
    )
