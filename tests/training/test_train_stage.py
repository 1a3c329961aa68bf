"""Which adapter is left by a training that ends with an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import trainer.training.stages.train as train_stage
from trainer.errors import ErrorCode, JobError
from trainer.spec import JobSpec

MakeSpec = Callable[..., JobSpec]


def diverge() -> None:
    raise JobError(ErrorCode.TRAINING_DIVERGED, "the loss is not finite")


@pytest.mark.parametrize(
    ("privacy", "last_finite_step", "is_saved"),
    [
        ({}, 2, True),
        ({}, 0, False),
        ({"audit": True, "canaries": 2}, 2, True),
        ({"canaries": 2, "max_exposure": 9.0}, 2, False),
        ({"audit": True, "max_membership_auc": 0.9}, 2, False),
    ],
)
def test_a_diverged_run_with_a_limit_leaves_no_adapter(
    privacy: dict[str, Any],
    last_finite_step: int,
    is_saved: bool,
    make_spec: MakeSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit is compared with an audit after training, and no audit follows a divergence."""
    saved: list[Path] = []
    monkeypatch.setattr(
        train_stage, "save_adapter", lambda _model, _section, target, **_: saved.append(target)
    )
    monkeypatch.setattr(train_stage, "copy_companions", lambda *_: None)
    trainer: Any = SimpleNamespace(run=diverge, last_finite_step=last_finite_step)
    inputs: Any = SimpleNamespace(
        spec=make_spec(privacy=privacy), output_dir=tmp_path, model_dir=tmp_path
    )
    loaded: Any = SimpleNamespace(model=None, initial_adapter=None)
    with pytest.raises(JobError) as caught:
        train_stage._run_trainer(trainer, inputs, loaded, SimpleNamespace())  # type: ignore[arg-type]
    assert caught.value.code is ErrorCode.TRAINING_DIVERGED
    assert saved == ([tmp_path / "adapter"] if is_saved else [])
