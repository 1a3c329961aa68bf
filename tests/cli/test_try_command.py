"""`trainer try`: base model and adapter answer the same, and only the base model that was trained on will do."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.made_adapter import TEMPLATE, make_adapter, make_spec
from trainer.cli.app import run_command_line as run
from trainer.encoding import file_sha256
from trainer.errors import ExitCode
from trainer.model_files.safetensors_header import add_metadata
from trainer.receipt.dsse import sign_envelope
from trainer.receipt.statement import ReceiptOutcome
from trainer.receipt.statement_writer import StatementInputs, make_statement
from trainer.spec import JobSpec

LIMIT = ["--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return make_adapter(tiny_model, tmp_path_factory.mktemp("made") / "adapter")


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change, in a result."""
    return Path(shutil.copytree(made, tmp_path / "result" / "adapter"))


def answer_with_peft(model: Path, adapter: Path | None, text: str) -> str:
    """Greedy decoding with stock PEFT and transformers, without any code of this project."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    base: Any = AutoModelForCausalLM.from_pretrained(model)
    chosen = base if adapter is None else PeftModel.from_pretrained(base, str(adapter))
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    said = chosen.generate(input_ids=ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    return str(tokenizer.decode(said)).removesuffix("<|im_end|>")


def test_the_answers_are_those_of_stock_peft_with_the_template_of_the_adapter(
    adapter: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "try",
        str(adapter.parent),
        "Who is it?",
        "--model",
        str(tiny_model),
        *LIMIT,
        "--json",
    ]
    assert run(command) == ExitCode.DONE
    found = json.loads(capsys.readouterr().out)
    (answer,) = found["answers"]
    assert answer["prompt"] == "[user]Who is it?<|im_end|>[assistant]"
    assert answer["base"] == answer_with_peft(tiny_model, None, answer["prompt"])
    assert answer["adapter"] == answer_with_peft(tiny_model, adapter, answer["prompt"])
    assert answer["base"] != answer["adapter"]
    assert found["base_model_sha256"] == make_spec(tiny_model).model.base_sha256
    assert found["adapter_sha256"] == file_sha256(adapter / "adapter_model.safetensors")
    assert "no receipt" in found["notes"][0]
    assert run([*command, "--plain-text"]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["answers"][0]["prompt"] == "Who is it?"


def test_a_person_sees_columns_that_fit(
    adapter: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = "Why is it so? " * 20
    assert (
        run(["try", str(adapter), long, "\x1b[2Jb", "--model", str(tiny_model), *LIMIT])
        == ExitCode.DONE
    )
    captured = capsys.readouterr()
    assert max(len(line) for line in captured.out.splitlines()) <= 80
    for words in ("prompt 1 of 2", "base", "adapter", "note: no receipt", "…"):
        assert words in captured.out
    assert "\x1b[2J" not in captured.out
    assert "answering 2 prompts twice on" in captured.err


def write_receipt(result: Path, spec: JobSpec, files: dict[str, str]) -> None:
    inputs = StatementInputs(
        spec=spec,
        files=files,
        dataset_files={"a.jsonl": "1" * 64},
        dataset_manifest_sha256="2" * 64,
        recipients=("age1x",),
        compose_sha256="3" * 64,
        software={},
        started_at=1,
        finished_at=2,
        run="4" * 32,
        outcome=ReceiptOutcome.SUCCEEDED,
        metrics={},
    )
    envelope = sign_envelope(make_statement(inputs), ec.generate_private_key(ec.SECP256R1()))
    (result / "receipt.json").write_bytes(envelope)


def test_a_file_is_read_and_rendered_as_the_job_did(
    adapter: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = make_spec(
        tiny_model,
        columns={"instruction": "question", "output": "answer"},
        chat_template=TEMPLATE,
        chat_template_kwargs={"mood": " glad"},
    )
    weights = file_sha256(adapter / "adapter_model.safetensors")
    write_receipt(adapter.parent, spec, {"adapter/adapter_model.safetensors": weights})
    data = tmp_path / "held.csv"
    data.write_text("question,answer\n" + "".join(f"q{n},a{n}\n" for n in range(4)))
    command = [
        "try",
        str(adapter.parent),
        "--file",
        str(data),
        "--rows",
        "3",
        "--model",
        str(tiny_model),
        *LIMIT,
    ]
    assert run([*command, "--json"]) == ExitCode.DONE
    found = json.loads(capsys.readouterr().out)
    assert [(each["prompt"], each["expected"]) for each in found["answers"]] == [
        (f"[user glad]q{n}<|im_end|>[assistant]", f"a{n}") for n in range(3)
    ]
    assert found["notes"] == []
    data.write_text("question,answer,more\nq,a,b\n")
    assert run(command) == ExitCode.LOCAL_DATA
    assert "held.csv, row 0" in capsys.readouterr().err
    write_receipt(adapter.parent, spec, {"adapter/adapter_model.safetensors": "0" * 64})
    assert run(command) == ExitCode.VERIFICATION


def test_rows_without_a_prompt_are_counted(
    adapter: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "texts.jsonl"
    rows: list[dict[str, object]] = [{"text": "a"}, {"prompt": "b", "chosen": "c", "rejected": "d"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        "try",
        str(adapter),
        "--file",
        str(data),
        "--model",
        str(tiny_model),
        *LIMIT,
        "--json",
    ]
    assert run(command) == ExitCode.DONE
    found = json.loads(capsys.readouterr().out)
    assert [(each["prompt"], each["expected"]) for each in found["answers"]] == [("b", "c")]
    assert "1 rows left out: no_prompt" in found["notes"]


def another_base(adapter: Path, model: Path) -> None:
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")


def no_weights(adapter: Path, model: Path) -> None:
    (model / "model.safetensors").unlink()


def no_named_base(adapter: Path, model: Path) -> None:
    add_metadata(adapter / "adapter_model.safetensors", {"base_model_sha256": "?"})


def no_adapter(adapter: Path, model: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


def damaged_configuration(adapter: Path, model: Path) -> None:
    (adapter / "adapter_config.json").write_text("{}")


def fewer_tensors_than_the_configuration(adapter: Path, model: Path) -> None:
    document = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**document, "use_dora": True}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (another_base, "error[model-digest-mismatch]"),
        (no_weights, "the model's files"),
        (no_named_base, "does not name its base model"),
        (no_adapter, "no adapter in"),
        (damaged_configuration, "error[model-invalid]"),
        (fewer_tensors_than_the_configuration, "error[model-invalid]"),
    ],
)
def test_what_does_not_fit_is_refused(
    damage: Callable[[Path, Path], None],
    said: str,
    adapter: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    damage(adapter, model)
    assert run(["try", str(adapter), "Who?", "--model", str(model)]) == ExitCode.USAGE
    assert said in capsys.readouterr().err


def test_without_a_directory_the_hub_is_asked_for_the_recorded_commit(
    adapter: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[object, ...]] = []

    def download(*arguments: object) -> Path:
        asked.append(arguments)
        return tiny_model

    monkeypatch.setattr("trainer.fetch.model_listing.download_hub_files", download)
    assert run(["try", str(adapter), "Who?", *LIMIT, "--json"]) == ExitCode.DONE
    assert asked == [
        ("org/tiny", "ab" * 20, ("config.json", "*.safetensors", "*.safetensors.index.json"))
    ]
    assert json.loads(capsys.readouterr().out)["base_model"] == "org/tiny"
    path = adapter / "adapter_model.safetensors"
    metadata = {"base_model_sha256": make_spec(tiny_model).model.base_sha256}
    monkeypatch.setattr(
        "trainer.provider.adapter_trial.read_named_base", lambda _: _named(metadata)
    )
    assert path.is_file()
    assert run(["try", str(adapter), "Who?"]) == ExitCode.USAGE
    assert "by digest alone" in capsys.readouterr().err


def _named(metadata: dict[str, str]) -> Any:
    from trainer.model_files.adapter_base import NamedBase

    return NamedBase(metadata["base_model_sha256"], None, None)


def test_a_missing_package_is_named(
    adapter: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "trainer.training.adapter_comparison", raising=False)
    monkeypatch.setitem(sys.modules, "peft", None)
    command = ["try", str(adapter), "Who?", "--model", str(tiny_model)]
    assert run(command) == ExitCode.USAGE
    assert "confidential-trainer[try]" in capsys.readouterr().err
    assert run(["try", str(adapter)]) == ExitCode.USAGE
    assert "expected a PROMPT, or --file" in capsys.readouterr().err
