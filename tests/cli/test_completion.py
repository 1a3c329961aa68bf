"""Shell completion: typer's own, offered by `--install-completion` and `--show-completion`."""

from __future__ import annotations

import pytest

from trainer.cli.app import run_command_line as run


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("trainer veri", "verify"),
        ("trainer receipt sh", "show"),
        ("trainer submit --noti", "--notify"),
    ],
)
def test_a_shell_completes_commands_and_options(
    words: str, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_TRAINER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit) as ended:
        run([])
    assert ended.value.code == 0
    assert capsys.readouterr().out.split() == [found]


def test_the_script_is_shown_for_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["--show-completion", "bash"])
    assert ended.value.code == 0
    assert "_TRAINER_COMPLETE" in capsys.readouterr().out
