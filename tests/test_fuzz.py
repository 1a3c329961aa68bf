"""A short run of the fuzzer, the findings of the long ones, and that the fuzzer itself notices what it should."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm

SCRIPTS = Path(__file__).parents[1] / "scripts"
INPUTS = 4000


@pytest.fixture(scope="module")
def fuzz() -> Iterator[Any]:
    """The fuzzer's modules; its table of targets is `fuzz_targets`."""
    before = sys.path[:]
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield importlib.import_module("fuzz")
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def sessions(fuzz: Any) -> Any:
    """A short run over all targets."""
    return fuzz.fuzz(fuzz.TARGETS, INPUTS, seconds=None, seed=3, quiet=True)


def test_no_parser_breaks_its_word(sessions: Any) -> None:
    assert [finding for session in sessions for finding in session.findings.values()] == []
    assert sum(session.inputs for session in sessions) >= INPUTS


@pytest.mark.usefixtures("vectors")
def test_every_parser_accepts_an_honest_input(fuzz: Any, sessions: Any) -> None:
    """Only a real VM's configuration names an image's measurements: without the vectors one target has none."""
    accepted = {session.target.name for session in sessions if session.accepted}
    assert accepted == {each.name for each in fuzz.TARGETS}


def target(fuzz: Any, run: Any) -> Any:
    return fuzz.Target("made", "bytes", lambda: [b"abcdefgh" * 8], run)


def misbehaves(data: bytes) -> None:
    if b"c" not in data:
        raise ValueError("documented")
    if b"e" in data:
        raise UnsupportedAlgorithm("not documented")


def test_an_undocumented_exception_is_found_and_minimised(
    fuzz: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "TARGETS", (target(fuzz, misbehaves),))
    assert fuzz.main(["--inputs", "20", "--quiet"]) == 1
    text = capsys.readouterr().out
    assert "FINDING made: UnsupportedAlgorithm" in text
    assert "input (2 bytes): 6365" in text
    assert "Traceback" in text


def test_a_slow_answer_is_found(fuzz: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = importlib.import_module("fuzz_session")
    monkeypatch.setattr(session, "SLOW_SECONDS", 0.05)

    spent = 0.0

    def slow(data: bytes) -> None:
        nonlocal spent
        spent += 0.2

    monkeypatch.setattr(session, "time", SimpleNamespace(process_time=lambda: spent))
    made = session.Session(target(fuzz, slow))
    made.feed(b"x")
    assert [finding.problem for finding in made.findings.values()] == ["0.2 s"]


def test_the_same_seed_gives_the_same_inputs(fuzz: Any) -> None:
    def inputs(seed: int) -> list[bytes]:
        seen: list[bytes] = []
        made = target(fuzz, seen.append)
        fuzz.fuzz((made,), 50, seconds=None, seed=seed, quiet=True)
        return seen

    assert inputs(1) == inputs(1)
    assert inputs(1) != inputs(2)


def test_each_form_is_mutated_and_never_beyond_its_limit(fuzz: Any) -> None:
    mutations = importlib.import_module("fuzz_mutations")
    for form in mutations.FORMS:
        rng = random.Random(5)
        data = (
            b'{"a": [1, "00ff00ff", "x\\ny"], "b": {}}\n-----BEGIN X-----\nAAAA\n-----END X-----\n'
        )
        made = [mutations.mutate(data, form, rng, [data, b""]) for _ in range(300)]
        assert len(set(made)) > 150
        assert max(map(len, made)) <= mutations.MAX_BYTES
