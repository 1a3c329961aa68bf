"""Each check is one object, in one place of each list, judged in one place of the module that defines it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

import trainer.attestation
from trainer.attestation.catalogue import DATASET_CHECKS, DEFINITIONS, STATEMENT_CHECKS
from trainer.attestation.checks import CheckDefinition, Ledger
from trainer.attestation.claims.claims_checks import NONCE
from trainer.attestation.claims.statement_checks import SAME_JOB

FOLDER = Path(trainer.attestation.__file__).parent
JUDGING = ("judge", "compare", "leave_open", "judge_each_report")
LISTED = {*DATASET_CHECKS, *STATEMENT_CHECKS}


def modules() -> dict[str, ast.Module]:
    """Module name → syntax tree, of everything below `trainer/attestation`."""
    paths = sorted(FOLDER.rglob("*.py"))
    parts = [path.relative_to(FOLDER.parents[1]).with_suffix("").parts for path in paths]
    return {
        ".".join(name): ast.parse(path.read_text()) for name, path in zip(parts, paths, strict=True)
    }


def defined(name: str, tree: ast.Module) -> dict[str, CheckDefinition]:
    """Variable name → definition, of the definitions that a module makes."""
    made = {
        node.target.id
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.value, ast.Call)
        and getattr(node.value.func, "id", None) == "CheckDefinition"
    }
    return {variable: getattr(import_module(name), variable) for variable in made}


def judged(node: ast.AST) -> set[str]:
    """Names that a function or a table judges: arguments of a call that records an outcome, and keys of tables."""
    names = []
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call) and called(inner) in JUDGING:
            names += inner.args
        elif isinstance(inner, ast.Dict):
            names += [key for key in inner.keys if key is not None]
    return {name.id for name in names if isinstance(name, ast.Name)}


def called(call: ast.Call) -> str:
    """The name of the function that is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def test_each_definition_is_made_once_and_listed_once() -> None:
    made = [
        definition
        for name, tree in modules().items()
        for definition in defined(name, tree).values()
    ]
    assert Counter(made) == Counter(LISTED)
    for checks in (DATASET_CHECKS, STATEMENT_CHECKS):
        assert len(checks) == len(set(checks)) == len({definition.code for definition in checks})


def test_each_definition_is_judged_in_one_place_beside_it() -> None:
    for name, tree in modules().items():
        for variable, definition in defined(name, tree).items():
            constant = definition.code.upper().replace("-", "_")
            assert variable in (constant, f"STATEMENT_{constant}")
            places = [node for node in tree.body if variable in judged(node)]
            assert len(places) == 1, definition.code


def test_no_other_module_judges_a_check() -> None:
    trees = modules()
    owners = {variable: name for name, tree in trees.items() for variable in defined(name, tree)}
    for name, tree in trees.items():
        assert {owners[variable] for variable in judged(tree) & set(owners)} <= {name}


def test_each_definition_is_complete() -> None:
    for definition in LISTED:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", definition.code)
        assert definition.title
        assert definition.attack
    assert all(definition.claim for definition in DATASET_CHECKS)
    assert set(DEFINITIONS) == {definition.code for definition in LISTED}


def test_what_both_lists_judge_counts_towards_one_claim() -> None:
    """The same code with another question, such as `report-data` of a statement, is shown in the same group."""
    for definition in STATEMENT_CHECKS:
        if definition.claim is not None:
            assert definition.claim == DEFINITIONS[definition.code].claim


def test_a_ledger_records_each_check_once() -> None:
    ledger = Ledger(DATASET_CHECKS)
    ledger.judge(NONCE, True, expected="a", found="a")
    with pytest.raises(ValueError, match="twice"):
        ledger.leave_open(NONCE)


def test_a_ledger_records_no_check_of_another_list() -> None:
    with pytest.raises(ValueError, match="not in the list"):
        Ledger(DATASET_CHECKS).leave_open(SAME_JOB)
