"""Finds the files of the earlier adapter that training is to start from, on the provider's machine."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import ErrorCode, UsageError
from trainer.model_files.adapter_config import ADAPTER_PREFIX
from trainer.model_files.companion_files import is_companion
from trainer.model_files.start_adapter import ADAPTER_FILES

_MODEL_CARD = "README.md"


def find_adapter_files(directory: Path) -> dict[str, Path]:
    """Returns the two files of an adapter: name in the bundle → path.

    `trainer open` leaves model card, tokenizer and chat template beside them. These are not sent: the job takes
    them from the base model that its spec names.

    Raises:
        UsageError: one of the two is missing, or there is a file that no result has beside them.
    """
    files = {name: directory / name.removeprefix(ADAPTER_PREFIX) for name in sorted(ADAPTER_FILES)}
    if not directory.is_dir():
        raise UsageError(
            ErrorCode.FILE_NOT_FOUND, f"no such directory: {directory}", hint="see --adapter"
        )
    for path in files.values():
        if not path.is_file():
            inner = directory / "adapter"
            raise UsageError(
                ErrorCode.FILE_NOT_FOUND,
                f"no such file: {path}",
                hint=f"the directory of the adapter is {inner}"
                if inner.is_dir()
                else "see --adapter",
            )
    names = sorted(
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()
    )
    wanted = {path.name for path in files.values()}
    if further := [
        name
        for name in names
        if name not in wanted and name != _MODEL_CARD and not is_companion(name)
    ]:
        raise UsageError(
            ErrorCode.USAGE,
            f"{directory / further[0]} is no file of an adapter",
            expected=f"{' and '.join(sorted(wanted))}, model card and tokenizer",
            found=f"{len(further)} other files",
            hint=f"copy {' and '.join(sorted(wanted))} into a directory of their own",
        )
    return files
