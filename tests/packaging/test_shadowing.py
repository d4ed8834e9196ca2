"""A user's own folder named `experiments`: harmless without `__init__.py`, told in one line with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(folder: Path, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in a folder, with another folder first on its path."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("hiding", ["experiments/__init__.py", "experiments.py"])
def test_a_package_on_the_path_is_told_in_one_line(tmp_path: Path, hiding: str) -> None:
    other = tmp_path / "other place"
    file = other / hiding
    file.parent.mkdir(parents=True)
    file.write_text("raise RuntimeError('must not be imported')\n")
    done = run(tmp_path, "-m", "lightnet_lab", "list", path=other)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and str(file.parent if file.name == "__init__.py" else file) in line
    assert "PYTHONPATH" in line


def test_a_package_in_the_current_folder_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("")
    done = run(tmp_path, "-m", "lightnet_lab", "list")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "experiments") in line and "rename it" in line


@pytest.mark.parametrize("module", ["experiments", "lightnet_lab"])
def test_a_plain_folder_hides_nothing(tmp_path: Path, module: str) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "notes.txt").write_text("mine")
    done = run(tmp_path, "-m", module, "list")
    assert done.returncode == 0, done.stderr


def test_no_experiments_at_all_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "lightnet_lab.py").write_bytes((Path(__file__).resolve().parents[2] / "lightnet_lab.py").read_bytes())
    done = run(tmp_path, "-S", "lightnet_lab.py", "list")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
