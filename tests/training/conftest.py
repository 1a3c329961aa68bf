"""Tokenizers, data, specs and the real worker process, for the tiny model that all tests share."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fork_server import ROOT, ForkServer
from tests.training.forked_worker import VARIABLES, fork_worker
from tests.training.local_runs import Runs
from trainer.encoding import file_sha256
from trainer.ipc.worker_messages import (
    FROM_WORKER,
    MAX_MESSAGE_BYTES,
    TO_WORKER,
    Message,
    Preparation,
    TrainingOrder,
)
from trainer.sandbox.plan import SandboxPlan
from trainer.spec import JobSpec
from trainer.spec.model_section import MODEL_FILE_SUFFIXES


def compiles(test: Any) -> Any:
    """Marks a test that compiles a model: it needs a compiler, and minutes where the machine is busy."""
    marks = (
        pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here"),
        pytest.mark.filterwarnings(
            "ignore:The .grad attribute of a Tensor"
        ),  # dynamo asks for it, and hides that
        pytest.mark.timeout(900),
        pytest.mark.slow,
        pytest.mark.usefixtures("kernels"),
    )
    for mark in marks:
        test = mark(test)
    return test


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache of compiled kernels for all tests of this run: much of the time goes into the C++ compiler."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(shared / "kernels"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """A tiny model gains nothing from threads, and its tests should not wait for a core that is busy."""
    torch.set_num_threads(1)


def chat_lines(count: int) -> str:
    """Rows with a pattern that can be learned, of different lengths."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {number}" + " indeed" * (number % 7) + "?"},
                {"role": "assistant", "content": f"It is the number {number}, as everybody knows."},
            ]
        }
        for number in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def chat_file(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    path.write_text(chat_lines(40))
    return path


MakeSpec = Callable[..., JobSpec]


@pytest.fixture(scope="session")
def make_spec() -> MakeSpec:
    """A quick job spec; keyword arguments override whole leaves: `make_spec(train={"max_steps": 3})`."""

    def make(**sections: Mapping[str, object]) -> JobSpec:
        document: dict[str, dict[str, object]] = {
            "model": {
                "model_name_or_path": "./models/tiny",
                "model_file_sha256": {"config.json": "0" * 64, "model.safetensors": "0" * 64},
                "dtype": "float32",
            },
            "lora": {"lora_r": 4, "lora_alpha": 8},
            "data": {"max_length": 128, "test_split_size": 0.2},
            "train": {
                "learning_rate": 0.01,
                "max_steps": 6,
                "bf16": False,
                "per_device_train_batch_size": 4,
            },
        }
        for name, leaves in sections.items():
            document.setdefault(name, {}).update(leaves)
        return JobSpec.model_validate_json(json.dumps({"version": 1, **document}))

    return make


def pinning(spec: JobSpec, model_dir: Path) -> JobSpec:
    """The spec with the digests of the files that the model's directory has."""
    digests = {
        path.relative_to(model_dir).as_posix(): file_sha256(path)
        for path in sorted(model_dir.rglob("*"))
        if path.is_file() and path.suffix in MODEL_FILE_SUFFIXES
    }
    return spec.model_copy(
        update={"model": spec.model.model_copy(update={"model_file_sha256": digests})}
    )


@pytest.fixture
def runs(
    tmp_path: Path, tiny_model: Path, chat_file: Path, make_spec: MakeSpec
) -> Iterator[Callable[..., Runs]]:
    """`runs(data_file, train={"max_steps": 3})`: a job spec to be carried out again and again in this process."""
    numbers = itertools.count()

    def make(file: Path = chat_file, **sections: dict[str, object]) -> Runs:
        spec = make_spec(**{"output": {"samples": 1, "sample_max_new_tokens": 4}, **sections})
        folder = tmp_path / f"runs{next(numbers)}"
        folder.mkdir()
        return Runs(folder, tiny_model, file, spec)

    yield make
    torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Ended:
    """How a worker process ended."""

    code: int
    messages: tuple[Message, ...]
    sent: bytes
    """Everything on the event descriptor."""
    log: str
    """stderr: the private log."""
    out: bytes
    output_dir: Path


RunWorker = Callable[..., Ended]


@pytest.fixture
def run_worker(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_model: Path, make_spec: MakeSpec
) -> RunWorker:
    """A worker process: `run_worker(data_file, spec, model_dir=…)`.

    It starts as the supervisor starts it where it has a plan or is to be `started_anew`; otherwise it is forked
    from a process that has imported the training stack. `stdin` is what it reads in the place of an order.

    `ahead` has it prepare: what stands between the preparation and the order. `plan` makes one for the output
    directory. `module` is what is started in the worker's place.
    """

    def run(
        data: Path | Mapping[str, Path],
        spec: JobSpec | None = None,
        *,
        model_dir: Path | None = None,
        pins: bool = True,
        stdin: bytes = b"",
        processes: int = 1,
        started_anew: bool = False,
        module: str = "trainer.worker",
        ahead: bytes | None = None,
        path: str | None = None,
        plan: Callable[[Path], SandboxPlan] | None = None,
    ) -> Ended:
        output = tmp_path / "output"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        base, spec = model_dir or tiny_model, spec or make_spec()
        order = TrainingOrder(
            spec=pinning(spec, base) if pins else spec,
            model_dir=base,
            data_files={data.name: data} if isinstance(data, Path) else dict(data),
            output_dir=output,
            split_key="5b" * 32,
        )
        options = ["--processes", str(processes)]
        options += ["--plan-json", plan(output).model_dump_json()] if plan else []
        environment = {**os.environ, **({"PATH": path} if path else {}), **VARIABLES}
        instructions = TO_WORKER.encode(order)
        if ahead is not None:
            preparation = Preparation(spec=order.spec, model_dir=order.model_dir, output_dir=output)
            instructions = TO_WORKER.encode(preparation) + ahead + instructions
        if plan or started_anew:
            return _start(module, stdin or instructions, output, options, environment)
        server: ForkServer = request.getfixturevalue("stack_server")
        code, out, log, sent = fork_worker(server, stdin or instructions, options, environment)
        return _ended(code, sent, log, out, output)

    return run


def _start(
    module: str, stdin: bytes, output: Path, options: list[str], environment: dict[str, str]
) -> Ended:
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", module, "--events-fd", str(write), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(write,),
        env=environment,
        cwd=ROOT,
    ) as process:
        os.close(write)
        out, log = process.communicate(stdin, timeout=300)
        with os.fdopen(read, "rb") as events:
            sent = events.read()
    return _ended(process.returncode, sent, log, out, output)


def _ended(code: int, sent: bytes, log: bytes, out: bytes, output: Path) -> Ended:
    lines = sent.splitlines(keepends=True)
    assert all(len(line) <= MAX_MESSAGE_BYTES for line in lines)
    return Ended(
        code, tuple(FROM_WORKER.parse(line) for line in lines), sent, log.decode(), out, output
    )
