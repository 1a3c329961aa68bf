"""`trainer validate`: what a person and a program read, its exit codes, and what it does not import or show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.model_files.tiny_files import lora_tensors, write_weights
from trainer.cli.app import run_command_line as run
from trainer.cli.terminal_text import show_control_characters
from trainer.deployment import SHIPPED_COMPOSE, render_compose
from trainer.encoding import file_sha256
from trainer.errors import ExitCode
from trainer.model_files.safetensors_header import add_metadata
from trainer.model_files.start_adapter import base_metadata
from trainer.model_files.tensor_listing import list_tensors
from trainer.spec import read_job_spec

CANARY = "canary-7f3a9c"


@pytest.fixture
def job(tmp_path: Path, tiny_model: Path) -> Path:
    digests = {path.name: file_sha256(path) for path in tiny_model.iterdir()}
    document: dict[str, Any] = {
        "version": 1,
        "model": {"model_name_or_path": str(tiny_model), "model_file_sha256": digests},
        "data": {"max_length": 128},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def chat(number: int, answer: str = CANARY) -> dict[str, object]:
    turns = [
        {"role": "user", "content": f"Number {number}?"},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": turns}


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "train.jsonl", [chat(number) for number in range(20)])


def test_a_person_reads_it_all(job: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", str(data), "--job", str(job)]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert out.startswith("20 rows: 20 messages\n")
    for part in (
        "tokens ",
        "length    min",
        "█",
        "19 rows to train on, 1 to evaluate on",
        "5 optimizer steps",
        "GiB",
    ):
        assert part in out
    assert f"<|im_start|>assistant\n⟦{CANARY}<|im_end|>⟧" in out


def test_a_program_gets_one_object_without_any_text(
    job: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", str(data), "--job", str(job), "--json"]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert CANARY not in out
    found = json.loads(out)
    assert (found["rows"], found["kinds"], found["files"]) == (
        20,
        {"messages": 20},
        {"train.jsonl": {"messages": 20}},
    )
    assert found["tokens"]["split"]["train"] == 19
    assert found["steps"] == 5
    assert found["memory"]["total"] > found["memory"]["reserve"]
    assert (
        run(["validate", str(data), "--job", str(job), "--json", "--example", "1"]) == ExitCode.DONE
    )
    ((masked, trained),) = json.loads(capsys.readouterr().out)["example"]
    assert (masked[0], trained) == (False, [True, f"{CANARY}<|im_end|>"])


def test_pairs_are_counted_and_shown_side_by_side(
    job: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs: list[object] = [
        {
            "prompt": f"Number {number}?",
            "chosen": f" {CANARY}" * (1 + number % 2),
            "rejected": " No, no.",
        }
        for number in range(20)
    ]
    file = write(data.with_name("pairs.jsonl"), pairs)
    arguments = ["validate", str(file), "--job", str(job)]
    assert run(arguments) == ExitCode.LOCAL_DATA
    captured = capsys.readouterr()
    assert "set train.method to dpo" in captured.out + captured.err
    document = yaml.safe_load(job.read_text()) | {
        "train": {"method": "dpo", "per_device_train_batch_size": 3}
    }
    document["data"] = {**document.get("data", {}), "test_split_size": 0.0}
    job.write_text(yaml.safe_dump(document))
    assert run(arguments) == ExitCode.DONE
    out = capsys.readouterr().out
    for part in ("20 rows: 20 preference", "pairs     20; the chosen answer is the longer one in", "rejected min",
                 "20 rows to train on, 0 to evaluate on", "7 optimizer steps",
                 "the chosen answer, then the rejected one", f"Number 0?⟦ {CANARY}<|im_end|>⟧",
                 "Number 0?⟦ No, no.<|im_end|>⟧"):  # fmt: skip
        assert part in out
    assert run([*arguments, "--json"]) == ExitCode.DONE
    found = json.loads(capsys.readouterr().out)["tokens"]["pairs"]
    assert found["count"] == 20
    assert found["prompt"]["min"] > 0
    assert found["chosen"]["max"] > found["chosen"]["min"] > found["rejected"]["max"]
    assert found["chosen_longer"] == 20


def test_bad_rows_are_listed_and_fail(
    job: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write(data.with_name("bad.jsonl"), [{"text": number} for number in range(30)])
    arguments = ["validate", str(data), str(bad), "--job", str(job)]
    assert run(arguments) == ExitCode.LOCAL_DATA
    captured = capsys.readouterr()
    assert "refused   30: 30 dataset-row-invalid" in captured.out
    assert "row 0, field text: wrong value" in captured.out
    assert "(and rows 1, 2, 3, 4 and 25 more)" in captured.out
    assert "20 rows: 20 messages" in captured.out
    assert (
        "error[dataset-row-invalid]: file bad.jsonl, row 0, field text: wrong value" in captured.err
    )
    assert run([*arguments, "--json"]) == ExitCode.LOCAL_DATA
    found = json.loads(capsys.readouterr().out)
    assert found["refused"] == {"count": 30, "codes": {"dataset-row-invalid": 30}}
    (problem,) = found["problems"]
    assert (problem["row"], problem["rows"], problem["count"]) == (0, [0, 1, 2, 3, 4], 30)
    assert (found["error"]["code"], found["exit_code"]) == ("dataset-row-invalid", 7)


def test_what_the_template_does_not_print_is_counted(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reasoned(number: int) -> dict[str, object]:
        answer = {"role": "assistant", "content": "b", "reasoning_content": CANARY}
        return {"messages": [{"role": "user", "content": f"{number}?"}, answer]}

    data = write(
        tmp_path / "a.jsonl",
        [*(chat(number) for number in range(3)), *(reasoned(n) for n in range(2))],
    )
    arguments = ["validate", str(data), "--job", str(job)]
    assert run(arguments) == ExitCode.LOCAL_DATA
    shown = capsys.readouterr()
    assert (
        "2 rows would lose their reasoning_content: the chat template does not print it"
        in shown.out
    )
    assert "a.jsonl, row 3, field messages[1].reasoning_content" in shown.err
    assert "data.allow_unrendered: [reasoning_content]" in shown.err
    run([*arguments, "--json"])
    assert json.loads(capsys.readouterr().out)["unrendered"] == {
        "allowed": {},
        "refused": {"reasoning_content": 2},
    }
    document = yaml.safe_load(job.read_text())
    document["data"] |= {"allow_unrendered": ["reasoning_content"], "test_split_size": 0}
    job.write_text(yaml.safe_dump(document))
    assert run(arguments) == ExitCode.DONE
    assert (
        "2 of 5 rows lose their reasoning_content, which the chat template does not print"
        in capsys.readouterr().out
    )
    assert run([*arguments, "--json"]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["unrendered"] == {
        "allowed": {"reasoning_content": 2},
        "refused": {},
    }


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("llama3", "expected Jinja text with {{ }} or {% %}, got 'llama3'"),
        (
            "{% for m in messages %}\n{{ m.content }",
            "expected Jinja text, got unexpected '}' in line 2",
        ),
    ],
    ids=["a name", "a syntax error"],
)
def test_a_chat_template_that_is_none_is_one_error_of_the_job(
    template: str, said: str, job: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = yaml.safe_load(job.read_text())
    document["data"]["chat_template"] = template
    job.write_text(yaml.safe_dump(document))
    assert run(["validate", str(data), "--job", str(job)]) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert "job spec: data.chat_template" in captured.err
    assert said in captured.err
    assert captured.out == ""


def test_folders_formats_and_columns(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    (folder / "eval").mkdir(parents=True)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.bin").write_bytes(b"x")
    (folder / "a.csv").write_text(
        "question,answer,id\n" + "".join(f"q{n},a{n},{n}\n" for n in range(9))
    )
    (folder / "eval" / "b.tsv").write_text("question\tanswer\tid\nq\ta\t1\n")
    columns = {"columns": {"prompt": "question", "completion": "answer"}, "ignore_columns": ["id"]}
    job.write_text(yaml.safe_dump({**yaml.safe_load(job.read_text()), "data": columns}))
    assert run(["validate", str(folder), "--job", str(job)]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert "10 rows: 10 prompt/completion" in out
    assert "eval/b.tsv: 1 prompt/completion" in out
    assert "9 rows to train on, 1 to evaluate on" in out
    assert "10 of 10 rows are trained on without the model's chat template" in out
    assert "name the columns instruction and output with data.columns" in out
    advised = {**columns, "columns": {"instruction": "question", "output": "answer"}}
    rewrite = yaml.safe_load(job.read_text()) | {"data": advised}
    job.write_text(yaml.safe_dump(rewrite))
    assert run(["validate", str(folder), "--job", str(job)]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert "without the model's chat template" not in out
    assert "<|im_start|>user\nq0<|im_end|>\n<|im_start|>assistant\n⟦a0<|im_end|>⟧" in out
    (folder / "README.md").write_text("x")
    assert run(["validate", str(folder), "--job", str(job)]) == ExitCode.USAGE
    assert "README.md is not a data file" in capsys.readouterr().err
    (folder / "README.md").write_text("---\nconfigs:\n- data_files: [a.csv, eval/*]\n---\n")
    assert run(["validate", str(folder), "--job", str(job)]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert "README.md: a side file, without rows" in out
    assert "9 rows to train on, 1 to evaluate on" in out


def test_without_the_model_rows_are_read_and_it_is_said(
    job: Path, data: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    document = yaml.safe_load(job.read_text())
    document["model"] |= {"model_name_or_path": "org/name", "model_revision": "0" * 40}
    job.write_text(yaml.safe_dump(document))
    assert run(["validate", str(data), "--job", str(job)]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert "20 rows: 20 messages" in out
    assert "tokens were not counted: the base model is not here" in out
    assert CANARY not in out
    assert (
        run(["validate", str(data), "--job", str(job), "--model", str(tiny_model)]) == ExitCode.DONE
    )
    assert "optimizer steps" in capsys.readouterr().out


def test_the_spec_of_the_verified_job_is_taken(
    job: Path,
    data: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def verified_job(text: str, spec: Path) -> SimpleNamespace:
        app = json.dumps(
            {"docker_compose_file": render_compose(SHIPPED_COMPOSE, text) if text else ""}
        )
        result = SimpleNamespace(job_spec_sha256=read_job_spec(spec).sha256())
        return SimpleNamespace(result=result, evidence=SimpleNamespace(app_compose=app))

    document = yaml.safe_load(job.read_text())
    document["data"] = {"max_length": 128, "columns": {"messages": "dialogue"}}
    job.write_text(yaml.safe_dump(document))
    named = write(
        data.with_name("named.jsonl"),
        [{"dialogue": chat(number)["messages"]} for number in range(20)],
    )
    records = iter(
        [
            verified_job(job.read_text(), job),
            verified_job(job.read_text(), job),
            verified_job("", job),
        ]
    )
    monkeypatch.setattr("trainer.cli.validate_command.load_attestation", lambda *_: next(records))
    command = ["validate", str(named), "--attestation", "a.json", "--policy", "p.yaml"]
    assert run(command) == ExitCode.DONE
    out = capsys.readouterr().out
    assert "20 rows: 20 messages" in out
    # The directory that the spec names is one of the operator's machine.
    assert "the base model is not here" in out
    assert run([*command, "--model", str(tiny_model)]) == ExitCode.DONE
    assert "optimizer steps" in capsys.readouterr().out
    assert run(command) == ExitCode.USAGE
    assert "expected --job with a copy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], "none of them"),
        (["--policy", "p"], "--policy"),
        (["--attestation", "a"], "--attestation"),
    ],
)
def test_a_spec_must_be_named(
    options: list[str], found: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", str(data), *options]) == ExitCode.USAGE
    assert f"got {found}\n" in capsys.readouterr().err


def test_a_model_of_other_bytes_is_refused(
    job: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = yaml.safe_load(job.read_text())
    document["model"]["model_file_sha256"]["tokenizer.json"] = "0" * 64
    job.write_text(yaml.safe_dump(document))
    assert run(["validate", str(data), "--job", str(job)]) == ExitCode.USAGE
    assert "error[model-digest-mismatch]" in capsys.readouterr().err


def test_a_page_holds_the_same_and_runs_nothing(job: Path, data: Path, tmp_path: Path) -> None:
    write(data, [chat(number, "<script>alert(1)</script>") for number in range(20)])
    page = tmp_path / "page.html"
    assert (
        run(["validate", str(data), "--job", str(job), "--html", str(page), "-q"]) == ExitCode.DONE
    )
    assert (
        run(["validate", str(data), "--job", str(job), "--html", str(page), "-q"]) == ExitCode.USAGE
    ), "it exists"
    text = page.read_text()
    assert "20 rows: 20 messages" in text
    assert "<mark>&lt;script&gt;" in text
    assert "<script" not in text


def test_data_do_not_steer_a_terminal() -> None:
    assert show_control_characters("a\x1b[31m\x00\x9b\u202eb\n\tc") == "a␛[31m␀␡␡b\n\tc"


def test_it_needs_neither_torch_nor_transformers(job: Path, data: Path) -> None:
    program = (
        "import sys\nfrom trainer.cli.app import run_command_line as run\n"
        f"code = run(['validate', {str(data)!r}, '--job', {str(job)!r}, '--quiet'])\n"
        "print(code, sorted({'torch', 'transformers', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "optimizer steps" in done.stdout


def test_names_of_modules_are_counted_or_refused(
    job: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = yaml.safe_load(job.read_text()) | {
        "lora": {"lora_target_modules": ["q_proj", "layers.1.mlp.up_proj"]}
    }
    job.write_text(yaml.safe_dump(document))
    assert run(["validate", str(data), "--job", str(job)]) == ExitCode.DONE
    assert (
        "adapter   q_proj 2  layers.1.mlp.up_proj 1 (modules of each name"
        in capsys.readouterr().out
    )
    document["lora"]["lora_target_modules"] = ["q_proj", "qkv_prj"]
    job.write_text(yaml.safe_dump(document))
    assert run(["validate", str(data), "--job", str(job), "--json"]) == ExitCode.LOCAL_DATA
    found = json.loads(capsys.readouterr().out)
    assert found["error"]["code"] == "model-invalid"
    assert "lora.lora_target_modules qkv_prj" in found["error"]["found"]
    assert found["exit_code"] == 7


@pytest.fixture
def adapter(tmp_path: Path, tiny_model: Path, job: Path) -> Path:
    """An earlier adapter of rank 4 on all linear modules; the job starts from it."""
    document = yaml.safe_load(job.read_text())
    job.write_text(
        yaml.safe_dump(
            {**document, "lora": {"lora_r": 4, "lora_alpha": 8, "start_from": "adapter"}}
        )
    )
    listing = list_tensors(tiny_model, {path.name for path in tiny_model.iterdir()})
    assert listing is not None
    shapes = {name: list(shape or ()) for name, shape in listing.shapes.items()}
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    modules = [name for name in listing.modules if ".layers." in name]
    write_weights(folder / "adapter_model.safetensors", lora_tensors(shapes, modules, rank=4))
    add_metadata(folder / "adapter_model.safetensors", base_metadata(read_job_spec(job).model))
    return folder


def test_an_adapter_to_start_from_is_judged_and_counted(
    job: Path, data: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["validate", str(data), "--job", str(job), "--adapter", str(adapter)]
    assert run(arguments) == ExitCode.DONE
    assert "start     start adapter (SHA-256): " in capsys.readouterr().out
    assert run([*arguments, "--json"]) == ExitCode.DONE
    found = json.loads(capsys.readouterr().out)
    digest = file_sha256(adapter / "adapter_model.safetensors")
    assert (found["start_adapter"]["sha256"], found["start_adapter"]["base_is_checked"]) == (
        digest,
        True,
    )
    assert (found["rows"], found["files"]) == (20, {"train.jsonl": {"messages": 20}})


@pytest.mark.parametrize("damage", ["it is not given", "another rank", "a layer is missing"])
def test_an_adapter_that_the_job_would_refuse_is_refused_here(
    damage: str, job: Path, data: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["validate", str(data), "--job", str(job), "--adapter", str(adapter)]
    if damage == "it is not given":
        arguments = arguments[:-2]
    if damage == "another rank":
        (adapter / "adapter_config.json").write_text(
            '{"peft_type": "LORA", "r": 8, "lora_alpha": 8}'
        )
    if damage == "a layer is missing":
        weights = adapter / "adapter_model.safetensors"
        shapes = {"model.layers.0.self_attn.q_proj.weight": [4, 4]}
        write_weights(weights, lora_tensors(shapes, ["model.layers.0.self_attn.q_proj"], rank=4))
        add_metadata(weights, base_metadata(read_job_spec(job).model))
    assert run(arguments) == ExitCode.LOCAL_DATA
    assert "adapter/adapter_" in capsys.readouterr().err
