"""What is done to jobs with planted strings: good runs, and every kind of failing one."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from tests.end_to_end.canary_runs import Run, failed_with, plant, refused, refused_with
from trainer.encoding import file_sha256
from trainer.errors import DataError, TrainerError
from trainer.sealing.age import encrypt_file, encrypting_writer, generate_identity, parse_recipient

Scenario = Callable[[Run], None]
Row = Mapping[str, object]

QUICK: dict[str, object] = {"max_steps": 2}
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
NO_SAMPLES: dict[str, object] = {"samples": 0}
WORKER_WALLS = [
    "worker_no_network", "worker_own_network", "worker_no_programs", "worker_no_signals", "worker_no_tracing",
]  # fmt: skip


def conversation(run: Run, number: int = 0) -> dict[str, object]:
    """A row with a string planted in each part of it."""
    planted = run.canaries
    return {
        "messages": [
            {"role": "system", "content": planted.system},
            {"role": "user", "content": f"{number}: {planted.content}?"},
            {"role": "assistant", "content": f"{planted.answer}."},
        ],
        "tools": [{"type": "function", "function": {"name": planted.tool, "parameters": {}}}],
    }


def good_rows(run: Run, count: int = 10) -> list[Row]:
    return [conversation(run, number) for number in range(count)]


def good_data(run: Run) -> None:
    run.rows(good_rows(run), f"{run.canaries.file}.jsonl")


def succeed(run: Run) -> None:
    """From the data files to the opened result."""
    run.upload()
    opened = run.fetch()
    assert opened.failure is None
    assert run.wait_end() == 0


def train(run: Run, steps_in_all: int = 400) -> None:
    """Into training, with good rows."""
    run.start(train={"max_steps": steps_in_all}, output=NO_SAMPLES)
    good_data(run)
    run.upload()
    run.until_step()


# good runs


def conversations(run: Run) -> None:
    run.start(
        train={"max_steps": 20},
        output={"samples": 4, "sample_max_new_tokens": 24},
        data={"test_split_size": 0.4},
    )
    good_data(run)
    strangers_ask_all_the_time(run)
    opened = run.fetch()
    assert opened.failure is None
    assert run.wait_end() == 0


def strangers_ask_all_the_time(run: Run) -> None:
    """Before the upload, which this makes, and while the job trains."""
    _ = run.record
    run.asked_by_strangers()
    run.upload()
    run.until_step()
    run.asked_by_strangers()
    run.played.append("strangers_ask_all_the_time")


def through_files(run: Run) -> None:
    run.start(spool=True, train=QUICK)
    good_data(run)
    succeed(run)


def several_outputs(run: Run) -> None:
    """Another kind of adapter; evaluations, with rows of their own, and the best adapter; a merged model.

    The rows are a table whose columns have names of their own, a folder that `datasets` has saved, and JSON.
    """
    run.start(
        data={"columns": {"messages": "dialogue"}, "ignore_columns": ["note"]},
        train={"max_steps": 3, "eval_steps": 1, "load_best_model_at_end": True},
        lora={"use_dora": True, "use_rslora": True},
        output={"merged_16bit": True},
    )
    planted = run.canaries
    rows = [{"dialogue": conversation(run, n)["messages"], "note": planted.bad} for n in range(8)]
    packed = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), packed)
    run.file(f"{planted.file}.parquet", packed.getvalue())
    features = {
        "note": datasets.ClassLabel(names=[planted.bad]),
        "dialogue": datasets.List(datasets.Json()),
    }
    saved = datasets.Dataset.from_list(
        [row | {"note": 0} for row in rows], features=datasets.Features(features)
    )
    saved.save_to_disk(str(run.private / "data" / planted.column), num_shards=2)
    instructions = [
        {"instruction": planted.content, "input": str(n), "output": planted.answer, "system": planted.system}
        for n in range(8)
    ]  # fmt: skip
    run.file("train.json", json.dumps(instructions).encode())
    held_out = b"".join(line({"dialogue": row["messages"]}) for row in good_rows(run, 3))
    run.file(f"eval/{planted.metric}.jsonl.gz", gzip.compress(held_out))
    succeed(run)
    result = run.private / "result"
    assert json.loads((result / "adapter" / "adapter_config.json").read_bytes())["use_dora"]
    assert list((result / "merged").glob("*.safetensors"))
    run.played += ["a_table_with_its_own_columns", "a_saved_dataset", "instructions_as_json"]
    run.played += ["another_kind_of_adapter", "evaluations_and_the_best_adapter", "a_merged_model"]


def provider_settings(run: Run) -> None:
    """Overlong rows are dropped, and a template of the provider's own renders the others."""
    data = {"chat_template": TEMPLATE, "on_overlong": "drop", "max_length": 512}
    run.start(train=QUICK, data=data, output={"include_logs": False})
    run.rows(
        [*good_rows(run), {"text": f"{run.canaries.bad} " * 300}], f"{run.canaries.file}.jsonl"
    )
    succeed(run)
    summary = json.loads((run.private / "result" / "report" / "summary.json").read_bytes())
    assert summary["rows"]["dropped"] == 1
    run.played += ["overlong_rows_dropped", "a_template_of_the_provider"]


