"""The house stays in order: no circles of files, no full rooms, no endless files or functions."""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "ofa", "oneshot", "predictors", "export")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_no_files_import_each_other_in_a_circle() -> None:
    """import-linter holds the layers between packages; this is about the files inside them."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_rooms_are_not_full() -> None:
    rooms = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert [f"{room}: {count} files" for room, count in rooms.items() if count > 14] == []


def test_files_and_functions_end() -> None:
    long = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 400:
            long.append(f"{path} has more than 400 lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60:
                long.append(f"{path}:{node.lineno} {node.name} has 60 lines or more")
    assert long == []
