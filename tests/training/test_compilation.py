"""A compiled model learns what it learns uncompiled; few things are compiled; what cannot be is said at once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.training.conftest import compiles
from tests.training.local_runs import Runs, same
from tests.training.test_loss import BATCH, EXAMPLES, KNOWN, SIZES, adapted, compare, make_loss
from tests.worker.test_dpo_worker import pair, write
from trainer.errors import ErrorCode, ExitCode, JobError
from trainer.ipc.worker_messages import Confined, Failed, Finished
from trainer.sandbox.plan import Role, SandboxPlan
from trainer.sandbox.properties import SandboxProperty
from trainer.sandbox.syscalls import SUPPORTED
from trainer.spec import JobSpec, TrainSection
from trainer.training.compilation import Compilation, report_compile_errors, require_compiler
from trainer.training.token_store import single_batch

RunWorker = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]
CPU = torch.device("cpu")
PLAIN, GRAPHS = Compilation("default", graphs=False), Compilation("reduce-overhead", graphs=True)


@pytest.fixture(autouse=True)
def _as_new(kernels: None) -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replays what torch traced; `scripts/soak compilation` generates and compiles code from it as well.

    The C++ compiler takes most of the time. `test_a_whole_order_behind_walls` always calls it, in another process.
    """
    if not os.environ.get("SOAK_COMPILATION"):
        monkeypatch.setattr(
            nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager")
        )
        monkeypatch.setattr("trainer.training.stages.prepare.require_compiler", lambda: None)