def preferences(run: Run) -> None:
    run.start(train={**QUICK, "method": "dpo"}, output={"samples": 2, "sample_max_new_tokens": 8})
    planted = run.canaries
    rows: list[Row] = [
        {"prompt": f"{n}: {planted.content}", "chosen": f"{planted.answer}.", "rejected": planted.bad}
        for n in range(12)
    ]  # fmt: skip
    run.rows(rows, f"{planted.file}.jsonl")
    succeed(run)


def two_processes(run: Run) -> None:
    if subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    run.start(
        train={"max_steps": 2, "num_processes": 2, "per_device_train_batch_size": 2},
        tee={"sandbox": WORKER_WALLS},
    )
    good_data(run)
    succeed(run)
    summary = json.loads((run.private / "result" / "report" / "summary.json").read_bytes())
    assert (summary["environment"]["processes"], summary["steps"]) == ("2", 2)


def differentially_private(run: Run) -> None:
    pytest.importorskip("opacus", reason="the extra `privacy` is not installed")
    run.start(
        train={"max_steps": 2, "engine": "transformers"},
        data={"split_turns": "never"},
        privacy={"target_epsilon": 8.0, "target_delta": 1e-3},
    )
    good_data(run)
    succeed(run)


def audited(run: Run) -> None:
    """Of texts, packed; so many that some are held out, by whatever key they are split."""
    data: dict[str, object] = {"test_split_size": 0.4, "packing": True}
    run.start(train=QUICK, data=data, privacy={"audit": True, "canaries": 4})
    run.rows([{"text": f"{run.canaries.content} {number}"} for number in range(40)])
    succeed(run)
    run.played.append("texts_packed")


def memorised_too_much(run: Run) -> None:
    """Of 16 random texts some one always ranks above the middle: the gate is meant to close."""
    run.start(train=QUICK, output=NO_SAMPLES, privacy={"canaries": 16, "max_exposure": 0.1})
    good_data(run)
    run.upload()
    failed_with(run, "release-withheld")


def broken_off_and_gone_on(run: Run) -> None:
    """Checkpoints lie on the operator's disk, sealed; the second start opens one of them."""
    told: dict[str, Any] = {"train": {"max_steps": 200, "save_steps": 2}, "output": NO_SAMPLES}
    run.start(**told)
    good_data(run)
    run.upload()
    run.until_step()
    run.job.process.terminate()
    failed_with(run, "interrupted")
    assert run.grant is not None
    first, run.earlier_port, secret = run.job.out.read_bytes(), run.port, run.grant.grant.secret
    (run.private / "result").rename(run.private / "first-result")
    run.start_again(**told)
    (run.disk / "out-of-the-first").write_bytes(first)
    run.upload(run.seal(secret=secret))
    opened = run.fetch()
    assert opened.failure is None
    assert any(event["event"] == "resumed" and event["step"] != 0 for event in run.job.events)
    assert run.wait_end() == 0


def nobody_fetches(run: Run) -> None:
    run.start(train=QUICK, output=NO_SAMPLES, exchange={"linger_seconds": 1})
    good_data(run)
    run.upload()
    assert run.wait_end() == 0
    assert run.job.events[-1]["phase"] == "done"


# rows that are wrong


