"""What the pages name exists: links, paths, tests, commands and scripts with their options, and counts."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import typer

from trainer.attestation.catalogue import DATASET_CHECKS
from trainer.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [
    *(
        path
        for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")
        if (path := ROOT / name).exists()
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "trainer" / "SPEC.md",
]
TOP_LEVEL = {path.name for path in ROOT.iterdir()} - {".git", ".venv"}
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`((?:[^`\n]|\n(?!\n))+)`")
TEST_NAME = re.compile(r"(?:(tests/[\w/]+\.py|test_\w+\.py)::)?(test_\w+)(?:\[.*\])?")
NOT_TESTS = {"test_split_size"}  # a key of the job spec

# Paths that are not the project's: of the VM, of the provider's machine, of archives, and labels with slashes.
OUTSIDE = [
    "/*",
    "./*",
    "../…",
    "$*",
    "https://*",
    "application/*",
    "text/*",
    "tag:*",
    "confidential-trainer/*",
    ".venv/*",
    *(
        "adapter/*",
        "best/*",
        "data/*",
        '"eval/*',
        "eval/*",
        "logs/*",
        "merged/*",
        "optimizer/*",
        "provider-*/*",
        "random/*",
        "receipts/*",
        "report/*",
    ),
]
# Options of other programs.
FOREIGN_OPTIONS = {
    "--secret",  # of docker
    "--max-lora-rank",  # of vLLM
    "--chat-template-file",  # of llama.cpp; the others of Phala Cloud's client
    "--disk-size",
    "--experimental-key-provider-type",
    "--instance-type",
    "--no-dev-os",
    "--no-pre-launch-script",
    "--no-public-logs",
    "--secure-time",
}
# Files that a user names or that other programs write.
USERS_FILES = {"DIR.deletion.json", "result.deletion.json", ".txt", ".json", ".jsonl"}


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text("utf-8"))


def spans(page: Path) -> list[str]:
    return [" ".join(span.split()) for span in SPAN.findall(prose(page))]


def code_lines(page: Path) -> Iterator[str]:
    """Lines of the page's shell blocks, continuation lines joined."""
    for language, block in FENCE.findall(page.read_text("utf-8")):
        if language in {"sh", "shell", "bash", "console"}:
            yield from (
                line.strip().removeprefix("$ ") for line in block.replace("\\\n", " ").splitlines()
            )


def repository_files() -> set[str]:
    """Files and directories of the project, as paths from its root; what tools left behind is not looked at."""
    skipped = {".git", ".venv", "__pycache__", "node_modules", "build"}
    paths = (
        path.relative_to(ROOT)
        for name in TOP_LEVEL
        for path in [ROOT / name, *(ROOT / name).rglob("*")]
    )
    return {
        path.as_posix()
        for path in paths
        if skipped.isdisjoint(path.parts) and path.suffix != ".pyc"
    }


FILES = repository_files()
SOURCES = "\n".join(
    (ROOT / name).read_text("utf-8")
    for name in sorted(FILES)
    if re.match(r"(trainer|scripts)/.+py$", name)
)
SCRIPTS = "\n".join(
    (ROOT / name).read_text("utf-8")
    for name in sorted(FILES)
    if re.match(r"(scripts|benchmarks)/[\w.-]+$", name)
)


def alternatives(path: str) -> list[str]:
    """`a/{b,c}.py` → a/b.py, a/c.py."""
    if match := re.search(r"\{([^{}]*)\}", path):
        return [path.replace(match[0], choice.strip(), 1) for choice in match[1].split(",")]
    return [path]


def is_path(span: str) -> bool:
    file_name = re.search(r"(^|\w)\.(py|md|json|jsonl|yaml|toml|txt|html|sh)(::|$)", span)
    return (
        " " not in span.strip()
        and "(" not in span
        and not span.startswith("<")
        and ("/" in span or file_name is not None)
    )


