"""Search files and directories for planted strings, in every encoding in which they may have leaked.

    scripts/canary-scan --canary 'unique string' /var/lib/containers
    scripts/canary-scan --canaries-from canaries.txt --tokens MODEL_DIR /tmp run.log
    tcpdump -i lo -w - | scripts/canary-scan --canary 'unique string' -

Forms: UTF-8, UTF-16 and UTF-32; base64 at every alignment, also url-safe and wrapped; hex, also spaced; percent,
JSON, Python and HTML escapes; reversed; in any case; with --tokens also token ids as integer arrays and decimal
lists. Names of files, targets of links, and what is packed with gzip, bzip2, xz, zstd, zlib, zip and tar are
searched too. It prints path, byte offset and form, never the surroundings. An archive inside an archive is given
as `outer!inner`.

Exit code: 0 nothing found, 1 something found, 2 wrong usage, or something could not be read and may hold a canary.
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

from canary_forms import Tokenize, needles  # noqa: E402 -- after the change of sys.path
from canary_search import Findings, Search  # noqa: E402

_STDIN: Final = "-"


def scan(paths: Sequence[str], search: Search, *, changed_since: float = 0.0) -> Findings:
    """Search files and directory trees; returns the findings of `search`.

    Args:
        paths: files and directories; `-` is standard input.
        search: the search for all canaries.
        changed_since: Unix seconds; files whose inode has not changed since then are skipped.
    """
    for path in paths:
        if path == _STDIN:
            search.content("stdin", sys.stdin.buffer.read())
            continue
        for file in _below(path, search.findings):
            scan_file(file, search, changed_since)
    return search.findings


def _below(path: str, findings: Findings) -> Iterator[str]:
    """Yield a path and everything below it; symbolic links are not followed."""
    yield path
    if not os.path.isdir(path) or os.path.islink(path):  # noqa: PTH112,PTH114 -- names may not be valid text
        return

    def failed(error: OSError) -> None:
        _unread(str(error.filename), error, findings)

    for folder, folders, files in os.walk(path, onerror=failed):
        yield from (os.path.join(folder, name) for name in (*folders, *files))  # noqa: PTH118


def _unread(where: str, error: OSError, findings: Findings) -> None:
    # A file that was removed during the search cannot leak anything any more.
    if not isinstance(error, FileNotFoundError | ProcessLookupError):
        findings.unread.append(f"{where}: {error.strerror}")


def scan_file(path: str, search: Search, changed_since: float = 0.0) -> None:
    """Search one path: its name, the content of a file, the target of a link; nothing below a directory.

    Args:
        path: file, link or directory.
        search: the search for all canaries.
        changed_since: Unix seconds; the path is skipped if its inode has not changed since then.
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
    """Load the tokenizer of a model directory.

    Raises:
        ValueError: the directory has no tokenizer.json.
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
    print(
        f"canary-scan: {len(findings.hits)} hits in {findings.searched} bytes, {rate:.0f} MB/s",
        file=sys.stderr,
    )
    return 1 if findings.hits else 2 if findings.unread else 0


def _printable(text: str) -> str:
    return text.encode("unicode_escape").decode()


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    summary, _, rest = str(__doc__).partition("\n")
    parser = argparse.ArgumentParser(
        prog="canary-scan",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--canary", action="append", default=[], help="a planted string; repeatable"
    )
    parser.add_argument(
        "--canaries-from",
        type=Path,
        help="a file of planted strings, one a line: they stay out of `ps`",
    )
    parser.add_argument(
        "--tokens", type=Path, metavar="MODEL_DIR", help="also look for their token ids"
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="files, directories, or - for standard input"
    )
    return parser.parse_args(words)


def _search(options: argparse.Namespace) -> Search:
    canaries = list(options.canary)
    if options.canaries_from is not None:
        canaries += [line for line in options.canaries_from.read_text().splitlines() if line]
    if not canaries:
        raise ValueError("nothing to look for: give --canary or --canaries-from")
    missing = [path for path in options.paths if path != _STDIN and not os.path.lexists(path)]
    if missing:
        raise ValueError(f"no such file: {missing[0]}")
    return Search(
        needles(canaries, None if options.tokens is None else tokenizer_of(options.tokens))
    )


def main(words: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    options = _arguments(words)
    started = time.monotonic()
    try:
        search = _search(options)
    except (ValueError, OSError) as error:
        print(f"canary-scan: {error}", file=sys.stderr)
        return 2
    return report(scan(options.paths, search), time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