def wrong_rows(
    name: str, content: Callable[[Run], bytes], code: str, file: str = "train.jsonl", row: int = 0
) -> Scenario:
    """The job refuses a data file with the planted `bad` string in it, at `row`, and waits for another one."""

    def scenario(run: Run) -> None:
        shutil.rmtree(run.private / "data", ignore_errors=True)
        run.file(file, content(run))
        run.upload()
        failure = refused_with(run, code)
        assert isinstance(failure, DataError)
        assert failure.row == row
        run.canaries.later.append(run.canaries.bad)
        run.canaries.bad = plant("badrow")
        run.played.append(name)

    return scenario


def line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


WRONG_ROWS = (
    wrong_rows(
        "malformed_json",
        lambda run: b'{"messages": ' + run.canaries.bad.encode(),
        "dataset-row-invalid",
    ),
    wrong_rows(
        "no_table_at_all",
        lambda run: b"PAR1" + run.canaries.bad.encode() * 9 + b"PAR1",
        "dataset-invalid",
        "train.parquet",
    ),
    wrong_rows(
        "nothing_to_train_on",
        lambda run: line({"messages": [{"role": "user", "content": run.canaries.bad}]}),
        "dataset-not-trainable",
    ),
    wrong_rows(
        "template_error",
        lambda run: line(
            {"messages": [said("user", run.canaries.content), said("assistant", run.canaries.bad)]}
        ),
        "dataset-row-invalid",
    ),
)
"""What else can be wrong with a row, `tests/worker/test_worker.py` shows: the job treats all such errors alike."""

RAISES = "{% if messages[-1]['content'].startswith('badrow') %}{{ raise_exception('not ' ~ messages) }}{% endif %}"


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def refused_datasets(run: Run) -> None:
    """Each wrong dataset opens, and is refused under seal; the worker of the next one has seen nothing of it."""
    for scenario in WRONG_ROWS:
        scenario(run)
        left = [path for path in run.workspace.rglob("*") if path.is_file() and is_private(path)]
    assert left == [], [(str(p), p.read_bytes()[:600]) for p in left]
    memory = memory_of(run.pid("trainer.worker"))
    assert b"trainer.worker" in memory, "it was read indeed"
    of_the_spec = run.canaries.tokenizer  # the name of the base model's folder
    assert not [
        needle
        for needle in run.canaries.all()
        if needle != of_the_spec and encoded(needle) in memory
    ]
    shutil.rmtree(run.private / "data")


def encoded(needle: str | bytes) -> bytes:
    return needle if isinstance(needle, bytes) else needle.encode()


def is_private(path: Path) -> bool:
    """Whether a file of the workspace is neither of the base model nor an empty log."""
    return path.parent.name != "model" and path.stat().st_size > 0


def memory_of(process: int) -> bytes:
    """What a process has written to its memory: heap, stacks, and what it has mapped for itself."""
    maps = Path(f"/proc/{process}/maps").read_text().splitlines()
    spans = [words.split()[0].split("-") for words in maps if words.split()[1].startswith("rw")]
    read = bytearray()
    with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
        for start, end in spans:
            with suppress(OSError):  # such as that of a device
                memory.seek(int(start, 16))
                read += memory.read(int(end, 16) - int(start, 16))
    return bytes(read)


# machines that fail


