"""`POST /regrant`: taken while the supervisor waits for one, within bounds, and judged by the supervisor alone."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.errors import ErrorCode
from trainer.ipc.front_messages import OpenUpload, RegrantReady, StatusUpdate, UploadReady
from trainer.models import MAX_REGRANT_BYTES, Phase, Status

JSON = {"Content-Type": "application/json"}
WAITING = OpenUpload(accept=True, regrant=True)


@pytest.fixture
def waiting(start_front: Any) -> Any:
    """A front whose supervisor waits for a re-grant, after one that was refused."""
    front = start_front(evidence_burst=5, evidence_per_second=0.001)
    front.send(WAITING)
    front.enter(Phase.AWAITING_GRANT)
    refused = Status(phase=Phase.AWAITING_GRANT, error=ErrorCode.REGRANT_INVALID.value)
    front.send(StatusUpdate(status=refused))
    return front


def test_a_re_grant_lies_in_the_spool_before_the_supervisor_hears_of_it(waiting: Any) -> None:
    (waiting.spool / "regrant.json").mkdir()  # whatever somebody has made there
    with waiting.http() as http:
        assert http.post("/regrant", content=b'{"any":"thing"}', headers=JSON).status_code == 202
        waiting.expect(RegrantReady)
        assert (waiting.spool / "regrant.json").read_bytes() == b'{"any":"thing"}'
        assert http.get("/status").json()["error"] is None, (
            "the earlier refusal is not the verdict on this one"
        )
        second = http.post("/regrant", content=b"{}", headers=JSON)
        assert second.status_code == 409, "one at a time"
        assert second.json()["error"] == "wrong-phase"
    assert (waiting.spool / "regrant.json").read_bytes() == b'{"any":"thing"}'
    assert not waiting.received(UploadReady)


def test_what_is_too_large_or_of_another_kind_is_refused(waiting: Any) -> None:
    with waiting.http() as http:
        for length_is_known in (True, False):
            body = b"x" * (MAX_REGRANT_BYTES + 1)
            content = body if length_is_known else iter([body])
            answer = http.post("/regrant", content=content, headers=JSON)
            assert (answer.status_code, answer.json()["error"]) == (413, "request-invalid")
        assert http.post("/regrant", content=b"{}").status_code == 415
        assert (
            http.post("/regrant", content=b"x" * MAX_REGRANT_BYTES, headers=JSON).status_code == 202
        )
    waiting.expect(RegrantReady)


def test_re_grants_have_a_rate(waiting: Any) -> None:
    """Each has the supervisor open a header."""
    with waiting.http() as http:
        codes = []
        for _ in range(7):
            codes.append(http.post("/regrant", content=b"{}", headers=JSON).status_code)
            waiting.send(WAITING)
            waiting.enter(Phase.AWAITING_GRANT)
    assert codes == [202] * 5 + [429] * 2


@pytest.mark.parametrize(
    "message", [OpenUpload(accept=True), OpenUpload(accept=False, regrant=True)]
)
def test_only_while_the_supervisor_waits_for_one(message: OpenUpload, start_front: Any) -> None:
    front = start_front()
    front.send(message)
    front.enter(Phase.AWAITING_DATASET)
    with front.http() as http:
        answer = http.post("/regrant", content=b"{}", headers=JSON)
    assert (answer.status_code, answer.json()) == (
        409,
        {"error": "wrong-phase", "phase": "awaiting-dataset"},
    )
    assert not (front.spool / "regrant.json").exists()
