"""What is wrong with a file or an option: one exit code, `expected X, got Y`, a hint, and one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from trainer.cli.app import run_command_line as run
from trainer.errors import ExitCode

if TYPE_CHECKING:
    from tests.cli.conftest import DeployedJob, Files

Captured = pytest.CaptureFixture[str]


def refused(captured: Captured, code: int, *words: str) -> str:
    """What stderr says of a refusal, after its form was checked."""
    told = captured.readouterr().err
    assert ": expected " in told, (code, told)
    assert ", got " in told
    assert "\nhint: " in told
    for word in words:
        assert word in told, (word, told)
    return told


def judging(files: Files, source: object, *options: object) -> int:
    return run(["verify", str(source), "--policy", str(files.policy), *map(str, options)])


TEXTS = {
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "characters": lambda text: text + b" " * (1 << 19),
    "Windows line ends": lambda text: text.replace(b"{", b"{\r\n", 1).replace(b"\n", b"\r\n"),
    "U+00E9": lambda text: text + "é".encode(),
}


@pytest.mark.parametrize("found", TEXTS)
@pytest.mark.parametrize("section", ["collateral", "trust_root"])
def test_a_file_of_a_policy_that_an_editor_changed_is_told_as_that(
    section: str, found: str, files: Files, capsys: Captured
) -> None:
    document: dict[str, Any] = yaml.safe_load(files.policy.read_text())
    key = "document" if section == "collateral" else "pem"
    text = document[section].pop(key).encode()
    (files.folder / "changed").write_bytes(TEXTS[found](text))
    document[section]["file"] = "changed"
    files.policy.write_text(yaml.safe_dump(document))
    assert judging(files, files.evidence, "--nonce", files.nonce) == ExitCode.USAGE
    refused(capsys, 2, "policy-invalid", "changed: expected printable ASCII text", found)


@pytest.mark.parametrize("found", TEXTS)
@pytest.mark.parametrize("option", ["--collateral", "--trust-root"])
def test_policy_init_tells_it_too(
    option: str, found: str, deploy: Callable[[str], DeployedJob], tmp_path: Path, capsys: Captured
) -> None:
    job = deploy("{}")
    path = Path(next(word for word in job.options if word.startswith(option)).partition("=")[2])
    path.write_bytes(TEXTS[found](path.read_bytes()))
    (tmp_path / "app.json").write_text("{}")
    assert (
        run(["policy", "init", "--app-compose", str(tmp_path / "app.json"), *job.options])
        == ExitCode.USAGE
    )
    refused(capsys, 2, "policy-invalid", path.name, found)


def test_a_text_within_a_policy_is_told_of_by_its_key(files: Files, capsys: Captured) -> None:
    document: dict[str, Any] = yaml.safe_load(files.policy.read_text())
    document["collateral"]["document"] += "\r\n"
    files.policy.write_text(yaml.safe_dump(document))
    assert judging(files, files.evidence, "--nonce", files.nonce) == ExitCode.USAGE
    assert "policy: collateral.document: expected printable" in capsys.readouterr().err


def test_a_saved_result_with_a_key_twice_is_no_evidence(files: Files, capsys: Captured) -> None:
    saved = files.folder / "saved.json"
    assert judging(files, files.evidence, "--nonce", files.nonce, "--quiet", "-o", saved) == 0
    saved.write_bytes(
        saved.read_bytes().replace(b'{"appraised_at"', b'{"evidence":0,"appraised_at"', 1)
    )
    assert run(["verify", str(saved)]) == ExitCode.VERIFICATION
    assert "the same key twice" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_no_address(files: Files, capsys: Captured) -> None:
    assert judging(files, files.folder / "nothing.json") == ExitCode.USAGE
    refused(capsys, 2, "file-not-found", "nothing.json")


@pytest.mark.parametrize("source", ["spool", "https://127.0.0.1:9"])
@pytest.mark.parametrize("option", ["--nonce", "--at"])
def test_options_for_files_are_not_ignored_with_a_job(
    source: str, option: str, files: Files, capsys: Captured
) -> None:
    (files.folder / "spool").mkdir()
    location = source if source.startswith("https") else files.folder / source
    assert (
        judging(files, location, option, files.nonce if option == "--nonce" else "1")
        == ExitCode.USAGE
    )
    refused(capsys, 2, f"{option}: expected a file")


FAILURES: dict[str, tuple[int, Callable[[Files], list[object]]]] = {
    "a failed appraisal": (4, lambda files: [files.evidence, "--nonce", "00" * 32]),
    "a result that failed": (
        4,
        lambda files: [files.evidence, "--nonce", files.nonce, "--at", "9"],
    ),
    "no evidence": (4, lambda files: [files.policy, "--nonce", files.nonce]),
    "no nonce": (2, lambda files: [files.evidence]),
    "no such option": (2, lambda files: [files.evidence, "--nonsense"]),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_one_json_object(name: str, files: Files, capsys: Captured) -> None:
    code, arguments = FAILURES[name]
    assert judging(files, *arguments(files), "--json") == code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    printed = json.loads(lines[0])
    assert printed["exit_code"] == code
    assert printed["error"]["code"]
    if name.endswith("failed"):
        assert printed["status"] == "fail"


def test_outputs_are_not_overwritten(files: Files, capsys: Captured) -> None:
    for option in ("-o", "--html"):
        mine = files.folder / "mine"
        mine.write_text("mine")
        assert (
            judging(files, files.evidence, "--nonce", files.nonce, option, mine) == ExitCode.USAGE
        )
        assert "output-exists" in capsys.readouterr().err
        assert mine.read_text() == "mine"
