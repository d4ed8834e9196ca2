"""The README of this folder names tests that exist, has all fifteen numbers, and forgets no test of this folder."""

import ast
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
TABLE = re.compile(r"^\| (\d+) \| .+ \| (.+) \|$", re.MULTILINE)


def names_in(path: Path) -> list[str]:
    """Names of the test functions of a file, as pytest collects them."""
    body = ast.parse(path.read_text()).body
    return [node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def test_these_are_the_names_that_pytest_collects(request):
    for item in request.session.items:
        if item.path.parent == FOLDER and isinstance(item, pytest.Function):
            assert item.originalname in names_in(item.path)


def test_the_readme_lists_the_tests_by_number():
    text = (FOLDER / "README.md").read_text()
    rows = {int(number): re.findall(r"`([^`]+)`", cell) for number, cell in TABLE.findall(text)}
    assert list(rows) == list(range(1, 16)) and all(rows.values())
    for file, _, name in (entry.partition("::") for entries in rows.values() for entry in entries):
        assert name in names_in(FOLDER / file) or (not name and names_in(FOLDER / file)), f"{file}::{name}"


def test_no_test_of_this_folder_is_missing_in_the_readme():
    text = (FOLDER / "README.md").read_text()
    for path in FOLDER.glob("test_*.py"):
        if path != Path(__file__) and f"`{path.name}`" not in text:
            assert [name for name in names_in(path) if f"`{path.name}::{name}`" not in text] == []
