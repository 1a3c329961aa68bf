"""job.yaml: what is refused, what is named, and what the digest covers."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
import rfc8785
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.growth import grows_linearly
from trainer import strict_yaml
from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, UsageError
from trainer.spec import MAX_SPEC_BYTES, JobSpec, parse_job_spec, read_job_spec
from trainer.strict_yaml import TokenBudget

MINIMAL = f"""\
version: 1
model:
  model_name_or_path: ./model
  model_file_sha256:
    config.json: "{"a" * 64}"
    model.safetensors: "{"b" * 64}"
"""


def refused(text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse_job_spec(text.encode())
    return caught.value


def test_minimal_spec_has_the_documented_defaults() -> None:
    spec = parse_job_spec(MINIMAL.encode())
    assert spec.lora.lora_r == 16
    assert spec.train.learning_rate == 2e-4
    assert spec.model.trust_remote_code is False


def test_digest_is_that_of_the_document_as_anyone_else_reads_it() -> None:
    text = (
        MINIMAL
        + "train: {learning_rate: 0.0001, max_steps: 20, bf16: false}\nlora: {lora_target_modules: [q_proj]}\n"
    )
    assert parse_job_spec(text.encode()).sha256() == sha256_hex(rfc8785.dumps(yaml.safe_load(text)))


def test_digest_ignores_order_comments_and_spelling_of_numbers() -> None:
    one = MINIMAL + "train: {learning_rate: 2e-4, max_steps: 20}\n"
    other = "# a comment\ntrain:\n  max_steps: 20\n  learning_rate: 0.00020\n" + MINIMAL
    assert parse_job_spec(one.encode()).sha256() == parse_job_spec(other.encode()).sha256()


@given(st.sampled_from(["lora_r", "lora_alpha"]), st.integers(1, 1024), st.integers(1, 1024))
def test_digest_changes_with_every_value(key: str, one: int, other: int) -> None:
    digests = {
        parse_job_spec(f"{MINIMAL}lora: {{{key}: {value}}}\n".encode()).sha256()
        for value in (one, other)
    }
    assert len(digests) == (1 if one == other else 2)


def test_canonical_form_parses_to_the_same_spec() -> None:
    spec = parse_job_spec((MINIMAL + "train: {learning_rate: 1, num_train_epochs: 2}\n").encode())
    again = JobSpec.model_validate_json(spec.canonical())
    assert again == spec
    assert again.sha256() == spec.sha256()


def test_arguments_of_the_template_keep_their_types() -> None:
    text = "data: {chat_template_kwargs: {quick: true, effort: low, budget: 1, skills: [a], names: [a, b]}}"
    given = parse_job_spec((MINIMAL + text + "\n").encode()).data.chat_template_kwargs
    assert given == {
        "quick": True,
        "effort": "low",
        "budget": 1,
        "skills": ("a",),
        "names": ("a", "b"),
    }
    assert [type(value) for value in given.values()] == [bool, str, int, tuple, tuple]


def test_terms_of_the_loss_of_a_pair() -> None:
    def terms(train: str) -> object:
        return parse_job_spec(f"{MINIMAL}train: {{method: dpo{train}}}\n".encode()).train.loss_terms

    assert terms("") == (("sigmoid", 1.0),)
    assert terms(", loss_type: ipo, loss_weights: [2]") == (("ipo", 2.0),)
    assert terms(", loss_type: [hinge, sft], loss_weights: [1, 0.5]") == (
        ("hinge", 1.0),
        ("sft", 0.5),
    )
    assert terms(", loss_type: [apo_zero, sft]") == (("apo_zero", 1.0), ("sft", 1.0))


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("train: {seed: x}", "train.seed"),
        ("train: {max_steps: 0}", "max_steps must be -1"),
        ("train: {learning_rate: true}", "train.learning_rate"),
        ("data: {packing: bfd}", "data.packing"),
        ("data: {packing_strategy: wrapped}", "data.packing_strategy"),
        ("train: {lr_scheduler_type: cosine, lr_scheduler_kwargs: {min_lr: 0.1}}", "min_lr"),
        ("train: {lr_scheduler_type: cosine_with_min_lr}", "min_lr or min_lr_rate"),
        ("train: {lr_scheduler_type: warmup_stable_decay}", "num_decay_steps"),
        (
            "train: {lr_scheduler_type: inverse_sqrt, lr_scheduler_kwargs: {timescale: 1.5}}",
            "whole number",
        ),
        ("train: {lr_scheduler_type: polynomial, lr_scheduler_kwargs: {lr_end: 0.5}}", "lr_end"),
        ("train: {optim: sgd, adam_beta1: 0.8}", "adam_beta1 means nothing to optim sgd"),
        ("train: {optim: paged_adamw_8bit}", "train.optim"),
        ("lora: {init_lora_weights: eva}", "lora.init_lora_weights"),
        ("lora: {init_lora_weights: pissa, use_dora: true}", "exclude each other"),
        ("lora: {init_lora_weights: olora, use_rslora: true}", "exclude each other"),
        ("lora: {init_lora_weights: orthogonal, lora_r: 3}", "even lora_r"),
        ("train: {beta: 0.2}", "beta means nothing to method sft; it belongs to method dpo"),
        ("train: {loss_type: ipo}", "loss_type means nothing to method sft"),
        ("train: {method: ppo}", "train.method"),
        ("data: {mix: {a.jsonl: 0}}", "data.mix.a.jsonl"),
        ("data: {mix: {a b: 1}}", "data.mix"),
        ("data: {mix: {a: 2}}\nprivacy: {audit: true}", "data.mix must be left out"),
        ("train: {loraplus_lr_ratio: 1}", "train.loraplus_lr_ratio"),
        (
            "train: {desirable_weight: 2}",
            "desirable_weight means nothing to method sft; it belongs to method kto",
        ),
        ("train: {method: kto, loss_type: ipo}", "loss_type means nothing to method kto"),
        (
            "train: {method: kto, neftune_noise_alpha: 5}",
            "neftune_noise_alpha means nothing to method kto",
        ),
        (
            "train: {method: kto}\ndata: {packing: true}",
            "data.packing means nothing to train.method kto",
        ),
        (
            "train: {method: kto}\ndata: {format: preference}",
            "data.format preference cannot be trained on",
        ),
        ("data: {format: unpaired_preference}", "cannot be trained on with train.method sft"),
        ("train: {method: kto}\nprivacy: {audit: true}", "each depends on all rows of its step"),
        (
            "train: {method: orpo, loss_type: ipo}",
            "loss_type means nothing to method orpo; it belongs to method dpo",
        ),
        (
            "train: {method: orpo, label_smoothing: 0.1}",
            "label_smoothing means nothing to method orpo",
        ),
        (
            "train: {method: orpo, neftune_noise_alpha: 5}",
            "neftune_noise_alpha means nothing to method orpo",
        ),
        (
            "train: {method: orpo}\ndata: {packing: true}",
            "data.packing means nothing to train.method orpo",
        ),
        ("train: {method: orpo}\ndata: {format: text}", "data.format text cannot be trained on"),
        (
            "train: {method: orpo}\nprivacy: {audit: true}",
            "pairs of train.method orpo have none of their own",
        ),
        ("train: {method: dpo, loss_type: bco_pair}", "train.loss_type"),
        ("train: {method: dpo, loss_type: [ipo, ipo]}", "names a term twice"),
        ("train: {method: dpo, loss_type: sft}", "sft alone learns no preference"),
        (
            "train: {method: dpo, loss_type: [sigmoid, sft], loss_weights: [1]}",
            "loss_weights needs 2 numbers",
        ),
        ("train: {method: dpo, loss_weights: [0]}", "train.loss_weights"),
        ("train: {method: dpo, label_smoothing: 0.1}", "belong together"),
        ("train: {method: dpo, loss_type: robust}", "belong together"),
        ("train: {method: dpo, loss_type: robust, label_smoothing: 0.5}", "train.label_smoothing"),
        ("train: {method: dpo, beta: 0}", "train.beta"),
        (
            "train: {method: dpo, neftune_noise_alpha: 5}",
            "neftune_noise_alpha means nothing to method dpo",
        ),
        (
            "train: {method: dpo}\ndata: {packing: true}",
            "data.packing means nothing to train.method dpo",
        ),
        (
            "train: {method: dpo}\ndata: {completion_only_loss: false}",
            "data.completion_only_loss means nothing",
        ),
        ("train: {method: dpo}\ndata: {train_on: last_turn}", "data.train_on means nothing"),
        ("train: {method: dpo}\ndata: {format: text}", "data.format text cannot be trained on"),
        (
            "data: {format: preference}",
            "data.format preference cannot be trained on with train.method sft",
        ),
        (
            "train: {early_stopping_patience: 2}",
            "train.early_stopping_patience means nothing without train.eval_steps",
        ),
        (
            "train: {torch_compile_mode: default}",
            "torch_compile_mode means nothing without torch_compile: true",
        ),
        ("train: {torch_compile: true, torch_compile_mode: max}", "train.torch_compile_mode"),
        (
            "train: {engine: unsloth}\nlora: {modules_to_save: [lm_head]}",
            "linear modules of layers only: set",
        ),
        ("train: {torch_compile: true, engine: unsloth}", "torch_compile: engine unsloth compiles"),
        (
            "train: {torch_compile: true}\nlora: {use_dora: true}",
            "torch_compile: lora.use_dora must be false",
        ),
        (
            "train: {torch_compile: true, num_processes: 2, fsdp: full_shard}",
            "torch_compile: fsdp gathers",
        ),
        (
            "train: {load_best_model_at_end: true}",
            "train.load_best_model_at_end means nothing without train.eval_steps",
        ),
        ("data: {chat_template: '{{ a }}', chat_template_path: b.jinja}", "exclude each other"),
        (
            "data: {chat_template_path: mine.jinja}",
            "data.chat_template_path: expected the name of a file in model",
        ),
        (
            "data: {chat_template_kwargs: {messages: x}}",
            "'messages' is set by what renders the template",
        ),
        (
            "data: {chat_template_kwargs: {bos_token: x}}",
            "'bos_token' is set by what renders the template",
        ),
        ("data: {chat_template_kwargs: {'no name': x}}", "data.chat_template_kwargs"),
        ("data: {chat_template_kwargs: {effort: 0.5}}", "data.chat_template_kwargs.effort"),
        ("data: {chat_template_kwargs: {effort: {a: 1}}}", "data.chat_template_kwargs.effort"),
        ("data: {ignore_message_keys: [content]}", "no message can be read without 'content'"),
        ("model2: {}", "model2"),
        ("privacy: {target_epsilon: 3.0}", "target_delta goes with target_epsilon"),
        (
            "privacy: {audit: true}\nlora: {start_from: adapter}",
            "privacy: lora.start_from must be left out",
        ),
        (
            "privacy: {canaries: 2}\nlora: {start_from: adapter}",
            "neither measured nor accounted for",
        ),
        (
            "privacy: {target_epsilon: 3.0, target_delta: 1e-5}\nlora: {start_from: adapter}",
            "neither measured",
        ),
        ("lora: {start_from: ./adapter}", "lora.start_from"),
        ("lora: {start_from: true}", "lora.start_from"),
        (
            "privacy: {audit: true}\ntrain: {method: dpo}",
            "privacy: rows are told apart by their loss",
        ),
        ("privacy: {canaries: 4}\ntrain: {num_processes: 2}", "train.num_processes must be 1"),
        ("lora: {lora_r: 1, lora_r: 2}", "the key 'lora_r' occurs twice"),
        ("lora: &a {}", "anchors"),
        ("lora: !!python/object:os.system {}", "acceptable YAML"),
        ("1: 2", "keys must be text"),
        ("lora: {<<: {lora_r: 1}}", "merge keys are not accepted"),
        ("lora: {lora_r: !!int 0x10}", "tags are not accepted"),
        ("lora: {lora_r: !!int }", "tags are not accepted"),
        ('lora: {lora_r: !!int ""}', "tags are not accepted"),
        ("lora: {lora_dropout: !!float }", "tags are not accepted"),
        ('lora: {lora_dropout: !!float ""}', "tags are not accepted"),
        (f"lora: {{lora_r: {'9' * 5000}}}", "a number that is too long"),
        ("lora: [", "acceptable YAML"),
        ('lora: "\\UFFFFFFFF"', "acceptable YAML"),
    ],
)
def test_bad_documents_are_refused_by_name(addition: str, expected: str) -> None:
    assert expected in str(refused(MINIMAL + addition + "\n"))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("./model\n", "org/name\n", "needs model_revision"),
        ("./model\n", "org/name\n  model_revision: main\n", "model.model_revision"),
        (
            "./model\n",
            "./model\n  model_revision: " + "a" * 40 + "\n",
            "model.model_revision means nothing to a local directory",
        ),
        ("./model\n", "https://example.org/x\n", "hub id"),
        ("./model\n", "./model\n  trust_remote_code: true\n", "trust_remote_code"),
        (
            "./model\n",
            "./model\n  load_in_4bit: true\n  load_in_8bit: true\n",
            "exclude each other",
        ),
        ("config.json:", "../config.json:", "plain relative file name"),
        ("config.json:", "modeling.py:", "loaded safely"),
        ("config.json:", "pytorch_model.bin:", "loaded safely"),
        ("model.safetensors:", "tokenizer.json:", "at least one .safetensors"),
        ("a" * 64, "A" * 64, "model_file_sha256"),
        ("version: 1", "version: 2", "version"),
    ],
)
def test_unsafe_or_unpinned_models_are_refused(old: str, new: str, expected: str) -> None:
    assert expected in str(refused(MINIMAL.replace(old, new, 1)))


@pytest.mark.parametrize(
    "name", ["llama3", "chatml", "./template.jinja", "https://example.org/template"]
)
def test_a_name_in_place_of_a_chat_template_is_refused(name: str) -> None:
    error = refused(f"{MINIMAL}data: {{chat_template: {name}}}\n")
    assert error.code is ErrorCode.SPEC_INVALID
    assert "data.chat_template: expected Jinja text" in str(error)
    assert repr(name) in str(error)
    assert parse_job_spec(f"{MINIMAL}data: {{chat_template: '{{{{ messages }}}}'}}\n".encode())


@pytest.mark.parametrize("parts", ["[thoughts]", "tools", "[tools, tools]"])
def test_parts_that_may_be_left_out_are_a_closed_list(parts: str) -> None:
    assert "data.allow_unrendered" in str(
        refused(f"{MINIMAL}data: {{allow_unrendered: {parts}}}\n")
    )
    spec = parse_job_spec(
        f"{MINIMAL}data: {{allow_unrendered: [tools, reasoning_content]}}\n".encode()
    )
    assert spec.data.allow_unrendered == ("tools", "reasoning_content")


def test_size_is_capped_before_parsing() -> None:
    error = refused("#" * (MAX_SPEC_BYTES + 1))
    assert error.code is ErrorCode.SPEC_TOO_LARGE


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_job_spec(tmp_path / "job.yaml")
    assert caught.value.code is ErrorCode.FILE_NOT_FOUND


@given(st.binary(max_size=200))
def test_any_bytes_are_a_spec_or_a_usage_error(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        parse_job_spec(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["version", "model", "train", "seed"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    )
)
def test_any_document_is_a_spec_or_a_usage_error(document: object) -> None:
    with contextlib.suppress(UsageError):
        parse_job_spec(json.dumps(document).encode())


@pytest.mark.parametrize("part", ["[", "- ", "a,", "- a\n", "? ", "{a: b}, "])
def test_the_largest_document_costs_no_more_than_its_bound_of_tokens(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ("[" * (part[-1] == ",") + part * MAX_SPEC_BYTES).encode()[:MAX_SPEC_BYTES]
    budget = TokenBudget()
    with monkeypatch.context() as patch:
        patch.setattr(strict_yaml, "TokenBudget", lambda: budget)
        assert re.search("too large or too deep|not acceptable", str(refused(text.decode())))
    assert budget.tokens >= -1, "the first token that is not admitted is the last"

    def parse_beginning(size: int) -> None:
        with contextlib.suppress(UsageError):
            parse_job_spec(text[:size])

    assert grows_linearly(parse_beginning, 1000), "and no token costs more than those before it"


PRIVATE = MINIMAL + "privacy: {target_epsilon: 3.0, target_delta: 1e-5}\n"
HONEST = ("train: {engine: transformers", "data: {split_turns: never", "lora: {lora_r: 4")


@pytest.mark.parametrize(
    ("part", "setting", "expected"),
    [
        (0, ", gradient_checkpointing: true", "train.gradient_checkpointing: must be false"),
        (0, ", torch_compile: true", "train.torch_compile: must be false"),
        (0, ", neftune_noise_alpha: 5.0", "train.neftune_noise_alpha: must be left out"),
        (0, ", max_grad_norm: 1.0", "train.max_grad_norm: must be left out"),
        (
            0,
            ", eval_steps: 5, early_stopping_patience: 2",
            "train.early_stopping_patience: must be left out",
        ),
        (
            0,
            ", eval_steps: 5, load_best_model_at_end: true",
            "train.load_best_model_at_end: must be left out",
        ),
        (1, ", packing: true", "data.packing: must be false"),
        (2, ", lora_dropout: 0.1", "lora.lora_dropout: must be 0"),
        (2, ", use_dora: true", "lora.use_dora: must be false"),
    ],
)
def test_what_would_make_a_budget_untrue_is_refused_by_name(
    part: int, setting: str, expected: str
) -> None:
    sections = list(HONEST)
    assert parse_job_spec((PRIVATE + "".join(f"{section}}}\n" for section in sections)).encode())
    sections[part] += setting
    broken = "".join(f"{section}}}\n" for section in sections)
    assert expected in str(refused(PRIVATE + broken))
    assert parse_job_spec((MINIMAL + broken).encode()), "which is fine without a budget"


@pytest.mark.parametrize("key", ["load_in_4bit: true", "load_in_8bit: true", "dtype: float16"])
def test_weights_that_unsloth_was_not_tested_with(key: str) -> None:
    text = MINIMAL.replace("./model\n", f"./model\n  {key}\n")
    parse_job_spec(text.encode())
    assert "set transformers" in str(refused(text + "train: {engine: unsloth}\n"))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            "data: {split_turns: never}\ntrain: {engine: unsloth}",
            "train.engine: must be transformers",
        ),
        ("train: {engine: transformers}", "data.split_turns: must be never"),
    ],
)
def test_a_budget_needs_one_row_to_be_one_gradient(sections: str, expected: str) -> None:
    assert expected in str(refused(PRIVATE + sections + "\n"))


@pytest.mark.parametrize(
    ("privacy", "expected"),
    [
        ("{target_epsilon: 3.0, noise_multiplier: 1.0, target_delta: 1e-5}", "exclude each other"),
        ("{target_delta: 1e-5}", "target_delta goes with"),
        ("{accountant: rdp}", "accountant means nothing"),
        (
            "{target_epsilon: 3.0, target_delta: 9e-9}",
            "accountant must be rdp for a target_delta below 1e-08",
        ),
        (
            "{noise_multiplier: 1.0, target_delta: 1e-12, accountant: prv}",
            "prv states an ε below the true one",
        ),
        (
            "{max_membership_auc: 0.7}",
            "max_membership_auc means nothing without privacy.audit: true",
        ),
        ("{max_exposure: 5.0}", "max_exposure means nothing without privacy.canaries"),
        ("{canary_repetitions: 5}", "canary_repetitions means nothing without privacy.canaries"),
        (
            "{audit: true, audit_rows: 19, max_membership_auc: 0.7}",
            "needs audit_rows of at least 20",
        ),
        ("{canaries: 2, max_exposure: 10.0}", "privacy.max_exposure"),
    ],
)
def test_incomplete_or_unsound_privacy_sections_are_refused(privacy: str, expected: str) -> None:
    assert expected in str(refused(MINIMAL + f"privacy: {privacy}\n"))


def test_who_may_submit_is_said_plainly() -> None:
    key = "ed25519:" + "ab" * 32
    assert "whoever reaches" in parse_job_spec(MINIMAL.encode()).exchange.who_may_submit
    named = parse_job_spec((MINIMAL + f"exchange: {{providers: ['{key}']}}\n").encode()).exchange
    assert named.providers == (key,)
    assert key in named.who_may_submit
    assert "exchange.providers" in str(refused(MINIMAL + "exchange: {providers: ['age1']}\n"))


def test_columns_of_another_format_are_refused() -> None:
    """They would rename nothing, and their author would believe that they do."""
    error = refused(f"{MINIMAL}data: {{format: sharegpt, columns: {{prompt: question}}}}\n")
    assert (
        "'prompt' is no column of format sharegpt; expected one of conversations, system, tools"
        in str(error)
    )
    known = f"{MINIMAL}data: {{format: alpaca, columns: {{instruction: question}}}}\n"
    assert parse_job_spec(known.encode()).data.columns == {"instruction": "question"}
    assert "'cow' is no column of ours" in str(
        refused(f"{MINIMAL}data: {{columns: {{cow: question}}}}\n")
    )