def a_base_model_of_nan(run: Run) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    broken = run.private / "broken"
    shutil.copytree(run.world.tiny_model, broken)
    weights = load_file(broken / "model.safetensors")
    for tensor in weights.values():
        tensor.fill_(torch.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    digests = {file.name: file_sha256(file) for file in sorted(broken.iterdir())}
    run.start(base=broken, train=QUICK, output=NO_SAMPLES, model={"model_file_sha256": digests})
    good_data(run)
    run.upload()
    failed_with(run, "training-diverged")


def memory_runs_out(run: Run) -> None:
    """The worker may have no more than it has now. Whatever it says of that, it says under seal."""
    run.start(output=NO_SAMPLES)
    good_data(run)
    run.upload()
    run.job.wait_event(event="phase", phase="training")
    worker = run.pid("trainer.worker")
    _, hard = resource.prlimit(worker, resource.RLIMIT_AS)
    resource.prlimit(worker, resource.RLIMIT_AS, (1 << 20, hard))
    opened = run.fetch()
    assert opened.failure is not None
    assert run.wait_end() == 6


def a_killed_worker(run: Run) -> None:
    train(run)
    os.kill(run.pid("trainer.worker"), signal.SIGKILL)
    assert failed_with(run, "worker-died").found == "signal 9"


def a_worker_with_a_broken_heap(run: Run) -> None:
    """SIGABRT and SIGSEGV make libraries print what they know."""
    train(run)
    os.kill(run.pid("trainer.worker"), signal.SIGABRT)
    failed_with(run, "worker-died")


def a_killed_front(run: Run) -> None:
    train(run)
    worker = run.pid("trainer.worker")
    os.kill(run.pid("trainer.front"), signal.SIGKILL)
    assert run.wait_end() == 6
    assert run.job.events[-1]["code"] == "front-died"
    assert not Path(f"/proc/{worker}").exists()


def a_killed_supervisor(run: Run) -> None:
    """The workspace stays in memory: it goes with the VM's."""
    train(run)
    os.kill(run.job.process.pid, signal.SIGKILL)
    assert run.wait_end() == -signal.SIGKILL
    shutil.rmtree(run.workspace)
    run.workspace.mkdir()


def told_to_end_while_training(run: Run) -> None:
    train(run)
    worker = run.pid("trainer.worker")
    run.job.process.terminate()
    run.job.wait_event(event="failed", code="interrupted")
    assert not Path(f"/proc/{worker}").exists()
    failed_with(run, "interrupted")


def told_to_end_while_preparing(run: Run) -> None:
    run.start()
    run.job.wait_event(event="phase", phase="starting")
    run.job.process.terminate()
    assert run.wait_end() != 0


def told_to_end_with_a_result(run: Run) -> None:
    run.start(train=QUICK, output=NO_SAMPLES)
    good_data(run)
    run.upload()
    run.watch()
    run.job.process.terminate()
    assert run.wait_end() == 6


def fill(folder: Path) -> None:
    """Leave no block free."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 12)):
                pass
        except OSError:
            return


def mounted(folder: Path, size: int) -> None:
    """A small file system; unmounted by the tests' end."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")


def a_full_workspace(run: Run) -> None:
    mounted(run.workspace, 4 << 20)
    train(run)
    fill(run.workspace)
    failed_with(run, "workspace-full")
    (run.workspace / "ballast").unlink()


def no_room_for_the_upload(run: Run) -> None:
    mounted(run.ciphertext, 64 << 10)
    run.start()
    run.rows([{"text": run.canaries.content + os.urandom(300_000).hex()}])
    sealed = run.seal()
    with pytest.raises(TrainerError):
        run.upload(sealed)
    run.job.process.terminate()
    run.wait_end()


def no_room_for_the_result(run: Run) -> None:
    mounted(run.ciphertext, 64 << 20)  # room enough when training begins, and none when it ends
    run.start(train={"max_steps": 200}, output=NO_SAMPLES, exchange={"linger_seconds": 1})
    good_data(run)
    run.upload()
    run.until_step()
    fill(run.ciphertext)
    assert run.wait_end() != 0


def another_model_file(run: Run) -> None:
    changed = run.private / "changed"
    shutil.copytree(run.world.tiny_model, changed)
    (changed / "tokenizer_config.json").write_text(json.dumps({"chat_template": run.canaries.bad}))
    run.start(base=changed)
    assert run.wait_end() == 6
    assert run.job.events[-1]["code"] == "model-digest-mismatch"


# uploads that are wrong; the job goes on, and takes the right one


def not_opened(run: Run, sealed: Path, code: str) -> None:
    run.upload(sealed)
    refused(run.watch, code)


def refused_uploads(run: Run) -> None:
    """One job is sent each wrong upload, each wrong dataset, and then the right one."""
    run.start(train=QUICK, output=NO_SAMPLES, data={"chat_template": RAISES + TEMPLATE})
    good_data(run)
    for part in (
        an_expired_grant,
        sealed_to_a_stranger,
        no_bundle_inside,
        hostile_names,
        damaged_uploads,
    ):
        part(run)
        run.played.append(part.__name__)
    refused_datasets(run)
    good_data(run)
    run.upload()
    opened = run.fetch()
    assert opened.failure is None
    assert run.wait_end() == 0


def damaged_uploads(run: Run) -> None:
    whole = run.seal().read_bytes()
    damaged = run.private / "damaged.age"
    damaged.write_bytes(whole[:-50])
    not_opened(run, damaged, "sealed-payload-invalid")
    damaged.write_bytes(run.canaries.bad.encode() * 200)
    not_opened(run, damaged, "sealed-header-invalid")
    # That upload was never secret: the provider sent it in the clear.
    run.canaries.bad = plant("unsealed")
    damaged.unlink()


def sealed_to_a_stranger(run: Run) -> None:
    run.seal()
    stranger = run.private / "stranger.age"
    encrypt_file(
        next((run.private / "data").iterdir()), stranger, [generate_identity().recipient()]
    )
    not_opened(run, stranger, "no-identity-match")


def no_bundle_inside(run: Run) -> None:
    run.seal()
    bare = run.private / "bare.age"
    encrypt_file(
        next((run.private / "data").iterdir()), bare, [parse_recipient(run.record.result.recipient)]
    )
    not_opened(run, bare, "bundle-invalid")


def another_job_spec(run: Run) -> None:
    """Sealed to one job, handed to another: neither tells what is inside."""
    run.start(train=QUICK)
    good_data(run)
    sealed = run.seal()
    run.job.process.terminate()
    assert run.wait_end() == 6
    run.played.append("told_to_end_before_the_dataset")
    first, run.earlier_port = run.job.out.read_bytes(), run.port
    run.start_again(train={"max_steps": 3})
    (run.disk / "out-of-the-first").write_bytes(first)
    _ = run.record
    not_opened(run, sealed, "no-identity-match")
    run.job.process.terminate()
    run.wait_end()


def an_expired_grant(run: Run) -> None:
    sealed = run.seal(expires_in=1)
    time.sleep(1.1)
    not_opened(run, sealed, "grant-expired")


def hostile_names(run: Run) -> None:
    """A bundle whose members would leave its directory, and one with the planted name in a wrong place."""
    run.seal()
    grant = run.grant
    assert grant is not None
    for name in (
        f"../../{run.canaries.file}",
        f"data/{run.canaries.file}\n.jsonl",
        f"data//{run.canaries.file}",
    ):
        sealed = run.private / "hostile.age"
        with (
            sealed.open("wb") as file,
            encrypting_writer(file, [parse_recipient(run.record.result.recipient)]) as bundle,
        ):
            _write_archive(
                bundle, {"grant.json": grant.grant.canonical(), name: run.canaries.content.encode()}
            )
        not_opened(run, sealed, "bundle-invalid")


def _write_archive(target: BinaryIO, members: Mapping[str, bytes]) -> None:
    """An archive by other hands than ours, which would refuse such names."""
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


RUNS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        conversations, through_files, several_outputs, provider_settings, nobody_fetches, preferences,
        two_processes, differentially_private, audited, memorised_too_much, broken_off_and_gone_on,
        a_base_model_of_nan, memory_runs_out,
        a_killed_worker, a_worker_with_a_broken_heap, a_killed_front, a_killed_supervisor,
        told_to_end_while_training, told_to_end_while_preparing, told_to_end_with_a_result,
        a_full_workspace, no_room_for_the_upload, no_room_for_the_result,
        another_model_file, refused_uploads, another_job_spec,
    )
}  # fmt: skip
"""What is played: one job each, or two where a job is started again."""

