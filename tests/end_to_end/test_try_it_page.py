"""docs/try-it.md: its commands, as they stand, in a directory with a base model and rows."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fork_server import ROOT, ForkedProcess, ForkServer

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Ran, Trainer

PAGE = (ROOT / "docs" / "try-it.md").read_text("utf-8")
COMMANDS = [
    shlex.split(line)[1:]
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
LASTING = {"simulate", "run"}
"""Commands that the page gives a terminal of their own."""


def test_the_commands_of_the_page_bring_an_adapter(
    trainer: Trainer,
    fork_server: ForkServer,
    stack_server: ForkServer,
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    from tests.end_to_end.conftest import environment, wait_for

    shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copy(data, tmp_path / "train.jsonl")
    started: dict[str, ForkedProcess] = {}
    ran: dict[str, Ran] = {}

    def begin(name: str, arguments: list[str], ready: Callable[[], bool]) -> None:
        server, module = (
            (fork_server, "trainer") if name == "simulate" else (stack_server, "tests.forked_job")
        )
        with (tmp_path / f"{name}.log").open("wb") as log:
            descriptors = {1: log.fileno(), 2: log.fileno()}
            started[name] = server.start(
                module, arguments, descriptors, environment=environment(), directory=tmp_path
            )
        wait_for(ready, started[name])

    ready: dict[str, Callable[[], bool]] = {
        "simulate": lambda: "listening on" in (tmp_path / "simulate.log").read_text(),
        "run": lambda: "awaiting-dataset" in (tmp_path / "run.log").read_text(),
    }
    try:
        for arguments in COMMANDS:
            name = arguments[0]
            if name in LASTING:
                begin(name, arguments, ready[name])
            else:
                more = ["--max-new-tokens", "4"] if name == "try" else []
                ran[name] = trainer(*arguments, *more, cwd=tmp_path)
                assert ran[name].code == 0, (arguments, ran[name].err)
        assert started["run"].wait(60) == 0
    finally:
        for process in started.values():
            process.kill()
            process.wait(20)
    # `job init --local` prints these very commands.
    printed = [
        shlex.split(line)[1:] for line in ran["job"].out.splitlines() if line.startswith("trainer ")
    ]
    assert printed == COMMANDS[1 : 1 + len(printed)]
    assert len(printed) == 5
    assert "loss: " in ran["submit"].out
    assert "adapter" in ran["try"].out
    assert (tmp_path / "result.record" / "record.json").is_file()
