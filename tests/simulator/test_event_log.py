"""The simulator's event log against the verifier's reader and against a real log."""

import hashlib
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from trainer.attestation.dstack import event_log as verifier
from trainer.simulator.event_log_writer import SYSTEM_EVENTS, RuntimeEvent, replay

NAMES = st.text(min_size=1, max_size=64).filter(lambda name: name.isprintable())


def test_register_of_a_real_log(vectors: Path) -> None:
    real = json.loads((vectors / "tdx" / "dstack-0.6.0-getquote.json").read_text())
    entries = [entry for entry in json.loads(real["event_log"]) if entry["imr"] == 3]
    digests = [RuntimeEvent(e["event"], bytes.fromhex(e["event_payload"])).digest for e in entries]
    rtmr3 = 48 + 472
    assert replay(digests) == bytes.fromhex(real["quote"])[rtmr3 : rtmr3 + 48]


def test_names_of_a_real_log_are_system_events(vectors: Path) -> None:
    real = json.loads((vectors / "tdx" / "dstack-0.6.0-getquote.json").read_text())
    names = {entry["event"] for entry in json.loads(real["event_log"]) if entry["imr"] == 3}
    assert names <= SYSTEM_EVENTS


@given(name=NAMES, payload=st.binary(max_size=256), version=st.sampled_from([1, 2]))
def test_verifier_computes_the_same_digest(name: str, payload: bytes, version: int) -> None:
    event = RuntimeEvent(name, payload, 1 if version == 1 else 2)
    for with_digest in (True, False):
        (read,) = verifier.parse_event_log(json.dumps([event.entry(with_digest=with_digest)]))
        assert read.digest == event.digest
        assert verifier.replay([read]) == replay([event.digest])
        assert verifier.digest_problem([read]) is None


def test_second_version_is_canonical_json() -> None:
    event = RuntimeEvent("app-id", b"\xde\xad", 2)
    assert event.preimage == b'{"name":"app-id","payload":"dead","type":134217729}'
    assert event.digest == hashlib.sha384(event.preimage).digest()


def test_nothing_measured_is_all_zeros() -> None:
    assert replay([]) == bytes(48)