SHARED: dict[str, str] = {
    "strangers_ask_all_the_time": "conversations",
    "a_table_with_its_own_columns": "several_outputs",
    "a_saved_dataset": "several_outputs",
    "instructions_as_json": "several_outputs",
    "texts_packed": "audited",
    "told_to_end_before_the_dataset": "another_job_spec",
    "another_kind_of_adapter": "several_outputs",
    "evaluations_and_the_best_adapter": "several_outputs",
    "a_merged_model": "several_outputs",
    "overlong_rows_dropped": "provider_settings",
    "a_template_of_the_provider": "provider_settings",
    "damaged_uploads": "refused_uploads",
    "sealed_to_a_stranger": "refused_uploads",
    "no_bundle_inside": "refused_uploads",
    "an_expired_grant": "refused_uploads",
    "hostile_names": "refused_uploads",
    "malformed_json": "refused_uploads",
    "no_table_at_all": "refused_uploads",
    "nothing_to_train_on": "refused_uploads",
    "template_error": "refused_uploads",
}
"""Scenario → the run that it is a part of. Each adds its name to `Run.played`."""

COLLECTIONS = {"several_outputs", "provider_settings", "refused_uploads"}
"""Runs that are nothing but the scenarios they share."""

RUN_OF: dict[str, str] = {name: name for name in RUNS if name not in COLLECTIONS} | SHARED
"""Every scenario, and the run that plays it."""
