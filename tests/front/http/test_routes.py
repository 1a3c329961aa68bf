"""Every route, in every phase, as a stranger sees it."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
from typing import Any

import httpx

from tests.front.conftest import ACKNOWLEDGEMENT
from trainer.errors import ErrorCode
from trainer.exchange.limits import DELETION_TYPE
from trainer.exchange.upload_authorization import UploadScope
from trainer.exchange.withdrawal import Withdrawal, sign_withdrawal
from trainer.ipc.front_messages import (
    Acknowledged,
    DeletionReady,
    EvidenceReply,
    EvidenceRequest,
    OpenUpload,
    PrivateEvent,
    ResultReady,
    StatusUpdate,
    TokenHashes,
    WithdrawalReceived,
)
from trainer.models import Phase, Status
from trainer.provider_keys import ProviderKey

NONCE = "ab" * 32
TOKEN = "5c" * 32
TUS = {"Tus-Resumable": "1.0.0"}
ACKNOWLEDGES = {"Authorization": f"Bearer {ACKNOWLEDGEMENT}"}
ORDINARY = {"content-type", "content-length", "cache-control", "x-content-type-options"}


def test_answers_evidence_over_the_nonce(front: Any) -> None:
    with front.http() as http:
        answer = http.get("/attestation", params={"nonce": NONCE})
    assert answer.status_code == 200
    assert answer.json() == {"nonce": NONCE}
    assert set(answer.headers) == ORDINARY


def test_refuses_a_malformed_nonce_without_asking(front: Any) -> None:
    with front.http() as http:
        for nonce in ["", "AB" * 32, "ab" * 31, "ab" * 33, "zz" * 32, "ab" * 32 + "\n"]:
            answer = http.get("/attestation", params={"nonce": nonce})
            assert (answer.status_code, answer.json()) == (400, {"error": "request-invalid"})
    assert front.received(EvidenceRequest) == []


def test_evidence_error_and_timeout(front: Any) -> None:
    front.silent = True
    with front.http() as http:
        answer = http.get("/attestation", params={"nonce": NONCE})
        assert (answer.status_code, answer.json()) == (503, {"error": "timeout"})
        # A late or made-up answer changes nothing; the next question has its own number.
        front.send(EvidenceReply(id=1, evidence="late", error=None))
        front.silent = False
        assert http.get("/attestation", params={"nonce": NONCE}).json() == {"nonce": NONCE}


def test_evidence_code_of_the_supervisor(start_front: Any) -> None:
    front = start_front(evidence_seconds=5.0)
    front.silent = True

    def fail() -> None:
        asked = front.expect(EvidenceRequest)
        front.send(EvidenceReply(id=asked.id + 7, evidence="for someone else", error=None))
        front.send(
            EvidenceReply(id=asked.id, evidence=None, error=ErrorCode.GUEST_AGENT_UNAVAILABLE)
        )

    supervisor = threading.Thread(target=fail)
    supervisor.start()
    with front.http() as http:
        answer = http.get("/attestation", params={"nonce": NONCE})
    supervisor.join()
    assert (answer.status_code, answer.json()) == (503, {"error": "guest-agent-unavailable"})


def test_evidence_is_rate_limited(start_front: Any) -> None:
    front = start_front(evidence_burst=2, evidence_per_second=0.01)
    with front.http() as http:
        answers = [http.get("/attestation", params={"nonce": NONCE}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json() == {"error": "too-many-requests"}
    assert 90 < int(answers[2].headers["retry-after"]) <= 101


def test_status(front: Any) -> None:
    front.send(
        StatusUpdate(status=Status(phase=Phase.TRAINING, step=3, total_steps=9, eta_seconds=60))
    )
    front.enter(Phase.FAILED)
    front.send(
        StatusUpdate(status=Status(phase=Phase.FAILED, error="out-of-memory", result_bytes=7))
    )
    with front.http() as http:
        for _ in range(100):
            body = http.get("/status").json()
            if body["error"]:
                break
    assert body == {
        "phase": "failed", "step": 0, "total_steps": 0, "activity": None, "percent": None,
        "eta_seconds": None, "error": "out-of-memory", "result_bytes": 7, "received": [], "withdrawn": [],
        "retained": [],
    }  # fmt: skip


def test_unknown_paths_and_methods(front: Any) -> None:
    for method, path, status in [
        ("GET", "/", 404), ("GET", "/docs", 404), ("GET", "/redoc", 404), ("GET", "/metrics", 404),
        ("GET", "/status/", 404), ("GET", "/result/x", 404), ("GET", "/dataset/../status", 404),
        ("DELETE", "/status", 405), ("PUT", "/dataset", 405), ("GET", "/ack", 405), ("TRACE", "/", 404),
    ]:  # fmt: skip
        connection = http.client.HTTPSConnection("127.0.0.1", front.ready.port)
        connection.sock = front.connect()
        connection.request(method, path)
        answer = connection.getresponse()
        body = json.loads(answer.read())
        assert (answer.status, body) == (
            status,
            {"error": "not-found" if status == 404 else "request-invalid"},
        )
        connection.close()


def test_each_phase_offers_only_its_routes(start_front: Any) -> None:
    front = start_front(evidence_burst=100)
    for phase in [
        *(phase for phase in Phase if phase is not Phase.AWAITING_PULL),
        Phase.AWAITING_PULL,
    ]:
        open_now = phase in {Phase.AWAITING_DATASET, Phase.AWAITING_GRANT}
        if phase is Phase.AWAITING_PULL:
            front.publish_result(b"sealed")
        front.enter(phase, accept=open_now)
        with front.http() as http:
            check_phase(http, phase, open_now, has_result=phase is Phase.AWAITING_PULL)


def check_phase(http: httpx.Client, phase: Phase, open_now: bool, has_result: bool) -> None:
    assert http.get("/status").json()["phase"] == phase
    assert http.get("/attestation", params={"nonce": NONCE}).status_code == 200
    answers = [
        (http.post("/dataset", headers={**TUS, "Upload-Length": "10"}), open_now, 201),
        (http.get("/result"), has_result, 200),
        (http.post("/ack", headers=ACKNOWLEDGES), has_result, 204),
    ]
    for answer, offered, status in answers:
        if offered:
            assert answer.status_code == status
        else:
            said = {"error": "wrong-phase", "phase": phase.value}
            assert (answer.status_code, answer.json()) == (409, said), "it says whose turn it is"


def test_acknowledged_once(front: Any) -> None:
    front.publish_result(b"sealed")
    with front.http() as http:
        assert [http.post("/ack", headers=ACKNOWLEDGES).status_code for _ in range(3)] == [204] * 3
    assert front.expect(Acknowledged).acknowledgement == ACKNOWLEDGEMENT
    front.enter(Phase.DONE)
    assert len(front.received(Acknowledged)) == 1


def test_after_a_refused_dataset_nothing_of_its_grant_holds_for_the_next(front: Any) -> None:
    """Its report is still served, and acknowledged at once: a job that goes on signs no deletion statement."""
    front.send(
        TokenHashes(sha256=(hashlib.sha256(TOKEN.encode()).hexdigest(),)),
        PrivateEvent(sealed="c2VhbGVk"),
    )
    front.publish_result(b"a report", final=False)
    front.enter(Phase.AWAITING_DATASET, accept=True)
    with front.http() as http:
        assert http.get("/result").content == b"a report"
        asks = {**ACKNOWLEDGES, "Accept": DELETION_TYPE}
        assert [http.post("/ack", headers=asks).status_code for _ in range(2)] == [204, 204]
        events = http.stream("GET", "/events", headers={"Authorization": f"Bearer {'00' * 32}"})
        with events as others:  # not yet known, so neither right nor wrong
            assert others.status_code == 200
            assert (
                next(line for line in others.iter_lines() if line.startswith("event"))
                == "event: status"
            )
        front.publish_result(b"the result")
        front.enter(Phase.AWAITING_PULL)
        assert http.post("/ack", headers=ACKNOWLEDGES).status_code == 204
    assert front.expect(Acknowledged, count=2).acknowledgement == ACKNOWLEDGEMENT


def test_a_stranger_cannot_acknowledge(front: Any) -> None:
    """An acknowledgement ends the job: whoever reaches the port could take a finished result from its provider."""
    front.send(TokenHashes(sha256=(hashlib.sha256(TOKEN.encode()).hexdigest(),)))
    front.publish_result(b"sealed")
    with front.http() as http:
        for shown in [
            None, "", f"Bearer {TOKEN}", "Bearer", ACKNOWLEDGEMENT, f"Basic {ACKNOWLEDGEMENT}", "Bearer \xe9",
            f"Bearer {ACKNOWLEDGEMENT[:-1]}", f"Bearer {ACKNOWLEDGEMENT.upper()}",
        ]:  # fmt: skip
            headers = {} if shown is None else {"Authorization": shown.encode("latin1")}
            answer = http.post("/ack", headers=headers)
            assert (answer.status_code, answer.json()) == (401, {"error": "unauthorized"}), shown
            assert answer.headers["www-authenticate"] == "Bearer"
        assert front.received(Acknowledged) == []
        assert http.post("/ack", headers=ACKNOWLEDGES).status_code == 204
    front.expect(Acknowledged)


def test_the_deletion_statement_is_served_as_long_as_the_result(front: Any) -> None:
    front.publish_result(b"sealed")
    accept = {"Accept": DELETION_TYPE}
    with front.http() as http:
        assert http.get("/deletion").status_code == 409
        front.send(DeletionReady(statement='{"acknowledged":false}', acknowledged=False))
        front.enter(Phase.AWAITING_PULL)
        assert http.get("/deletion").text == '{"acknowledged":false}'
        front.send(DeletionReady(statement='{"acknowledged":true}', acknowledged=True))
        front.enter(Phase.AWAITING_PULL)
        assert (
            http.post("/ack", headers={**accept, **ACKNOWLEDGES}).text == '{"acknowledged":true}'
        ), "the one signed after it"
        assert http.get("/deletion").text == '{"acknowledged":true}'


def test_result_ranges(front: Any) -> None:
    content = bytes(range(256)) * 4000
    digest = front.publish_result(content)
    etag = f'"{digest}"'
    with front.http() as http:
        whole = http.get("/result")
        assert (whole.status_code, whole.content, whole.headers["etag"]) == (200, content, etag)
        assert http.get("/result", headers={"If-None-Match": etag}).status_code == 304
        for asked, start, end in [("0-0", 0, 1), ("5-9", 5, 10), ("1000000-", 1000000, None), ("-7", -7, None),
                                  ("0-99999999", 0, None), ("-99999999", 0, None)]:  # fmt: skip
            part = http.get("/result", headers={"Range": f"bytes={asked}", "If-Range": etag})
            assert (part.status_code, part.content) == (206, content[start:end]), asked
        part = http.get("/result", headers={"Range": "bytes=5-9"})
        assert part.headers["content-range"] == f"bytes 5-9/{len(content)}"


def test_result_ranges_out_of_the_ordinary(front: Any) -> None:
    front.publish_result(bytes(1024))
    with front.http() as http:
        for asked in ["bytes=1024-", "bytes=-0", "bytes=99999-999999"]:
            answer = http.get("/result", headers={"Range": asked})
            assert (answer.status_code, answer.json()) == (416, {"error": "request-invalid"}), asked
            assert answer.headers["content-range"] == "bytes */1024"
        for asked in [
            "bytes=0-1,3-4",
            "bytes=-",
            "bytes=9-3",
            "rows=1-2",
            "bytes=a-b",
            "bytes= 1-2",
        ]:
            answer = http.get("/result", headers={"Range": asked})
            assert (answer.status_code, len(answer.content)) == (200, 1024), asked


def test_result_if_range_of_another_file(front: Any) -> None:
    front.publish_result(bytes(1024))
    with front.http() as http:
        answer = http.get(
            "/result", headers={"Range": "bytes=5-9", "If-Range": '"' + "0" * 64 + '"'}
        )
    assert (answer.status_code, len(answer.content)) == (200, 1024)


def read_events(answer: httpx.Response, count: int) -> list[dict[str, str]]:
    events: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        if line == "" and fields:
            events.append(fields)
            fields = {}
            if len(events) == count:
                break
        elif ": " in line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
    return events


def test_events_are_private_to_the_token_holder(front: Any) -> None:
    front.send(TokenHashes(sha256=(hashlib.sha256(TOKEN.encode()).hexdigest(),)))
    front.send(PrivateEvent(sealed="QUFB"), PrivateEvent(sealed="QkJC"))
    front.enter(Phase.TRAINING)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with front.http() as http:
        with http.stream("GET", "/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            (event,) = read_events(answer, 1)
            assert (event["event"], json.loads(event["data"])["phase"]) == ("status", "training")
        with http.stream("GET", "/events", headers=bearer) as answer:
            events = read_events(answer, 3)
        assert [(e["event"], e["data"]) for e in events[:2]] == [
            ("private", "QUFB"),
            ("private", "QkJC"),
        ]
        with http.stream(
            "GET", "/events", headers={**bearer, "Last-Event-ID": events[0]["id"]}
        ) as answer:
            assert [e["data"] for e in read_events(answer, 2)][:1] == ["QkJC"]
        with http.stream("GET", "/events", headers={**bearer, "Last-Event-ID": "999999"}) as answer:
            assert [e["data"] for e in read_events(answer, 2)] == ["QUFB", "QkJC"]


def test_events_with_a_wrong_token(front: Any) -> None:
    front.send(TokenHashes(sha256=(hashlib.sha256(TOKEN.encode()).hexdigest(),)))
    front.enter(Phase.TRAINING)
    with front.http() as http:
        for authorization in [
            "Bearer " + "5d" * 32,
            TOKEN,
            "Basic " + TOKEN,
            "Bearer",
            "Bearer \xe9",
        ]:
            answer = http.get("/events", headers={"Authorization": authorization.encode("latin1")})
            assert (answer.status_code, answer.json()) == (401, {"error": "unauthorized"})


def test_events_token_that_turns_out_wrong_ends_the_stream(front: Any) -> None:
    with (
        front.http() as http,
        http.stream("GET", "/events", headers={"Authorization": "Bearer x"}) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("id: ")
        front.send(
            TokenHashes(sha256=(hashlib.sha256(TOKEN.encode()).hexdigest(),)),
            PrivateEvent(sealed="QUFB"),
        )
        assert not any("QUFB" in line for line in lines)


def test_events_heartbeat_and_cap(start_front: Any) -> None:
    front = start_front(event_streams=2, event_stream_seconds=1.0)
    with front.http() as http:
        with http.stream("GET", "/events") as first, http.stream("GET", "/events") as second:
            third = http.get("/events")
            assert (third.status_code, third.json()) == (503, {"error": "too-many-requests"})
            assert any(line == ": waiting" for line in first.iter_lines())  # and it ends by its age
            assert second.status_code == 200
        for _ in range(100):
            with http.stream("GET", "/events") as again:
                if again.status_code == 200:
                    return
    raise AssertionError("closed streams still count")


def test_events_live(front: Any) -> None:
    with front.http() as http, http.stream("GET", "/events") as answer:
        lines = answer.iter_lines()
        seen = []
        front.send(OpenUpload(accept=False), StatusUpdate(status=Status(phase=Phase.OPENING)))
        for line in lines:
            if line.startswith("data: "):
                seen.append(json.loads(line[6:])["phase"])
            if seen[-1:] == ["opening"]:
                break
    assert seen in (["awaiting-dataset", "opening"], ["opening"])


def test_openapi_documents_the_answers(front: Any) -> None:
    with front.http() as http:
        document = http.get("/openapi.json").json()
    answers = {
        f"{method.upper()} {path}": sorted(operation["responses"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert answers == {
        "GET /attestation": ["200", "400", "429", "431", "503"],
        "GET /status": ["200", "400", "431"],
        "GET /events": ["200", "400", "401", "431", "503"],
        "GET /deletion": ["200", "400", "409", "431"],
        "POST /ack": ["200", "204", "400", "401", "409", "431"],
        "POST /withdrawal": ["204", "400", "401", "409", "431"],
        "OPTIONS /dataset": ["204", "400", "431"],
        "POST /dataset": ["201", "400", "401", "409", "412", "413", "431", "507"],
        "HEAD /dataset/{upload_id}": ["200", "400", "404", "412", "431"],
        "PATCH /dataset/{upload_id}": [
            "204",
            "400",
            "404",
            "408",
            "409",
            "412",
            "413",
            "415",
            "431",
            "507",
        ],
        "DELETE /dataset/{upload_id}": ["204", "400", "404", "409", "412", "431"],
        "POST /regrant": ["202", "400", "408", "409", "413", "415", "429", "431", "507"],
        "GET /result": ["200", "206", "304", "400", "409", "416", "431"],
    }
    assert document["components"]["schemas"]["ErrorBody"]["required"] == ["error"]


def test_openapi_names_the_codes_of_each_refusal(front: Any) -> None:
    with front.http() as http:
        document = http.get("/openapi.json").json()
    append = document["paths"]["/dataset/{upload_id}"]["patch"]
    assert list(append["requestBody"]["content"]) == ["application/offset+octet-stream"]
    conflict = append["responses"]["409"]["content"]["application/json"]["schema"]
    assert conflict["$ref"] == "#/components/schemas/ErrorBody"
    assert conflict["properties"]["error"]["enum"] == ["upload-conflict", "wrong-phase"]
    assert document["components"]["securitySchemes"]["eventsToken"]["scheme"] == "bearer"


def test_a_refused_method_is_told_all_that_the_path_knows(front: Any) -> None:
    with front.http() as http:
        for path, methods in [
            ("/dataset", "OPTIONS, POST"), ("/dataset/" + "0" * 32, "DELETE, HEAD, PATCH"), ("/status", "GET"),
        ]:  # fmt: skip
            answer = http.put(path)
            assert (answer.status_code, answer.headers["allow"]) == (405, methods)


def test_every_answer_forbids_caching_and_guessing(front: Any) -> None:
    with front.http() as http:
        for answer in [
            http.get("/openapi.json"),
            http.get("/nowhere"),
            http.put("/ack"),
            http.get("/status"),
        ]:
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert http.patch("/dataset/x").headers["tus-resumable"] == "1.0.0"


def test_a_code_of_the_supervisor_that_is_not_documented_is_not_told(start_front: Any) -> None:
    front = start_front(evidence_seconds=5.0)
    front.silent = True

    def fail() -> None:
        asked = front.expect(EvidenceRequest)
        front.send(EvidenceReply(id=asked.id, evidence=None, error=ErrorCode.MODEL_INVALID))

    supervisor = threading.Thread(target=fail)
    supervisor.start()
    with front.http() as http:
        answer = http.get("/attestation", params={"nonce": NONCE})
    supervisor.join()
    assert (answer.status_code, answer.json()) == (503, {"error": "internal-error"})


def test_each_provider_of_a_joint_job_acknowledges_the_one_result(front: Any) -> None:
    shown = ["a1" * 32, "b2" * 32]
    digests = tuple(hashlib.sha256(value.encode()).hexdigest() for value in shown)
    front.send(ResultReady(size=1, sha256="0" * 64, acknowledgement_sha256=digests))
    front.enter(Phase.AWAITING_PULL)
    with front.http() as http:
        for value in (shown[0], shown[0], "c3" * 32, shown[1]):
            answer = http.post("/ack", headers={"Authorization": f"Bearer {value}"})
            assert answer.status_code == (204 if value in shown else 401)
    deadline = time.monotonic() + 10
    while len(front.received(Acknowledged)) < len(shown) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [message.acknowledgement for message in front.received(Acknowledged)] == shown


def test_a_withdrawal_is_passed_on_until_the_training_begins(start_front: Any) -> None:
    keys = [ProviderKey(letter * 32) for letter in (b"a", b"b", b"x")]
    front = start_front(exchange={"providers": [key.public for key in keys[:2]], "joint": True})
    good, forged, other = (
        sign_withdrawal(Withdrawal(version=1, job_spec_sha256=spec, grant_sha256="ab" * 32), key)
        for spec, key in (("cd" * 32, keys[1]), ("cd" * 32, keys[2]), ("ef" * 32, keys[1]))
    )
    scope = UploadScope(job_spec_sha256="cd" * 32, recipient_sha256=("ab" * 32,))

    def show(http: httpx.Client, token: str) -> int:
        return http.post("/withdrawal", headers={"Authorization": f"Bearer {token}"}).status_code

    front.enter(Phase.AWAITING_DATASET)
    with front.http() as http:
        assert show(http, good) == 409, "the job has no keys yet"
        front.send(OpenUpload(accept=True, scope=scope))
        front.enter(Phase.OPENING, accept=False)
        assert [show(http, token) for token in (good, forged, other, "no token")] == [
            204, 401, 401, 401,
        ]  # fmt: skip
        front.enter(Phase.TRAINING)
        assert show(http, good) == 409
    assert front.expect(WithdrawalReceived).token == good
    assert len(front.received(WithdrawalReceived)) == 1
