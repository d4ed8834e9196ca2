"""The direction of imports, read from the source, and what importing the packages does not import."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.registry import NOT_PAPERS, discover

ROOT = Path(__file__).resolve().parents[1]
OURS = ("lightnet", "ssm", "kd", "experiments")
ALLOWED = {
    "lightnet": ("lightnet",),
    "ssm": ("ssm", "lightnet.scan", "lightnet.typing", "lightnet.backbone"),
    "kd": ("kd",),
    "experiments": OURS,
}
HEAVY = {"jax", "flax", "grain", "matplotlib", "tokenizers", "tyro"}
LIGHT_NAMES = ("results", "runs", "errors", "statistics", "claims", "registry")
LIGHT = ["experiments", *(f"experiments.{name}" for name in LIGHT_NAMES)]


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a module is one of the prefixes or inside one."""
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def module_name(path: Path, root: Path) -> str:
    """Dotted name of a source file."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str, root: Path) -> bool:
    """Whether a dotted name is a file or a package under root."""
    path = root.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def imports(path: Path, root: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, at any depth, relative imports resolved."""
    package = module_name(path, root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                # a name may be a module (`from lightnet import backbone`) or something in one
                yield name if is_module(name := f"{base}.{alias.name}", root) else base


def wrong_imports(root: Path) -> list[str]:
    """Every import against the arrows of the design, as "file imports module"."""
    wrong = []
    for package in OURS:
        for path in sorted((root / package).rglob("*.py")):
            allowed = ALLOWED[package]
            for module in imports(path, root):
                if within(module, OURS) and not within(module, allowed):
                    wrong.append(f"{path.relative_to(root)} imports {module}")
    return wrong


def wrong_paper_imports(root: Path) -> list[str]:
    """Every import of a paper's folder from outside that folder."""
    folders = [path for path in sorted((root / "experiments").iterdir()) if any(path.glob("*.py"))]
    papers = [f"experiments.{path.name}" for path in folders if path.name not in NOT_PAPERS]
    wrong = []
    for path in sorted((root / "experiments").rglob("*.py")):
        own = ".".join(module_name(path, root).split(".")[:2])
        others = tuple(paper for paper in papers if paper != own)
        wrong += [f"{path.relative_to(root)} imports {name}" for name in imports(path, root) if within(name, others)]
    return wrong


def test_arrows() -> None:
    assert wrong_imports(ROOT) == []


def test_papers_do_not_import_each_other() -> None:
    assert wrong_paper_imports(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "caught"),
    [
        ("lightnet/a.py", "import experiments.results", True),
        ("lightnet/a.py", "def f():\n    from ssm import s4", True),
        ("lightnet/scan/a.py", "from ...ssm import s4", True),
        ("lightnet/scan/a.py", "from ..typing import Array", False),
        ("ssm/a.py", "from lightnet import mixers", True),
        ("ssm/a.py", "from lightnet.mixers import Attention", True),
        ("ssm/a.py", "import lightnet", True),
        ("ssm/a.py", "from lightnet import backbone, typing", False),
        ("ssm/a.py", "import lightnet.scan.linear", False),
        ("ssm/a.py", "import lightnet.scanner", True),
        ("kd/a.py", "from lightnet.typing import Array", True),
        ("kd/__init__.py", "from .losses import kl", False),
        ("experiments/a.py", "import kd, ssm, lightnet.mixers", False),
    ],
)
def test_arrows_catch(tmp_path: Path, file: str, line: str, caught: bool) -> None:
    for name in ("lightnet/backbone", "lightnet/typing", "lightnet/mixers", "lightnet/scan/__init__", "ssm/s4"):
        (tmp_path / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.py").touch()
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(line)
    assert bool(wrong_imports(tmp_path)) == caught


@pytest.mark.parametrize(
    ("file", "line", "caught"),
    [
        ("first/a.py", "from experiments.second.b import run", True),
        ("first/a.py", "from ..second import b", True),
        ("first/a.py", "from experiments import second", True),
        ("first/a.py", "from . import c\nfrom experiments.training import loop", False),
        ("training/a.py", "import experiments.first.c", True),
        ("training/a.py", "from experiments import results", False),
    ],
)
def test_paper_imports_catch(tmp_path: Path, file: str, line: str, caught: bool) -> None:
    for name in ("first/c", "second/b", "training/loop", "results"):
        path = tmp_path / "experiments" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "experiments" / file).write_text(line)
    assert bool(wrong_paper_imports(tmp_path)) == caught


def loaded_after(modules: list[str], **environment: str) -> set[str]:
    """Names of top-level modules that a fresh interpreter holds after importing these."""
    program = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_tensorflow_and_torch_are_not_imported(tmp_path: Path) -> None:
    for name in ("tensorflow", "torch", "transformers"):
        # found first, so that an import of it is seen whether or not the real one is installed
        (tmp_path / f"{name}.py").write_text("__version__ = '0'\n")
    files = [path for package in OURS for path in sorted((ROOT / package).rglob("*.py")) if path.name != "__main__.py"]
    loaded = loaded_after([module_name(path, ROOT) for path in files], PYTHONPATH=str(tmp_path))
    assert loaded & {"tensorflow", "torch", "transformers"} == set()


def test_what_list_needs_is_light() -> None:
    modules = [name for name in LIGHT if importlib.util.find_spec(name)]
    modules += [f"experiments.{id.replace('/', '.')}" for id in discover()]
    assert loaded_after(modules) & HEAVY == set()
