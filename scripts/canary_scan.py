"""Look for planted strings in files and directories, in every form they may have taken on the way out.

    scripts/canary-scan --canary 'unique string' /var/lib/containers
    scripts/canary-scan --canaries-from canaries.txt --tokens MODEL_DIR /tmp run.log
    tcpdump -i lo -w - | scripts/canary-scan --canary 'unique string' -

Forms: UTF-8, UTF-16 and UTF-32; base64 at every alignment, also url-safe and wrapped; hex, also spaced; percent,
JSON, Python and HTML escapes; reversed; in any case; with --tokens also token ids as integer arrays and decimal
lists. Names of files, targets of links, and what is packed with gzip, bzip2, xz, zstd, zlib, zip and tar are
searched too. It prints path, byte offset and form, never the surroundings. An archive inside an archive is given
as `outer!inner`.

Exit code: 0 nothing found, 1 something found, 2 usage, or something could not be read: then nothing is proven.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

sys.path[:0] = [str(Path(__file__).parent)]

from canary_forms import Tokenize, needles  # noqa: E402 -- found only now
from canary_search import Findings, Search  # noqa: E402

_STDIN: Final = "-"


def scan(paths: Sequence[str], search: Search, *, changed_since: float = 0.0) -> Findings:
    """Search files and whole directories.

    Args:
        paths: what to search; `-` is standard input.
        search: what is looked for.
        changed_since: Unix seconds; files whose inode has not changed since are left out.
    """
    for path in paths:
        if path == _STDIN:
            search.content("stdin", sys.stdin.buffer.read())
            continue
        for file in _below(path, search.findings):
            scan_file(file, search, changed_since)
    return search.findings


def _below(path: str, findings: Findings) -> Iterator[str]:
    """A path, and everything below it; links are not followed."""
    yield path
    if not os.path.isdir(path) or os.path.islink(path):  # noqa: PTH112,PTH114 -- names may be no valid text
        return

    def failed(error: OSError) -> None:
        _unread(str(error.filename), error, findings)

    for folder, folders, files in os.walk(path, onerror=failed):
        yield from (os.path.join(folder, name) for name in (*folders, *files))  # noqa: PTH118


def _unread(where: str, error: OSError, findings: Findings) -> None:
    if not isinstance(error, FileNotFoundError | ProcessLookupError):  # gone meanwhile: nothing is there
        findings.unread.append(f"{where}: {error.strerror}")


def scan_file(path: str, search: Search, changed_since: float = 0.0) -> None:
    """Search one file, link or directory: its name, and what it holds, but nothing below it.

    Args:
        path: what to search.
        search: what is looked for.
        changed_since: Unix seconds; it is left out unless its inode has changed since.
    """
    try:
        status = os.lstat(path)
        if status.st_ctime < changed_since:
            return
        search.name(path)
        if stat.S_ISLNK(status.st_mode):
            search.content(f"{path} (link)", os.readlink(path).encode("utf-8", "surrogateescape"))  # noqa: PTH115
        elif stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:  # noqa: PTH123 -- as above
                search.stream(path, file)
    except OSError as error:
        _unread(path, error, search.findings)


def tokenizer_of(model: Path) -> Tokenize:
    """The tokenizer of a model directory.

    Raises:
        ValueError: there is none.
    """
    from tokenizers import Tokenizer  # noqa: PLC0415 -- only where token ids are asked for

    file = model / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{model} has no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(file))

    def tokenize(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return tokenize


def report(findings: Findings, seconds: float) -> int:
    """Print what was found; returns the exit code."""
    for hit in sorted(findings.hits):
        print(f"{_printable(hit.where)}:{hit.offset}: canary {hit.canary} ({hit.form})")
    for line in findings.unread:
        print(f"canary-scan: {_printable(line)}", file=sys.stderr)
    rate = findings.searched / 1e6 / max(seconds, 1e-9)
    print(f"canary-scan: {len(findings.hits)} hits in {findings.searched} bytes, {rate:.0f} MB/s", file=sys.stderr)
    return 1 if findings.hits else 2 if findings.unread else 0


def _printable(text: str) -> str:
    return text.encode("unicode_escape").decode()


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    summary, _, rest = str(__doc__).partition("\n")
    parser = argparse.ArgumentParser(
        prog="canary-scan", description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--canary", action="append", default=[], help="a planted string; repeatable")
    parser.add_argument(
        "--canaries-from", type=Path, help="a file of planted strings, one a line: they stay out of `ps`"
    )
    parser.add_argument("--tokens", type=Path, metavar="MODEL_DIR", help="also look for their token ids")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files, directories, or - for standard input")
    return parser.parse_args(words)


def _search(given: argparse.Namespace) -> Search:
    canaries = list(given.canary)
    if given.canaries_from is not None:
        canaries += [line for line in given.canaries_from.read_text().splitlines() if line]
    if not canaries:
        raise ValueError("nothing to look for: give --canary or --canaries-from")
    missing = [path for path in given.paths if path != _STDIN and not os.path.lexists(path)]
    if missing:
        raise ValueError(f"no such file: {missing[0]}")
    return Search(needles(canaries, None if given.tokens is None else tokenizer_of(given.tokens)))


def main(words: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    given = _arguments(words)
    started = time.monotonic()
    try:
        search = _search(given)
    except (ValueError, OSError) as error:
        print(f"canary-scan: {error}", file=sys.stderr)
        return 2
    return report(scan(given.paths, search), time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
