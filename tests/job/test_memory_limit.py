"""The container's memory limit, from trees as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.errors import ErrorCode, JobError
from trainer.job.memory_limit import LEAST_MEMORY_BYTES, memory_limit, oom_kills, require_memory


def cgroups(folder: Path, files: dict[str, str], own: str | None = "0::/\n") -> tuple[Path, Path]:
    root, name = folder / "cgroup", folder / "own"
    root.mkdir()
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    if own is not None:
        name.write_text(own)
    return root, name


@pytest.mark.parametrize(
    ("files", "own", "limit"),
    [
        ({"memory.max": "1000\n"}, "0::/\n", 1000),
        ({"memory.max": "max\n"}, "0::/\n", None),
        ({}, "0::/\n", None),
        ({}, None, None),
        (
            {"a/b/memory.max": "max\n", "a/memory.max": "700\n", "memory.max": "900\n"},
            "0::/a/b\n",
            700,
        ),
        ({"memory.max": "900\n"}, "0::/../other\n", 900),
        ({"memory.max": "900\n"}, "0::/absent\n", 900),
        ({"memory/memory.limit_in_bytes": "800\n"}, "4:memory:/docker/x\n", 800),
        ({"memory.max": "many\n"}, "0::/\n", None),
    ],
)
def test_limit(files: dict[str, str], own: str | None, limit: int | None, tmp_path: Path) -> None:
    assert memory_limit(*cgroups(tmp_path, files, own)) == limit


@pytest.mark.parametrize(
    ("events", "kills"), [("low 0\noom 3\noom_kill 2\n", 2), ("low 0\n", 0), (None, 0)]
)
def test_kills(events: str | None, kills: int, tmp_path: Path) -> None:
    files = {} if events is None else {"memory.events": events}
    assert oom_kills(*cgroups(tmp_path, files)) == kills


def test_a_limit_that_is_too_small() -> None:
    require_memory(None, 1 << 50)
    require_memory(LEAST_MEMORY_BYTES + 5, 5)
    with pytest.raises(JobError) as caught:
        require_memory(LEAST_MEMORY_BYTES, 1 << 20)
    error = caught.value
    assert error.code is ErrorCode.OUT_OF_MEMORY
    assert (error.expected, error.found) == ("at least 513 MiB, and what training takes", "512 MiB")
    assert "mem_limit" in str(error.hint)