def path_exists(span: str) -> bool:
    """A path from the root, or the unambiguous end of one, as pages about one package name its modules."""
    # NAME stands for a name that the reader chooses.
    path = span.partition("::")[0].partition("#")[0].rstrip("/").replace("NAME", "*")
    if any(fnmatchcase(path, pattern) for pattern in OUTSIDE) or (
        span.endswith("/") and f'"{path}"' in SOURCES
    ):
        return True
    if "/" not in path and not path.endswith((".py", ".md", ".sh")):
        # A file that the program reads or writes.
        return path in TOP_LEVEL | USERS_FILES or path in SOURCES
    if "*" in path:
        return any(fnmatchcase(name, path) for name in FILES)
    if path.partition("/")[0] in TOP_LEVEL:
        return path in FILES
    return any(name.endswith(f"/{path}") for name in FILES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_path_exists(page: Path) -> None:
    missing = [
        path
        for span in spans(page)
        if is_path(span)
        for path in alternatives(span)
        if not path_exists(path)
    ]
    assert missing == []


def heading_anchors(page: Path) -> set[str]:
    """Anchors as the usual renderers derive them from headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page))):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not link.startswith(("https://", "http://", "mailto:")):
            broken += (
                [link]
                if not target.exists() or (anchor and anchor not in heading_anchors(target))
                else []
            )
    assert broken == []


def functions_of_tests() -> dict[str, set[str]]:
    """Names of test functions → the files that define them."""
    places: dict[str, set[str]] = {}
    for path in (name for name in FILES if re.fullmatch(r"tests/.*\.py", name)):
        for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                places.setdefault(node.name, set()).add(path)
    return places


def test_every_test_exists() -> None:
    places = functions_of_tests()
    missing = []
    for page in PAGES:
        for span in spans(page):
            if (match := TEST_NAME.fullmatch(span)) and span not in NOT_TESTS:
                files = {
                    path for path in places.get(match[2], set()) if path.endswith(match[1] or "")
                }
                modules = {
                    name for name in FILES if name.endswith(f"/{match[2]}.py") and not match[1]
                }
                missing += [f"{page.name}: {span}"] if not files | modules else []
    assert missing == []


# commands


def command_lines() -> Iterator[tuple[Path, list[str]]]:
    """Arguments of each `trainer` command line, without comments and placeholders such as `…`."""
    for page in PAGES:
        inline = [span for span in spans(page) if span.startswith("trainer ")]
        for line in [*inline, *code_lines(page)]:
            words = shlex.split(line, comments=True)
            program = words[0].rpartition("/")[2] if words else ""
            if program == "trainer" and len(words) > 1:
                yield page, [word for word in words[1:] if word not in {"…", "DATA…"}]


def interface_options(command: Any) -> set[str]:
    """Every option of the command and of the commands below it."""
    below = [interface_options(child) for child in getattr(command, "commands", {}).values()]
    return {"-h", "--help"}.union(*(parameter.opts for parameter in command.params), *below)


def test_every_option_that_a_page_names_alone_exists() -> None:
    """`--name VALUE` without a command before it is an option of `trainer`, of a child process or of a script."""
    options = interface_options(typer.main.get_command(app)) | FOREIGN_OPTIONS
    named = [
        (page, span.split()[0])
        for page in PAGES
        for span in spans(page)
        if re.match(r"--[a-z]", span)
    ]
    assert len(named) > 20
    unknown = [(page, name) for page, name in named if name not in options and name not in SCRIPTS]
    assert [f"{page.name}: {name}" for page, name in unknown if f'"{name}"' not in SOURCES] == []


def unknown_words(arguments: list[str]) -> list[str]:
    """Subcommands and options that the command line interface does not have."""
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return rest[:1]
        command = command.commands[rest.pop(0)]
    options = {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    given = [word.partition("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)]
    return [word for word in given if word not in options | {"-h", "--help"}]


def test_every_command_and_option_exists() -> None:
    lines = list(command_lines())
    assert len(lines) > 30
    assert [
        f"{page.name}: {shlex.join(words)}" for page, words in lines if unknown_words(words)
    ] == []


def test_complete_command_lines_parse() -> None:
    """In shell blocks, where arguments are complete, the interface's own parser accepts each line."""
    group: Any = typer.main.get_command(app)
    parsed = 0
    for page in PAGES:
        for line in code_lines(page):
            words = shlex.split(line, comments=True)
            if words[:1] == ["trainer"] and "…" not in line:
                context = group.make_context("trainer", words[1:], resilient_parsing=True)
                parsed += 1
                command, rest = group, words[1:]
                while hasattr(command, "commands") and rest:
                    name, command, rest = command.resolve_command(context, rest)
                    context = command.make_context(
                        name, list(rest), parent=context, resilient_parsing=True
                    )
                    assert not hasattr(command, "commands") or rest, f"{page.name}: {line}"
    assert parsed > 5


def script_source(path: Path, seen: frozenset[Path] = frozenset()) -> str:
    """The script's text with that of the scripts which it names, to which it may hand its arguments."""
    text = path.read_text("utf-8")
    named = (
        {ROOT / "scripts" / name for name in re.findall(r"(?:scripts/|\$here/)(\w+\.py)", text)}
        - seen
        - {path}
    )
    return text + "".join(
        script_source(other, seen | named | {path}) for other in sorted(named) if other.exists()
    )


def script_lines() -> Iterator[tuple[Path, Path, list[str]]]:
    """(page, script, options) of each line that runs a script or benchmark."""
    for page in PAGES:
        for text in [*spans(page), *code_lines(page)]:
            line = re.sub(r"-m (scripts|benchmarks)\.(\w+)", r"\1/\2.py", text)
            if match := re.search(r"(?:^|\s|\./)((?:scripts|benchmarks)/[\w.-]+)(.*)", line):
                yield (
                    page,
                    ROOT / match[1],
                    re.findall(r"(?<=\s)--?[a-z][\w-]*", match[2].partition("#")[0]),
                )


def test_every_script_and_its_options_exist() -> None:
    lines = list(script_lines())
    assert len(lines) > 15
    wrong = []
    for page, script, options in lines:
        text = script_source(script) if script.is_file() else ""
        wrong += [f"{page.name}: {script.name}"] if not text else []
        wrong += [
            f"{page.name}: {script.name} {option}"
            for option in options
            if text and option not in text
        ]
    assert wrong == []


# figures


def test_counts_of_checks_and_attacks_are_those_of_the_code() -> None:
    """docs/checks.md is written from the code; where other pages count checks or attacks, they agree with it."""
    checks_page = (ROOT / "docs" / "checks.md").read_text("utf-8")
    attacks = re.findall(r"make (\d+) attacks on dataset evidence", checks_page)
    assert len(attacks) == 1
    counts = {
        "checks": {str(len(DATASET_CHECKS))},
        "codes": {str(len(DATASET_CHECKS))},
        "attacks": set(attacks),
    }
    counts["single fields"] = counts["attacks"]
    pages = [page for page in PAGES if "decisions" not in page.parts and page.name != "checks.md"]
    figures = [
        (page.name, number, noun)
        for page in pages
        for number, noun in re.findall(
            r"\b(\d+) (?:numbered |single-field |check )?(?:on )?(checks|codes|attacks|single fields)\b",
            prose(page),
        )
    ]
    assert len(figures) > 2
    assert [figure for figure in figures if figure[1] not in counts[figure[2]]] == []
