"""The names under trainer/ follow docs/glossary.md, and the source keeps to the sizes that keep it readable."""

from __future__ import annotations

import ast
import graphlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trainer"
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text("utf-8")
SOURCES = {
    path.relative_to(ROOT): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {path: ast.parse(source) for path, source in SOURCES.items()}

MOST_FILE_LINES = 319
MOST_BODY_LINES = 59
NAMES_OF_EVERY_PACKAGE = {"__init__", "__main__"}

# Words that were replaced: no part of a class, function, module or parameter name under trainer/ may be one.
RETIRED = {
    "ahead": "preloader",
    "confinement": "sandbox",
    "conveyor": "thread_pool",
    "ending": "outcome",
    "household": "processes",
    "kept": "saved",
    "located": "the thing that was located",
    "meeting": "rendezvous",
    "patience": "early_stopping (training) or retry_policy (transport)",
    "resumption": "resumed_state",
    "saver": "writer",
    "seat": "rank",
    "sound": "finite",
    "soundness": "divergence",
    "story": "run",
    "told": "signalled",
    "wall": "sandbox_property",
    "walls": "sandbox",
    "wire": "http_client",
    "witness": "evidence_issuer",
}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(path: Path) -> str:
    """`trainer/sealing/seal.py` → `trainer.sealing.seal`; a package's `__init__.py` → the package."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def definitions(*kinds: type[ast.AST]) -> Iterator[tuple[Path, ast.AST]]:
    for path, tree in TREES.items():
        yield from ((path, node) for node in ast.walk(tree) if isinstance(node, kinds))


def name_parts(name: str) -> set[str]:
    """`_SubmissionRun` → submission, run; `rendezvous_dir` → rendezvous, dir."""
    return {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def declared_names() -> Iterator[tuple[Path, str]]:
    """Every name of a module, class, function or parameter, with the file that declares it."""
    for path in TREES:
        yield path, path.parent.name if path.stem in NAMES_OF_EVERY_PACKAGE else path.stem
    for path, node in definitions(ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.arg):
        yield path, node.arg if isinstance(node, ast.arg) else node.name  # type: ignore[attr-defined]


# names


def test_no_class_name_stands_for_two_classes() -> None:
    places = defaultdict(list)
    for path, node in definitions(ast.ClassDef):
        places[node.name].append(str(path))  # type: ignore[attr-defined]
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_no_module_name_stands_for_two_modules_unless_the_glossary_says_why() -> None:
    section = GLOSSARY.partition("## Names that stand twice")[2]
    counts = Counter(path.stem for path in TREES)
    repeated = {name for name, count in counts.items() if count > 1} - NAMES_OF_EVERY_PACKAGE
    assert {
        name for name in repeated if not re.search(rf"^\| `{name}` \|.+\|", section, re.MULTILINE)
    } == set()


def test_the_glossary_excuses_no_module_name_that_is_unique() -> None:
    section = GLOSSARY.partition("## Names that stand twice")[2]
    counts = Counter(path.stem for path in TREES)
    assert [
        name for name in re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) if counts[name] < 2
    ] == []


def test_every_term_of_the_glossary_is_explained_once() -> None:
    counts = Counter(re.findall(r"^\| ([^|*]+?),? (?:\*.+?\* )?\|", GLOSSARY, re.MULTILINE))
    assert len(counts) > 50
    assert [term for term, count in counts.items() if count > 1 and term != "term"] == []


def test_every_code_name_of_the_glossary_exists() -> None:
    """The last column names paths and definitions: classes, functions, modules, parameters, fields."""
    known = {name for _, name in declared_names()}
    for _, node in definitions(ast.AnnAssign, ast.Assign):
        targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets  # type: ignore[attr-defined]
        known |= {target.id for target in targets if isinstance(target, ast.Name)}
    columns = [
        line.strip("| ").split(" | ")[2:] for line in GLOSSARY.splitlines() if line.startswith("| ")
    ]
    mentioned = re.findall(r"`([^`]+)`", "\n".join(code for column in columns for code in column))
    assert len(mentioned) > 40
    assert [name for name in mentioned if name not in known and not (ROOT / name).exists()] == []


def test_no_name_uses_a_retired_word() -> None:
    used = [
        f"{path}: {name} → {RETIRED[word]}"
        for path, name in declared_names()
        for word in sorted(name_parts(name) & set(RETIRED))
    ]
    assert used == []


# sizes and documentation


def test_files_stay_short() -> None:
    lengths = {str(path): len(source.splitlines()) for path, source in SOURCES.items()}
    assert {path: length for path, length in lengths.items() if length > MOST_FILE_LINES} == {}


def body_lines(path: Path, function: FunctionNode) -> int:
    """Lines of the body without its docstring, blank lines and lines that are only a comment."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    lines = SOURCES[path].splitlines()[body[0].lineno - 1 : function.end_lineno]
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in lines)


def test_functions_stay_short() -> None:
    lengths = {
        f"{path}:{node.name}": body_lines(path, node)
        for path, node in definitions(ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, FunctionNode)
    }
    assert {name: length for name, length in lengths.items() if length > MOST_BODY_LINES} == {}


def test_every_function_declares_what_it_returns() -> None:
    functions = definitions(ast.FunctionDef, ast.AsyncFunctionDef)
    assert [f"{path}:{node.lineno}" for path, node in functions if node.returns is None] == []  # type: ignore[attr-defined]


def public_definitions(body: list[ast.stmt]) -> Iterator[ast.ClassDef | FunctionNode]:
    """Public functions and classes of a module, and the public members of its public classes."""
    for node in body:
        if isinstance(node, ast.ClassDef | FunctionNode) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body)


def test_every_public_definition_has_a_docstring() -> None:
    missing = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in TREES.items()
        for node in public_definitions(tree.body)
        if not ast.get_docstring(node) and not is_described_elsewhere(node)
    ]
    assert missing == []
    assert [
        str(path) for path, tree in TREES.items() if tree.body and not ast.get_docstring(tree)
    ] == []


def is_described_elsewhere(node: ast.ClassDef | FunctionNode) -> bool:
    """Overloads, overrides and setters are described by the definition that they belong to."""
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return not decorators.isdisjoint({"overload", "override", "setter", "deleter"})


# imports


def run_time_imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import, those inside functions too, apart from blocks under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            yield from run_time_imports(node)


def imported_modules(tree: ast.AST, modules: set[str]) -> set[str]:
    found = set()
    for node in run_time_imports(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= submodules or {str(node.module)}
    return found & modules


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {module_name(path) for path in TREES}
    graph = {module_name(path): imported_modules(tree, modules) for path, tree in TREES.items()}
    assert sum(map(len, graph.values())) > 500
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def top_level_names(tree: ast.Module) -> set[str]:
    """Names that a module defines or imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | FunctionNode):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name) for alias in node.names}
    return names


def test_programs_inside_strings_import_what_exists() -> None:
    """Tests and benchmarks hand programs to `python -c`; no type checker reads their imports."""
    names = {module_name(path): top_level_names(tree) for path, tree in TREES.items()}
    imports = re.compile(r"from (trainer(?:\.\w+)*) import (\w+(?: as \w+)?(?:, \w+(?: as \w+)?)*)")
    missing, count = [], 0
    for folder in ("tests", "benchmarks", "scripts", "trainer"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for module, imported in imports.findall(path.read_text("utf-8")):
                for name in (words.split()[0] for words in imported.split(", ")):
                    count += 1
                    if name not in names.get(module, ()) and f"{module}.{name}" not in names:
                        missing.append(f"{path.relative_to(ROOT)}: {module}.{name}")
    assert count > 1000
    assert missing == []
