"""What is written to a disk that is full, or becomes full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.full_disk import room_for
from trainer.atomic_files import PRIVATE_MODE, create_file, replace_atomically, write_at


def test_the_kernel_takes_a_part_first(tmp_path: Path) -> None:
    with room_for(8192), (tmp_path / "file").open("wb", buffering=0) as file:
        assert file.write(bytes(10_000)) == 8192


def test_a_file_that_does_not_fit_replaces_nothing(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"earlier")
    with (
        pytest.raises(OSError, match="too large"),
        room_for(8192),
        replace_atomically(target, PRIVATE_MODE) as file,
    ):
        file.write(bytes(10_000))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"earlier"]


def test_all_of_a_block_is_written_or_it_raises(tmp_path: Path) -> None:
    with create_file(tmp_path / "file", PRIVATE_MODE) as file:
        assert file.write(b"ab") == 2
        assert file.write(memoryview(b"cd")) == 2
        with pytest.raises(OSError, match="too large"), room_for(8192):
            write_at(file.fileno(), bytes(10_000), 4)
        write_at(file.fileno(), b"ef", 4)
        os.truncate(file.fileno(), 6)
    assert (tmp_path / "file").read_bytes() == b"abcdef"
