"""Nonces are used once: the list of spent nonces, and the file that keeps it."""

from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path

import pytest

from trainer.provider.nonces import (
    MAX_FILE_BYTES,
    MAX_NONCES,
    RETENTION_SECONDS,
    SpentNonces,
    parse_spent_nonces,
    spend_nonce,
)

NOW = 1_790_000_000
NONCE, OTHER = "01" * 32, "02" * 32
EVIDENCE, ELSE = "aa" * 32, "bb" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "trainer" / "nonces"


def test_a_nonce_belongs_to_the_first_evidence(path: Path) -> None:
    assert spend_nonce(path, NONCE, EVIDENCE, now=NOW) is True
    assert spend_nonce(path, NONCE, EVIDENCE, now=NOW + 1) is True
    assert spend_nonce(path, NONCE, ELSE, now=NOW + 2) is False
    assert spend_nonce(path, NONCE, EVIDENCE, now=NOW + 3) is True
    assert spend_nonce(path, OTHER, ELSE, now=NOW + 4) is True


def test_the_file_is_private_and_holds_no_nonce(path: Path) -> None:
    spend_nonce(path, NONCE, EVIDENCE, now=NOW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.with_name("nonces.lock").stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert NONCE not in path.read_text()
    assert sorted(file.name for file in path.parent.iterdir()) == ["nonces", "nonces.lock"]


def test_old_nonces_are_forgotten_once_no_policy_takes_their_evidence() -> None:
    spent = SpentNonces().add_nonce(NONCE, EVIDENCE, NOW)
    assert (
        spent.add_nonce(OTHER, ELSE, NOW + RETENTION_SECONDS - 1).find_evidence(NONCE) == EVIDENCE
    )
    assert spent.add_nonce(OTHER, ELSE, NOW + RETENTION_SECONDS).find_evidence(NONCE) is None
    assert RETENTION_SECONDS > 30 * 86400


def test_the_list_is_bounded(path: Path) -> None:
    entry = {"nonce_sha256": "cc" * 32, "evidence_sha256": EVIDENCE, "at": NOW}
    full = SpentNonces.model_validate_json(
        json.dumps({"version": 1, "spent": [entry] * MAX_NONCES})
    )
    grown = full.add_nonce(NONCE, EVIDENCE, NOW)
    assert len(grown.spent) == MAX_NONCES
    assert grown.find_evidence(NONCE) == EVIDENCE
    path.parent.mkdir(parents=True)
    path.write_text(full.model_dump_json())
    assert spend_nonce(path, NONCE, EVIDENCE, now=NOW) is True
    assert path.stat().st_size < MAX_FILE_BYTES
    assert spend_nonce(path, NONCE, ELSE, now=NOW) is False


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"version": 2}', b'{"spent": [{}]}', b"\xff"])
def test_a_damaged_file_judges_nothing_and_is_left_alone(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    assert spend_nonce(path, NONCE, EVIDENCE, now=NOW) is None
    assert path.read_bytes() == data
    with pytest.raises(ValueError, match=r"."):
        parse_spent_nonces(data)


def test_what_cannot_be_written_judges_nothing(path: Path) -> None:
    path.parent.parent.mkdir()
    path.parent.write_text("a file where a directory should be")
    assert spend_nonce(path, NONCE, EVIDENCE, now=NOW) is None
    assert spend_nonce(Path("/proc/no/such/nonces"), NONCE, EVIDENCE, now=NOW) is None


def test_too_large_a_file_is_not_read(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b" " * (MAX_FILE_BYTES + 1))
    assert spend_nonce(path, NONCE, EVIDENCE, now=NOW) is None


def _spend(path: Path, evidence: str) -> bool | None:
    return spend_nonce(path, NONCE, evidence, now=NOW)


def test_of_many_runs_at_once_one_finds_the_nonce_unused(path: Path) -> None:
    evidence = [f"{number:02x}" * 32 for number in range(8)]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        answers = pool.starmap(_spend, [(path, digest) for digest in evidence])
    assert sorted(answers, key=str) == [False] * 7 + [True]
    kept = parse_spent_nonces(path.read_bytes())
    assert kept.find_evidence(NONCE) == evidence[answers.index(True)]
