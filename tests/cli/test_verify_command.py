"""`trainer verify` on files: what scripts read, what people read, and how a saved result is judged again."""

from __future__ import annotations

import datetime as dt
import json
import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainer.attestation.catalogue import DATASET_CHECKS
from trainer.attestation.checks import Check, CheckState
from trainer.attestation.policy import FreshnessSection
from trainer.attestation.result.record import load_record
from trainer.cli.app import run_command_line as run
from trainer.cli.result_commands import print_all_checks
from trainer.errors import ExitCode

if TYPE_CHECKING:
    from tests.cli.conftest import Files

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("nothing here may use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def verify(files: Files, *arguments: object) -> int:
    return run(
        [
            "verify",
            str(files.evidence),
            "--nonce",
            files.nonce,
            "--policy",
            str(files.policy),
            *map(str, arguments),
        ]
    )


def judge(path: Path, *arguments: object) -> int:
    return run(["verify", str(path), *map(str, arguments)])


def shown(captured: Captured) -> dict[str, Any]:
    value = json.loads(captured.readouterr().out.splitlines()[0])
    assert isinstance(value, dict)
    return value


@pytest.fixture
def saved(files: Files) -> Path:
    path = files.folder / "result.json"
    assert verify(files, "-o", path, "--quiet") == ExitCode.DONE
    return path


def test_the_contract_with_scripts(files: Files, capsys: Captured) -> None:
    assert verify(files, "--json") == ExitCode.DONE
    printed = shown(capsys)
    assert printed["status"] == "pass"
    assert list(printed["checks"]) == [definition.code for definition in DATASET_CHECKS]
    assert printed["checks"]["quote-signature"] == "affirmed"
    assert printed["checks"]["tls-key"] == "not-demanded"
    assert printed["recipient"] == "age1" + "p" * 58
    assert abs(printed["expires_at"] - time.time() - 86400) < 60
    assert [result["code"] for result in printed["results"]] == list(printed["checks"])
    assert (printed["ear"]["ear_status"], printed["development_root"]) == ("warning", True)
    assert any("imitate a TEE" in caution for caution in printed["cautions"])


def test_a_failure_is_exit_code_4_and_is_explained(files: Files, capsys: Captured) -> None:
    policy = files.write_policy("other.yaml", sandbox=("seccomp",))
    assert (
        judge(files.evidence, "--nonce", files.nonce, "--policy", policy) == ExitCode.VERIFICATION
    )
    out = capsys.readouterr().out
    assert out.startswith("DEVELOPMENT ROOT")
    assert "\n✘ FAIL" in out
    assert re.search(r"✘ 69 sandbox +contraindicated: core_dumps_off", out)
    explained = out[out.index("✘ 69 sandbox: ") :]
    for line in (
        "expected seccomp",
        "found core_dumps_off",
        "guards against a job that runs",
        "hint ask the operator",
    ):
        assert re.search(line.replace(" ", " +", 1), explained), line
    assert re.search(r"checks: \d+ affirmed, 1 contraindicated, \d+ not demanded", out)


def test_the_table_fits_80_columns_without_colours_where_there_is_no_terminal(
    files: Files, capsys: Captured
) -> None:
    assert verify(files) == ExitCode.DONE
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert all(definition.code in out for definition in DATASET_CHECKS)


def test_a_wide_terminal_shows_titles(
    files: Files, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    assert verify(files) == ExitCode.DONE
    out = capsys.readouterr().out
    assert "the collateral is one complete document" in out
    assert max(map(len, out.splitlines())) <= 150


def test_quiet_prints_nothing_but_the_error(files: Files, capsys: Captured) -> None:
    assert verify(files, "--quiet") == ExitCode.DONE
    assert capsys.readouterr() == ("", "")
    assert (
        judge(files.evidence, "--nonce", "00" * 32, "--policy", files.policy, "--quiet")
        == ExitCode.VERIFICATION
    )
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "verification-failed" in captured.err


def test_a_page_is_written_also_for_a_failure(files: Files) -> None:
    page = files.folder / "page.html"
    assert verify(files, "--html", page, "--quiet") == ExitCode.DONE
    assert "<h1>Pass under a development root</h1>" in page.read_text()
    page = files.folder / "failed.html"
    assert (
        judge(files.evidence, "--nonce", "00" * 32, "--policy", files.policy, "--html", page) == 4
    )
    assert "<h1>Fail</h1>" in page.read_text()


GREEN = ("\x1b[32m", "\x1b[1;32m", "✔ PASS")


def test_a_pass_under_a_development_root_is_never_green(
    files: Files, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert verify(files) == ExitCode.DONE
    out = capsys.readouterr().out
    assert [sign for sign in GREEN if sign in out] == []
    assert "DEVELOPMENT ROOT" in out.splitlines()[0]
    assert "PASS UNDER A DEVELOPMENT ROOT" in out
    print_all_checks(
        {"the receipt": (Check(1, "quote-format", "t", CheckState.AFFIRMED),)},
        development_root=True,
    )
    out = capsys.readouterr().out
    assert [sign for sign in GREEN if sign in out] == []
    assert "DEVELOPMENT ROOT" in out.splitlines()[0]


def test_whoever_else_could_read_the_data_is_shown_with_the_verdict(
    files: Files, capsys: Captured
) -> None:
    opened = files.demanded.app.model_copy(update={"key_provider": "any", "kms_root_key": "any"})
    policy = files.write_policy("open.yaml", app=opened)
    assert judge(files.evidence, "--nonce", files.nonce, "--policy", policy) == ExitCode.DONE
    assert "any key service may give the VM its keys" in " ".join(capsys.readouterr().out.split())


# nonces


def test_a_nonce_serves_one_piece_of_evidence(files: Files, capsys: Captured) -> None:
    assert verify(files, "--json") == ExitCode.DONE
    assert shown(capsys)["checks"]["nonce-unused"] == "affirmed"
    assert verify(files, "--json") == ExitCode.DONE, "the same evidence may be judged again"
    capsys.readouterr()
    other = files.again("other.json", software={"trainer": "another"})
    assert (
        judge(other, "--nonce", files.nonce, "--policy", files.policy, "--json")
        == ExitCode.VERIFICATION
    )
    states = shown(capsys)["checks"]
    assert [code for code, state in states.items() if state == "contraindicated"] == [
        "nonce-unused"
    ]
    fresh = files.again("fresh.json", nonce="77" * 32)
    assert judge(fresh, "--nonce", "77" * 32, "--policy", files.policy, "--quiet") == ExitCode.DONE


def test_a_job_is_asked_with_a_new_nonce_each_time(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Job:
        peer_spki_sha256 = None

        def attestation(self, nonce: str) -> bytes:
            asked.append(nonce)
            return files.again("live.json", nonce=nonce).read_bytes()

    monkeypatch.setattr("trainer.provider.connect_to_job", lambda source: Job())
    for _ in range(2):
        assert judge(files.folder, "--policy", files.policy, "--quiet") == ExitCode.DONE
    assert len({*asked}) == 2
    replayed = files.again("replayed.json", nonce=asked[0], software={"trainer": "another"})
    assert (
        judge(replayed, "--nonce", asked[0], "--policy", files.policy, "--quiet")
        == ExitCode.VERIFICATION
    )


def test_without_a_state_directory_reuse_is_not_judged(
    files: Files, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = files.folder / "blocked"
    blocked.write_text("a file where a directory should be")
    monkeypatch.setenv("XDG_STATE_HOME", str(blocked))
    assert verify(files, "--json") == ExitCode.DONE
    check = next(check for check in shown(capsys)["results"] if check["code"] == "nonce-unused")
    assert (check["state"], check["detail"]) == (
        "not-demanded",
        "no record of used nonces was kept",
    )


@pytest.mark.parametrize("nonce", ["", "5a", "5A" * 32, "zz" * 32])
def test_a_nonce_of_another_form_is_a_usage_error(files: Files, nonce: str) -> None:
    assert judge(files.evidence, "--nonce", nonce, "--policy", files.policy) == ExitCode.USAGE


# saved results


def test_a_saved_result_is_judged_again_without_a_policy_or_a_nonce(
    saved: Path, capsys: Captured
) -> None:
    assert judge(saved, "--json") == ExitCode.DONE
    printed = shown(capsys)
    assert (printed["status"], printed["fresh"]) == ("pass", False)
    assert {printed["checks"][code] for code in ("nonce", "nonce-unused")} == {"not-demanded"}
    assert "eat_nonce" not in printed["ear"]


def test_save_is_the_same_as_output(files: Files, saved: Path) -> None:
    bundle = files.folder / "bundle.json"
    assert verify(files, "--save", bundle, "--quiet") == ExitCode.DONE
    assert load_record(bundle.read_bytes()).evidence == load_record(saved.read_bytes()).evidence


def test_an_old_result_fails_now_and_passes_as_of_then(saved: Path, capsys: Captured) -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=400)
    assert judge(saved, "--at", later.isoformat(), "--json") == ExitCode.VERIFICATION
    states = shown(capsys)["checks"]
    assert {states[code] for code in ("freshness", "collateral-validity", "claims-validity")} == {
        "contraindicated"
    }
    assert judge(saved, "--at", str(int(later.timestamp())), "--quiet") == ExitCode.VERIFICATION
    assert judge(saved, "--at", "recorded", "--quiet") == ExitCode.DONE


def test_the_present_is_the_default(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    later = time.time() + 400 * 86400
    monkeypatch.setattr(time, "time", lambda: later)
    assert judge(saved, "--json") == ExitCode.VERIFICATION
    assert shown(capsys)["ear"]["iat"] == int(later)


@pytest.mark.parametrize(
    "text", ["yesterday", "2026-11-23T20:00:00", "1e9", "-5", "9" * 13, "1901-01-01T00:00:00Z", ""]
)
def test_a_time_that_is_none_is_a_usage_error(saved: Path, text: str) -> None:
    assert judge(saved, f"--at={text}") == ExitCode.USAGE


def test_times_with_an_offset(saved: Path, capsys: Captured) -> None:
    assert judge(saved, "--at", "2026-11-23T20:00:00+02:00", "--json") in (
        ExitCode.DONE,
        ExitCode.VERIFICATION,
    )
    assert shown(capsys)["ear"]["iat"] == int(
        dt.datetime(2026, 11, 23, 18, tzinfo=dt.UTC).timestamp()
    )


def test_another_policy_wins_and_is_announced(files: Files, saved: Path, capsys: Captured) -> None:
    assert judge(saved, "--policy", files.policy, "--quiet") == ExitCode.DONE
    assert capsys.readouterr().err == ""
    strict = files.write_policy(
        "strict.yaml", sandbox=("seccomp",), freshness=FreshnessSection(max_age_seconds=9999)
    )
    assert judge(saved, "--policy", strict, "--json") == ExitCode.VERIFICATION
    captured = capsys.readouterr()
    printed = json.loads(captured.out.splitlines()[0])
    assert printed["checks"]["sandbox"] == "contraindicated"
    assert captured.err.startswith(
        f"note: appraised under the policy {printed['appraisal']['policy_sha256']}"
    )
    assert files.demanded.sha256() in captured.err


def test_a_nonce_that_is_given_is_the_one_that_counts(
    files: Files, saved: Path, capsys: Captured
) -> None:
    assert judge(saved, "--nonce", files.nonce, "--quiet") == ExitCode.DONE
    assert judge(saved, "--nonce", "00" * 32, "--json") == ExitCode.VERIFICATION
    assert shown(capsys)["checks"]["nonce"] == "contraindicated"


def test_an_edited_result_is_refused(saved: Path, capsys: Captured) -> None:
    document = json.loads(saved.read_bytes())
    document["result"]["checks"]["nonce"] = "not-demanded"
    saved.write_text(json.dumps(document))
    assert judge(saved, "--at", "recorded") == ExitCode.VERIFICATION
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "not what its evidence gives" in captured.err


def test_evidence_needs_a_policy_and_a_nonce(files: Files, capsys: Captured) -> None:
    assert judge(files.evidence, "--nonce", files.nonce) == ExitCode.USAGE
    assert "--policy" in capsys.readouterr().err
    assert judge(files.evidence, "--policy", files.policy) == ExitCode.USAGE
    assert "--nonce" in capsys.readouterr().err
    assert verify(files, "--at", "recorded") == ExitCode.USAGE


def test_a_live_job_cannot_be_judged_as_of_another_time(files: Files, capsys: Captured) -> None:
    assert judge(files.folder, "--policy", files.policy, "--at", "0") == ExitCode.USAGE
    assert "--at" in capsys.readouterr().err
    assert judge(files.folder) == ExitCode.USAGE
    assert "--policy" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"evidence": {}}', b"\xff", b'{"claims": {}}']
)
def test_what_is_neither_evidence_nor_a_result(files: Files, content: bytes) -> None:
    path = files.folder / "x.json"
    path.write_bytes(content)
    code = judge(path, "--policy", files.policy, "--nonce", files.nonce)
    assert code == ExitCode.VERIFICATION
