"""A run that is broken off anywhere and goes on from its checkpoint ends in the same bits as one that was not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.local_runs import Runs, same
from trainer.errors import ErrorCode, JobError
from trainer.spec import JobSpec
from trainer.training import checkpoint as checkpoint_module
from trainer.training.checkpoint import CheckpointWriter, SavedState, read_state
from trainer.training.events import CheckpointWritten, MetricsMeasured, TrainingEvent
from trainer.training.interruption import Interruption, Interrupts
from trainer.training.loss import CausalLoss
from trainer.training.methods.dpo import DirectPreferenceOptimization
from trainer.training.progress import TrainState

MakeSpec = Callable[..., JobSpec]


def pairs_file(path: Path) -> Path:
    rows = [
        {
            "prompt": f"What is {number}?",
            "chosen": "It is a number" + " indeed" * (number % 4),
            "rejected": "No idea." * (1 + number % 3),
        }
        for number in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PACKED: dict[str, dict[str, object]] = {
    "data": {"packing": True},
    "lora": {"lora_dropout": 0.2},
    "train": {
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "logging_steps": 3,
    },
}
PATIENT: dict[str, dict[str, object]] = {
    "train": {
        "eval_steps": 1, "early_stopping_patience": 2, "early_stopping_threshold": 10.0,
        "load_best_model_at_end": True, "learning_rate": 0.5,
    },
}  # fmt: skip
"""Learns so fast that it gets worse: it ends before its last step, with an earlier adapter."""


@pytest.mark.parametrize(
    "sections",
    [
        {},
        PACKED,
        {
            "train": {
                "optim": "adafactor",
                "eval_steps": 2,
                "neftune_noise_alpha": 5.0,
                "lr_scheduler_type": "cosine",
            }
        },
        {
            "train": {"optim": "sgd", "logging_steps": 4, "num_train_epochs": 1.0, "max_steps": -1},
            "data": {"mix": {"chat.jsonl": 1.2}},
        },
        {"privacy": {"audit": True, "audit_rows": 8, "canaries": 4, "canary_repetitions": 2}},
    ],
    ids=["plain", "packed", "adafactor", "sgd, mixed", "audited"],
)
def test_resumed_at_every_saved_step_is_bitwise_the_whole(
    runs: Callable[..., Runs], sections: dict[str, dict[str, object]]
) -> None:
    train = {"save_steps": 2, "max_steps": 6, **sections.get("train", {})}
    carry_out = runs(**{**sections, "train": train})
    whole = carry_out()
    assert whole.summary is not None
    assert set(whole.saved) == {*range(2, whole.summary.steps, 2), whole.summary.steps}
    for step, checkpoint in whole.saved.items():
        resumed = carry_out(checkpoint)
        same(resumed, whole)
        assert resumed.summary is not None
        assert resumed.summary.resumed_at == (step,)


def test_told_to_end_after_any_step_and_gone_on_with_again_and_again(
    runs: Callable[..., Runs],
) -> None:
    carry_out = runs(**PACKED)
    whole = carry_out()
    assert whole.saved == {}, "without save_steps there is a checkpoint at an interruption only"
    checkpoint: Path | None = None
    for step in (1, 2, 5):
        checkpoint = carry_out.stopped_after(step, checkpoint)
    resumed = carry_out(checkpoint)
    same(resumed, whole)
    assert resumed.summary is not None
    assert resumed.summary.resumed_at == (1, 2, 5)


def test_early_stopping_and_the_best_adapter_survive(runs: Callable[..., Runs]) -> None:
    carry_out = runs(train={**PATIENT["train"], "save_steps": 1})
    whole = carry_out()
    assert whole.summary is not None
    assert whole.summary.steps < 6
    assert any("stopped after step" in text for text in whole.summary.warnings)
    assert any("the adapter is that of step" in text for text in whole.summary.warnings)
    for checkpoint in whole.saved.values():
        same(carry_out(checkpoint), whole)


def test_a_signal_in_the_middle_of_a_step_gives_it_up(
    runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a step went through the model, with dropout and noise: as if it had not been begun."""
    sections = {**PACKED, "train": {**PACKED["train"], "neftune_noise_alpha": 5.0, "eval_steps": 2}}
    carry_out = runs(**sections)
    summed, calls, wanted, interrupts = CausalLoss.total_loss, 0, 0, Interrupts()

    def stopping(self: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        value = summed(self, batch)
        if calls == wanted:
            interrupts.arrive()
        return value

    monkeypatch.setattr(CausalLoss, "total_loss", stopping)
    whole = carry_out()
    total, seen = calls, set()
    for place in range(2, total + 1, 2):
        calls, wanted, interrupts = 0, place, Interrupts()
        stopped = carry_out(interrupts=interrupts)
        assert stopped.summary is None
        wanted = 0
        for step, checkpoint in stopped.saved.items():
            seen.add(step)
            same(carry_out(checkpoint), whole)
    assert seen >= {1, 3, 5, 6}


def test_preferences_survive(
    runs: Callable[..., Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the signal comes between the gradients of a step and the step: its pairs are measured once."""
    carry_out = runs(
        file=pairs_file(tmp_path / "pairs.jsonl"),
        lora={"lora_dropout": 0.2},
        train={
            "method": "dpo",
            "logging_steps": 4,
            "eval_steps": 3,
            "per_device_train_batch_size": 4,
        },
    )
    computed, calls, wanted, interrupts = (
        DirectPreferenceOptimization.compute_gradients,
        0,
        0,
        Interrupts(),
    )

    def stopping(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        value = computed(self, *arguments)
        if calls == wanted:
            interrupts.arrive()
        return value

    monkeypatch.setattr(DirectPreferenceOptimization, "compute_gradients", stopping)
    whole = carry_out()
    assert any("rewards_margins" in line for line in whole.curve)
    for place in range(2, calls + 1):
        calls, wanted, interrupts = 0, place, Interrupts()
        stopped = carry_out(interrupts=interrupts)
        wanted = 0
        ((step, checkpoint),) = stopped.saved.items()
        assert step == place - 1
        same(carry_out(checkpoint), whole)


def test_an_audited_run_does_not_go_on_from_one_that_drew_nothing(
    runs: Callable[..., Runs],
) -> None:
    """Other rows and canaries would be looked for than were trained on."""
    unaudited = runs(train={"save_steps": 2, "max_steps": 4})
    checkpoint = unaudited().saved[2]
    unaudited.spec = runs(privacy={"audit": True, "audit_rows": 8}).spec
    with pytest.raises(JobError) as caught:
        unaudited(checkpoint)
    assert caught.value.code is ErrorCode.CHECKPOINT_INVALID


def test_a_signal_behind_the_last_step_loses_nothing(
    runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out = runs(**PATIENT)
    whole = carry_out()
    interrupts = Interrupts()

    def stop(*_arguments: object, **_named: object) -> None:
        interrupts.arrive()

    with monkeypatch.context() as patched:
        patched.setattr("trainer.training.stages.train.save_adapter", stop)
        stopped = carry_out(interrupts=interrupts)
    (checkpoint,) = stopped.saved.values()
    same(carry_out(checkpoint), whole)


def test_before_the_first_step_there_is_nothing_to_keep(
    runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out = runs()

    def stop(message: TrainingEvent, interrupts: Interrupts) -> None:
        if isinstance(message, MetricsMeasured) and message.step == 0:
            interrupts.arrive()

    stopped = carry_out(watch=stop)
    assert stopped.summary is None
    assert stopped.saved == {}


def test_a_full_workspace_costs_the_checkpoint_and_not_the_run(
    runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out = runs(train={"save_steps": 2, "max_steps": 4})
    whole = carry_out()

    def full(*_arguments: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr("trainer.training.checkpoint.save_file", full)
    without = carry_out()
    assert without.saved == {}
    same(without, whole)
    assert list((without.output / "checkpoints").iterdir()) == []


def test_what_no_run_like_this_one_wrote_is_refused(
    runs: Callable[..., Runs], tmp_path: Path
) -> None:
    carry_out = runs(train={"max_steps": 2})
    checkpoint = carry_out.stopped_after(1)
    document = json.loads((checkpoint / "state.json").read_bytes())
    tensors = load_file(checkpoint / "state.safetensors")
    trained = dict(
        zip(
            document["parameters"],
            (tensors[f"adapter/{i}"] for i in range(len(tensors))),
            strict=False,
        )
    )
    assert read_state(checkpoint, trained).state.step == 1

    def broken(name: str, change: Callable[[Path], object]) -> None:
        copy = tmp_path / name
        shutil.copytree(checkpoint, copy)
        change(copy)
        with pytest.raises(JobError) as caught:
            read_state(copy, trained)
        assert caught.value.code is ErrorCode.CHECKPOINT_INVALID

    def rewrite(**keys: object) -> Callable[[Path], object]:
        return lambda copy: (copy / "state.json").write_text(json.dumps({**document, **keys}))

    def retensor(**changes: torch.Tensor) -> Callable[[Path], object]:
        renamed = {name.replace("_", "/"): value for name, value in changes.items()}
        return lambda copy: save_file({**tensors, **renamed}, copy / "state.safetensors")

    first = tensors["adapter/0"]
    broken("version", rewrite(version=2))
    broken("unknown-key", rewrite(pickle="gASVAA=="))
    broken("parameters", rewrite(parameters=document["parameters"][::-1]))
    broken("optimizer", rewrite(optimizer=[1, 2]))
    broken("no-tensor", rewrite(optimizer={"map": [["state", {"tensor": "nowhere"}]]}))
    broken("generators", rewrite(generators=2))
    broken("shape", retensor(adapter_0=first[:1].clone()))
    broken("dtype", retensor(adapter_0=first.to(torch.bfloat16)))
    broken("not-finite", retensor(adapter_0=torch.full_like(first, torch.nan)))
    broken("torn", lambda copy: (copy / "state.safetensors").write_bytes(b"\x80\x04."))
    broken("metrics", lambda copy: (copy / "metrics.jsonl").write_text('{"step": "1"}\n'))
    broken("missing", lambda copy: (copy / "metrics.jsonl").unlink())


def test_a_later_signal_changes_nothing_and_a_deferred_one_waits() -> None:
    interrupts = Interrupts()
    seen = []

    def work() -> None:
        with interrupts.deferred():
            with interrupts.deferred():
                interrupts.arrive()
                seen.append("inner")
            seen.append("outer")

    with pytest.raises(Interruption):
        work()
    assert seen == ["inner", "outer"]
    interrupts.arrive()
    with pytest.raises(KeyError), Interrupts().deferred():
        raise KeyError


def test_training_does_not_wait_for_a_state_to_be_sealed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The supervisor seals when its budget admits it, which may be a second later."""
    steps: list[int] = []

    def report(event: TrainingEvent) -> None:
        assert isinstance(event, CheckpointWritten)
        steps.append(event.step)

    writer = CheckpointWriter(
        tmp_path, (), SavedState((), (), ()), report=report, interrupts=Interrupts()
    )
    monkeypatch.setattr(checkpoint_module, "write_state", lambda *_: None)
    monkeypatch.setattr("trainer.training.checkpoint.time.sleep", lambda _seconds: remove(3))

    def save(step: int, *, is_last: bool = False) -> None:
        writer.save(cast("TrainState", SimpleNamespace(step=step)), is_last)

    def remove(step: int) -> None:
        (tmp_path / "checkpoints" / str(step)).rmdir()

    save(1)
    save(2)
    remove(1)
    save(3)
    assert steps == [1, 3], "nothing was waited for"
    save(4, is_last=True)
    assert steps == [1, 3, 4], "the last one waits"
