"""A short run of `scripts/fuzz_http.py`, and that it notices a server that breaks its word."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response
from fastapi.responses import JSONResponse

from trainer.front.http.dataset_routes import DatasetRoutes
from trainer.front.http.job_routes import JobRoutes
from trainer.front.http.result_routes import ResultRoutes

SCRIPTS = Path(__file__).parents[3] / "scripts"
REQUESTS = 3000


@pytest.fixture(scope="module")
def fuzz() -> Iterator[Any]:
    before = sys.path[:]
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield importlib.import_module("fuzz_http")
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def cases(fuzz: Any) -> Any:
    """Drawn once for all tests of this file."""
    return fuzz.Cases(asyncio.run(fuzz.document()), 1)


def fire(
    fuzz: Any, cases: Any, stage: str, requests: int, *, tls: bool = False, seed: int = 3
) -> Any:
    (chosen,) = (each for each in fuzz.STAGES if each.name == stage)
    work = fuzz.fuzz_stage(chosen, requests, cases, seed, tls=tls, tell=lambda _: None)
    return asyncio.run(work)


def test_no_answer_but_documented_ones_in_any_phase(fuzz: Any, cases: Any) -> None:
    outcomes = [
        fire(fuzz, cases, stage.name, -(-REQUESTS // len(fuzz.STAGES))) for stage in fuzz.STAGES
    ]
    assert {outcome.stage: outcome.findings for outcome in outcomes if outcome.findings} == {}
    assert sum(outcome.requests for outcome in outcomes) >= REQUESTS
    assert sum(outcome.mutated for outcome in outcomes) > REQUESTS / 10
    statuses = fuzz.summary(outcomes)["statuses"]
    assert {"200", "201", "204", "400", "404", "405", "409", "412", "415", "503"} <= set(statuses)
    assert {stage.phase for stage in fuzz.STAGES} == set(
        importlib.import_module("trainer.models").Phase
    )


def test_over_tls(fuzz: Any, cases: Any) -> None:
    outcome = fire(fuzz, cases, "uploading", 120, tls=True)
    assert (outcome.requests, outcome.findings) == (120, {})


async def leaks(self: Any) -> Response:
    raise ValueError("a row of the dataset")


async def undocumented(self: Any) -> Response:
    return JSONResponse({"error": "not-found"}, status_code=418)


async def wordy(self: Any) -> Response:
    return JSONResponse({"error": "wrong-phase", "detail": "/srv/spool"}, status_code=409)


async def other_code(self: Any) -> Response:
    return JSONResponse({"error": "out-of-memory"}, status_code=409)


async def talks(self: Any) -> Response:
    return Response(status_code=204, headers={"X-Debug": "KeyError in job.py"})


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (leaks, "private log: request failed: ValueError"),
        (undocumented, "Received: 418"),
        (wordy, "error body"),
        (other_code, "409 with 'out-of-memory'"),
        (talks, "unknown header x-debug"),
    ],
)
def test_a_server_that_breaks_its_word_is_found(
    fuzz: Any, cases: Any, monkeypatch: pytest.MonkeyPatch, broken: Any, words: str
) -> None:
    monkeypatch.setattr(JobRoutes, "acknowledge", broken)
    findings = fire(fuzz, cases, "training", 170).findings
    assert any(words in finding for finding in findings), findings


def test_a_reflected_header_is_found(
    fuzz: Any, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = importlib.import_module("http_verdict")
    judge = verdict.Judge({"paths": {}}, ("spool-1",))
    headers = {"cache-control": ["no-store"], "x-content-type-options": ["nosniff"]}

    def words(body: bytes, *, token: bool = False) -> list[str]:
        found: list[str] = judge.by_words(
            "GET", "/", verdict.Answer(200, headers, body), token=token
        )
        return found

    assert words(b"fine") == []
    for leak in (
        b"canary-9f31c7",
        b"in spool-1",
        b"KeyError",
        b'File "x", line 1',
        b"5c" * 32,
        b"ac" * 32,
        verdict.AUTHORIZATION.encode(),
        verdict.PRIVATE.encode(),
    ):
        assert words(leak) != [], leak
    assert words(verdict.PRIVATE.encode(), token=True) == []


def test_accepting_what_is_malformed_is_found(
    fuzz: Any, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def offset(self: Any, upload_id: str) -> Response:
        return Response(status_code=200, headers={"Upload-Offset": "0", "Upload-Length": "1"})

    monkeypatch.setattr(DatasetRoutes, "offset", offset)
    findings = fire(fuzz, cases, "training", 170).findings
    assert any(
        finding.startswith("HEAD /dataset/{upload_id}: AcceptedNegativeData")
        for finding in findings
    )


def test_a_private_event_without_the_token_is_found(
    fuzz: Any, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobRoutes, "_bearer_token", lambda self, authorization: fuzz.TOKEN)
    findings = fire(fuzz, cases, "training", 170).findings
    assert any("a private event without the token" in finding for finding in findings)


def test_the_same_seed_gives_the_same_run(fuzz: Any, cases: Any) -> None:
    first, again = (fire(fuzz, cases, "opening", 60, seed=5) for _ in range(2))
    assert first.statuses == again.statuses


def test_goes_on_after_the_stages_that_are_done(
    fuzz: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = tmp_path / "progress.json"
    call = ["--requests", "5", "--stage", "done", "--quiet", "--json", "--save", str(save)]
    assert fuzz.main(call) == 0
    assert json.loads(capsys.readouterr().out)["requests"] == 5
    monkeypatch.setattr(ResultRoutes, "result", leaks)  # nothing is asked again
    assert fuzz.main(call) == 0
    assert [row["stage"] for row in json.loads(save.read_text())] == ["done"]
