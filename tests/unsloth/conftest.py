"""The engine unsloth in the process of the tests, on a pretended GPU: `scripts/test --unsloth`.

unsloth patches torch, transformers and PEFT for the whole process, so these tests run in a process of their own,
without the other tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]

if find_spec("unsloth") is not None:
    # Before a test module imports Triton: what its own library is, compiled or interpreted, is settled then.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips these tests, with the reason, where they cannot run."""
    own = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = None
    if find_spec("unsloth") is None:
        reason = "unsloth is not installed here: scripts/test --unsloth"
    elif len(own) < len(items):
        reason = "unsloth patches the process for all other tests: scripts/test --unsloth"
    for item in own:
        # Those of unsloth's imports and patches.
        item.add_marker(pytest.mark.filterwarnings("ignore"))
        item.add_marker(pytest.mark.timeout(900))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def unsloth_loader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The engine, with the worker's environment variables, in this process."""
    import torch

    from tests.unsloth import pretended_gpu
    from tests.unsloth.measured_step import make_spec
    from trainer.worker.environment import worker_environment

    with pytest.MonkeyPatch.context() as patch:
        for name, value in worker_environment({}, tmp_path_factory.mktemp("scratch")).items():
            if name not in {"HOME", "TMPDIR"}:
                patch.setenv(name, value)
        pretended_gpu.install()
        torch.set_num_threads(1)
        from trainer.training.engines.choice import choose_engine

        yield choose_engine(make_spec("sft", "unsloth"))
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def models(
    tmp_path_factory: pytest.TempPathFactory, unsloth_loader: object, backend: Tokenizer
) -> Path:
    """A directory with a tiny random model of each architecture."""
    from transformers import PreTrainedTokenizerFast

    from tests.conftest import CHATML

    folder = tmp_path_factory.mktemp("models")
    tokenizer: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder / "tokenizer")
    _run_unpatched("models", folder)
    return folder


@pytest.fixture(scope="session")
def reference(models: Path) -> dict[tuple[str, bool], dict[str, Any]]:
    """What the engine transformers computes, in a process that unsloth has not patched."""
    import torch

    _run_unpatched("reference", models)
    found: dict[tuple[str, bool], dict[str, Any]] = torch.load(
        models / "reference.pt", weights_only=False
    )
    return found


def _run_unpatched(what: str, folder: Path) -> None:
    """Runs `tests/unsloth/measured_step.py` in a process of its own."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("UNSLOTH", "TRITON"))
    }
    command = [sys.executable, "-m", "tests.unsloth.measured_step", what, str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
