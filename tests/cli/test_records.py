"""A record that lies around decides nothing: every step uses one of this user's own, under the policy it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trainer.attestation.evidence import Recipients
from trainer.attestation.policy import OsSection
from trainer.attestation.result.record import load_record, save_record
from trainer.cli.app import run_command_line as run
from trainer.encoding import sha256_hex
from trainer.errors import ExitCode
from trainer.exchange.spool import (
    DELETION_NAME,
    RESULT_INFO_NAME,
    RESULT_NAME,
    STATUS_NAME,
    SpoolDirectory,
)
from trainer.exchange.spool_documents import SpoolResult
from trainer.models import Phase, Status
from trainer.sealing.age import generate_identity

if TYPE_CHECKING:
    from tests.cli.conftest import Files

Captured = pytest.CaptureFixture[str]
NONCE = "5a" * 32


@pytest.fixture
def record(files: Files) -> Path:
    """What `trainer verify -o` wrote here for a job with real keys."""
    keys = [str(generate_identity(hybrid=False).recipient()) for _ in range(2)]
    evidence = files.again("job.json", recipients=Recipients(derived=keys[0], instance=keys[1]))
    saved = files.folder / "attestation.json"
    assert verify(files, evidence, "--nonce", NONCE, "-o", saved) == ExitCode.DONE
    return saved


def verify(files: Files, source: Path, *options: object) -> int:
    return run(["verify", str(source), "--policy", str(files.policy), "-q", *map(str, options)])


def seal(
    files: Files, *record: object, policy: Path | None = None, rows: str = '{"text": "a row"}\n'
) -> int:
    data, sealed = files.folder / "rows.jsonl", files.folder / "sealed.age"
    data.write_text(rows)
    recipient = str(generate_identity(hybrid=False).recipient())
    options = ("--policy", policy or files.policy, "-r", recipient, "-o", sealed, "-q")
    code = run(["seal", *map(str, (data, *options, *record))])
    assert sealed.exists() is (code == 0)
    return code


def test_the_own_record_under_its_policy_is_sealed_to(files: Files, record: Path) -> None:
    assert record.stat().st_mode & 0o777 == 0o600
    assert seal(files, "--attestation", record) == ExitCode.DONE


def test_rows_that_the_job_would_refuse_are_not_sealed(
    files: Files, record: Path, capsys: Captured
) -> None:
    secret = "xylophonequartz"
    rows = f'{{"text": "a row"}}\n{{"text": ["{secret}"]}}\n'
    assert seal(files, "--attestation", record, rows=rows) == ExitCode.LOCAL_DATA
    told = capsys.readouterr()
    assert "rows.jsonl, row 1, field text" in told.err
    assert secret not in told.err + told.out
    assert not list(files.folder.glob("sealed.age*"))


def test_a_record_of_somebody_else_is_not_sealed_to(
    files: Files, record: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """It passes every check under its own policy, and lies in a folder that came from the operator."""
    monkeypatch.setenv("XDG_STATE_HOME", str(files.folder / "of another user"))
    assert seal(files, "--attestation", record) == ExitCode.VERIFICATION
    told = capsys.readouterr().err
    assert "not written by this tool for you" in told
    assert "--import-record" in told


@pytest.mark.parametrize("edit", ["time", "tag", "untagged", "swapped"])
def test_a_record_that_was_changed_is_not_sealed_to(edit: str, files: Files, record: Path) -> None:
    document = json.loads(record.read_bytes())
    if edit == "time":
        document["appraised_at"] += 1
    elif edit == "tag":
        document["tag"] = "00" * 32
    elif edit == "untagged":
        del document["tag"]
    else:
        document = json.loads(save_record(load_record(record.read_bytes()))) | {
            "tag": document["tag"]
        }
    record.write_text(json.dumps(document))
    assert seal(files, "--attestation", record) == ExitCode.VERIFICATION


@pytest.mark.parametrize("command", ["seal", "upload", "watch", "pull", "open", "ack"])
def test_no_step_uses_a_record_under_another_policy(
    command: str, files: Files, record: Path, capsys: Captured
) -> None:
    other = files.write_policy("other.yaml", os=OsSection(), sandbox="any")
    for name in ("data.jsonl", "grant.json"):
        (files.folder / name).write_text("{}")
    run(["keygen", "-o", str(files.folder / "key")])
    place, common = files.folder / "spool", ["--policy", str(other), "--attestation", str(record)]
    place.mkdir()
    arguments = {
        "seal": ["data.jsonl", "-r", "age1x", "-o", "out"],
        "upload": ["data.jsonl", "--job-url", str(place)],
        "watch": [str(place)],
        "pull": [str(place), "-o", "out"],
        "open": ["data.jsonl", "-i", "key", "-o", "out", "--dataset-and-recipients-unchecked"],
        "ack": [str(place), "--grant", "grant.json", "--result", "data.jsonl"],
    }[command]
    named = [
        str(files.folder / word) if (files.folder / word).exists() else word for word in arguments
    ]
    capsys.readouterr()
    assert run([command, *named, *common]) == ExitCode.VERIFICATION
    assert "the record was made under another policy" in capsys.readouterr().err
    assert list(place.iterdir()) == []
    assert run([command, *named, *common[2:]]) == ExitCode.USAGE, "and none goes without a policy"


def test_a_record_of_another_machine_is_imported_by_name_only(
    files: Files, record: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(files.folder / "another machine"))
    assert seal(files, "--import-record", record) == ExitCode.DONE
    (files.folder / "sealed.age").unlink()
    (files.folder / "sealed.age.grant.json").unlink()
    other = files.write_policy("other.yaml", sandbox=("seccomp",))
    assert seal(files, "--import-record", record, policy=other) == ExitCode.VERIFICATION, (
        "judged again"
    )
    capsys.readouterr()
    for both in ((), ("--attestation", record, "--import-record", record)):
        assert seal(files, *both) == ExitCode.USAGE
        assert "expected --attestation, or --import-record" in capsys.readouterr().err


def test_an_imported_record_is_judged_as_of_now(
    files: Files, record: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    import time

    later = time.time() + 86400 * 2
    monkeypatch.setattr(time, "time", lambda: later)
    assert seal(files, "--import-record", record) == ExitCode.VERIFICATION
    assert (
        "a result still opens with --attestation where the job was verified"
        in capsys.readouterr().err
    )


# item 3: a bundle of evidence that somebody kept


@pytest.mark.parametrize(
    ("options", "fresh"),
    [
        ((), False),
        (("--at", "recorded"), False),
        (("--nonce", NONCE, "--at", "recorded"), False),
        (("--nonce", NONCE), True),
    ],
)  # fmt: skip
def test_a_saved_result_is_fresh_only_with_the_nonce_and_the_present(
    options: tuple[str, ...], fresh: bool, files: Files, record: Path, capsys: Captured
) -> None:
    again = files.folder / "again.json"
    capsys.readouterr()
    assert (
        run(["verify", str(record), "--policy", str(files.policy), *options, "-o", str(again)]) == 0
    )
    assert (
        "fresh       yes" if fresh else "nothing can be sealed to it"
    ) in capsys.readouterr().out
    assert seal(files, "--attestation", again) == (
        ExitCode.DONE if fresh else ExitCode.VERIFICATION
    )
    assert run(["verify", str(record), "--policy", str(files.policy), *options, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["fresh"] is fresh
    assert printed["checks"]["nonce"] == ("affirmed" if "--nonce" in options else "not-demanded")


def test_the_nonce_of_a_bundle_does_not_make_it_fresh_under_its_own_policy(
    files: Files, record: Path
) -> None:
    again = files.folder / "again.json"
    assert run(["verify", str(record), "--nonce", NONCE, "-q", "-o", str(again)]) == ExitCode.DONE
    assert seal(files, "--attestation", again) == ExitCode.VERIFICATION


def test_a_forged_deletion_statement_does_not_end_a_pull(
    files: Files, record: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Anybody can write `deletion.json` to a spool; the result is there, and the pull cannot be repeated."""
    spool, result = SpoolDirectory(tmp_path / "spool"), tmp_path / "result.age"
    spool.path.mkdir()
    spool.put(
        STATUS_NAME, Status(phase=Phase.AWAITING_PULL, result_bytes=6).model_dump_json().encode()
    )
    spool.put(RESULT_NAME, b"sealed")
    spool.put(
        RESULT_INFO_NAME,
        SpoolResult(size=6, sha256=sha256_hex(b"sealed")).model_dump_json().encode(),
    )
    spool.put(DELETION_NAME, b"{}")
    place = (str(spool.path), "--policy", str(files.policy), "--attestation", str(record))
    assert run(["pull", *place, "-o", str(result)]) == ExitCode.DONE
    assert "no valid statement of what the job destroyed" in capsys.readouterr().err
    assert result.read_bytes() == b"sealed"
    assert not (tmp_path / "result.age.deletion.json").exists()