def llama(layers: int = 2) -> Any:
    """Two layers, because the first is compiled apart from the others."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**SIZES, "num_hidden_layers": layers})
    return adapted(LlamaForCausalLM(config))  # type: ignore[no-untyped-call]


@compiles
@pytest.mark.parametrize(
    ("compilation", "layers"), [(PLAIN, 2), (GRAPHS, 1)], ids=["layers", "whole"]
)
def test_loss_and_gradients_are_those_of_the_model(compilation: Compilation, layers: int) -> None:
    """`GRAPHS` as on a GPU, as far as a CPU goes: in one piece, and padded to few shapes."""
    compare(llama(layers), f"selected, compiled ({compilation.mode})", compilation=compilation)


@compiles
def test_of_a_model_that_caps_its_logits_as_well() -> None:
    """Its two kinds of layers, once each."""
    sizes = {**SIZES, "num_hidden_layers": 2, "head_dim": 8}
    torch.manual_seed(0)
    model: Any = Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=2.0))  # type: ignore[no-untyped-call]
    assert len(set(model.config.layer_types)) == 2
    compare(adapted(model), "whole, compiled (default)", compilation=PLAIN)


@compiles
def test_with_results_that_are_made_again_going_backward() -> None:
    model = llama()
    model.get_base_model().gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    compare(model.train(), "selected, compiled (default)", compilation=PLAIN)


@compiles
def test_few_things_are_compiled_however_many_shapes_there_are() -> None:
    model = llama().train()
    loss = make_loss(model, compilation=PLAIN)
    sizes = [
        EXAMPLES[first:last] for first, last in itertools.combinations(range(len(EXAMPLES) + 1), 2)
    ]
    for examples in sizes[::2]:
        loss.total_loss(single_batch(examples, CPU)).backward()  # type: ignore[no-untyped-call]
    assert counters["stats"]["unique_graphs"] <= 4, (
        "the first layer and the others, one row and several"
    )
    for _ in range(2):
        with loss.evaluating():
            expected = loss.total_loss(BATCH)
        with loss.adapter_disabled():
            assert not torch.allclose(loss.total_loss(BATCH), expected)
    assert counters["stats"]["unique_graphs"] <= 6
    assert not counters["graph_break"]


def test_shapes_where_graphs_are_replayed() -> None:
    assert [GRAPHS.padded_shape(rows, 100) for rows in (1, 2, 3, 5, 8)] == [
        (n, 128) for n in (1, 2, 4, 8, 8)
    ]
    assert {GRAPHS.padded_shape(4, width) for width in range(1, 2049)} == {
        (4, 64 * n) for n in range(1, 33)
    }
    assert GRAPHS.cost([10, 20, 70]) == 4 * 128
    assert PLAIN.padded_shape(3, 70) == (3, 70)
    assert PLAIN.cost([10, 20, 70]) == 3 * 70


def test_a_batch_in_a_larger_rectangle() -> None:
    ids, places = BATCH.padded(7)
    larger, moved = BATCH.padded(7, GRAPHS.padded_shape)
    assert larger.shape == (8, 64)
    assert torch.equal(larger[: len(ids), : ids.shape[1]], ids)
    assert torch.equal(larger.flatten()[moved], ids.flatten()[places])
    assert int((larger != 7).sum()) == int((ids != 7).sum())


def test_who_compiles_and_where_graphs_are_replayed() -> None:
    def wanted(device: str, **train: object) -> Compilation | None:
        return Compilation.from_section(TrainSection(**train), torch.device(device))  # type: ignore[arg-type]

    assert wanted("cpu") is None
    assert wanted("cuda", torch_compile=True) == Compilation("default", graphs=False)
    assert wanted("cuda", torch_compile=True, torch_compile_mode="max-autotune") == Compilation(
        "max-autotune", graphs=True
    )
    assert wanted("cpu", torch_compile=True, torch_compile_mode="reduce-overhead") == Compilation(
        "reduce-overhead", graphs=False
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_model_that_cannot_be_compiled_whole_is_refused() -> None:
    """Why job specs may not say `use_dora` with `torch_compile`; if this fails, they may."""
    torch.manual_seed(0)
    loss = make_loss(adapted(KNOWN["llama"](), use_dora=True), compilation=PLAIN)
    with pytest.raises(JobError) as caught, report_compile_errors():
        loss.total_loss(BATCH)
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
    assert caught.value.hint is not None
    assert "train.torch_compile" in caught.value.hint
    assert "modeling_llama" in str(caught.value.__cause__)
    assert "modeling_llama" not in str(caught.value), (
        "what the library says goes into the private log"
    )


def test_a_model_that_is_compiled_too_often_is_refused() -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    part: Any = Sum()
    part.compile(fullgraph=True, dynamic=False, backend="eager", recompile_limit=1)
    part(torch.ones(2))
    with pytest.raises(JobError) as caught, report_compile_errors():
        part(torch.ones(3))
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


def test_headers_that_are_missing_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(JobError) as caught:
        require_compiler()
    assert "no Python.h" in str(caught.value)


def test_without_a_compiler_a_job_ends_at_once(
    run_worker: RunWorker, make_spec: MakeSpec, chat_file: Path
) -> None:
    ended = run_worker(chat_file, make_spec(train={"torch_compile": True}), path="/nonexistent")
    assert ended.code == ExitCode.JOB, ended.log
    (failed,) = ended.messages
    assert isinstance(failed, Failed)
    assert failed.code is ErrorCode.ENGINE_UNAVAILABLE
    assert failed.found == "no g++"
    assert failed.hint is not None
    assert "train.torch_compile" in failed.hint


@compiles
@pytest.mark.skipif(not SUPPORTED, reason="system call filters are written for x86-64")
def test_a_whole_order_behind_walls(
    run_worker: RunWorker, make_spec: MakeSpec, chat_file: Path, tiny_model: Path
) -> None:
    """With a plan as the supervisor makes it: kernels go into the output directory's scratch and are gone."""

    def plan(output: Path) -> SandboxPlan:
        readable = (tiny_model, chat_file)
        return SandboxPlan(role=Role.WORKER, readable=readable, writable=(output,), programs=True)

    def order(**compiled: object) -> JobSpec:
        return make_spec(train={"max_steps": 4, "eval_steps": 2, **compiled}, output={"samples": 1})

    uncompiled = run_worker(chat_file, order())
    compiled = order(torch_compile=True, torch_compile_mode="reduce-overhead")
    ended = run_worker(chat_file, compiled, plan=plan)
    assert ended.code == ExitCode.DONE, ended.log
    confined, *_, finished = ended.messages
    assert isinstance(confined, Confined)
    assert confined.sandbox[SandboxProperty.WORKER_NO_NETWORK]
    assert not confined.sandbox[SandboxProperty.WORKER_NO_PROGRAMS]
    assert isinstance(finished, Finished)
    summary: dict[str, Any] = dict(finished.summary)
    assert summary["environment"]["forward"] == "selected, compiled (reduce-overhead)"
    losses = "eval_loss_before", "eval_loss_after", "train_loss"
    expected = dict(uncompiled.messages[-1].summary)
    assert [summary[name] for name in losses] == pytest.approx(
        [expected[name] for name in losses], rel=1e-3
    )
    assert summary["eval_loss_after"] < summary["eval_loss_before"]
    assert summary["warnings"] == [
        "train.torch_compile_mode reduce-overhead is default here: no GPU replays graphs"
    ]
    assert summary["seconds"]["compile"] > 0
    assert sorted(path.name for path in ended.output_dir.iterdir()) == ["adapter", "report"]


@compiles
def test_the_same_curve_as_uncompiled(runs: Callable[..., Runs], tmp_path: Path) -> None:
    """Of preference training, which runs the model without its adapter as well."""
    rows = write(tmp_path / "pairs.jsonl", [pair(number) for number in range(24)])

    def curve(**train: object) -> list[float]:
        train = {"method": "dpo", "max_steps": 3, "engine": "transformers", **train}
        went = runs(rows, train=train, output={"samples": 0})()
        return [value for line in went.curve for name, value in line.items() if "loss" in name]

    assert curve(torch_compile=True) == pytest.approx(curve(), rel=1e-3)


@compiles
def test_a_compiled_run_that_goes_on_is_bitwise_the_whole(runs: Callable[..., Runs]) -> None:
    """Noise included. What evaluation and samples do between the steps, the uncompiled runs show."""
    train = {"save_steps": 2, "max_steps": 4, "torch_compile": True}
    nothing_else: dict[str, Any] = {"data": {"test_split_size": 0.0}, "output": {"samples": 0}}
    carry_out = runs(train=train, lora={"lora_dropout": 0.2}, **nothing_else)
    whole = carry_out()
    torch._dynamo.reset()
    same(carry_out(whole.saved[2]), whole)
