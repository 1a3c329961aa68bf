"""The script that brings a GPU's evidence, as far as a machine without one can run it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.older_torch import accept_grouped_queries
from benchmarks.training_gpu import contend, count_waits, measured, write_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "gpu_evidence", ROOT / "scripts" / "gpu_evidence.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_evidence"] = module
    spec.loader.exec_module(module)
    return module


def test_the_notice_that_the_mode_is_a_prototype_is_no_wait() -> None:
    notice = (
        "Synchronization debug mode is a prototype feature and does not yet detect all "
        "synchronizing operations"
    )
    assert (
        count_waits(
            [notice, "called a synchronizing CUDA operation (Triggered internally at …)", "other"]
        )
        == 1
    )


def test_a_torch_without_the_flag_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import varlen

    given: list[object] = []

    def older(query: object, *, window_size: object) -> None:
        given.append((query, window_size))

    newer = varlen.varlen_attn
    accept_grouped_queries()
    assert varlen.varlen_attn is newer
    monkeypatch.setattr(varlen, "varlen_attn", older)
    accept_grouped_queries()
    varlen.varlen_attn("q", window_size=(-1, 0), enable_gqa=True)  # type: ignore[arg-type,call-arg]
    assert given == [("q", (-1, 0))]


def test_the_wheels_are_those_of_the_locks(script: ModuleType) -> None:
    entries = script.locked_entries()
    assert set(entries) == script.PACKAGES
    assert all("--hash=sha256:" in entry and "\n#" not in entry for entry in entries.values())
    assert not {"torch", "numpy", "triton"} & set(entries)


def test_what_fails_or_has_no_time_is_written_down_and_the_rest_goes_on(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = {
        "tiny ours": {"tokens_per_second": 7.5},
        "tiny unsloth": {"skipped": "unsloth is not installed"},
    }
    made = [
        script.Part("one", ("-c", f"print({json.dumps(json.dumps(figures))!s})", "--json"), 60),
        script.Part("two", ("-c", "raise SystemExit('broken')"), 60),
        script.Part("three", ("-c", "pass"), 1),
    ]
    monkeypatch.setattr(script, "parts", lambda _device: made)
    monkeypatch.setattr(script, "describe_machine", lambda: {"gpu": None})
    assert script.measure(tmp_path, None, "cpu", 100) == 1
    evidence = json.loads((tmp_path / "evidence.json").read_bytes())
    outcomes = {name: result["outcome"] for name, result in evidence["parts"].items()}
    assert outcomes == {"one": "done", "two": "failed", "three": "not run"}
    page = (tmp_path / "evidence.md").read_text()
    assert capsys.readouterr().out == page + "\n"
    for expected in ("tokens_per_second 7.5", "unsloth is not installed", "broken", "no time left"):
        assert expected in page


def test_the_training_step_takes_its_whole_way_on_a_cpu(tmp_path: Path) -> None:
    """From random weights to figures, in this process: what the benchmark does in one for each contender."""
    figures = contend("ours", write_model("tiny", tmp_path, "cpu"), "tiny", "cpu")
    assert figures["tokens_per_second"] > 0
    assert figures["peak_gib"] > 0
    assert figures["copies_per_step"] == figures["waits_per_step"] == 0


def test_a_peer_that_is_not_installed_is_left_out_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    options = argparse.Namespace(device="cpu", peak_tflops=1.0)
    assert measured("unsloth", Path("/nowhere"), "tiny", options) == {
        "skipped": "unsloth is not installed"
    }
