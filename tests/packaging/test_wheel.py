"""The wheel holds what it should, and a user's project outside the checkout runs on it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lightnet", "ssm", "kd", "experiments")


def run_outside(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder outside the checkout with the installed wheel, the checkout not on its path.

    `-P` leaves out the current folder and PYTHONPATH puts the wheel before the editable install.
    """
    environment = os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
    environment.pop("LIGHTNET_RUNS", None)
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    kept = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGES, "lightnet_lab.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    assert names == {name for name in kept if (ROOT / name).is_file()}
    assert "experiments/CLAIMS.toml" in names


def test_metadata(site: Path) -> None:
    (folder,) = site.glob("lightnet_lab-*.dist-info")
    assert (folder / "entry_points.txt").read_text().strip() == "[console_scripts]\nlightnet-lab = lightnet_lab:main"
    assert (folder / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    metadata = (folder / "METADATA").read_text()
    assert "License-Expression: Apache-2.0" in metadata
    for line in metadata.splitlines():
        if line.startswith("Requires-Dist: ") and ";" not in line:
            assert ">=" in line and "<" in line, f"no bounds: {line}"


def test_constraints_hold_names_and_versions_only() -> None:
    line = re.compile(r'[A-Za-z0-9._-]+==[0-9][0-9a-z.]*( ; python_version (<|>=) "3\.12")?|#.*')
    others = [text for text in (ROOT / "constraints.txt").read_text().splitlines() if not line.fullmatch(text)]
    assert others == []


def test_version_is_in_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_wheel_is_what_is_imported(site: Path, tmp_path: Path) -> None:
    program = f"import {', '.join(PACKAGES)}; print(*(m.__file__ for m in ({', '.join(PACKAGES)})), sep='\\n')"
    done = run_outside(site, tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(site) for line in done.stdout.splitlines())


@pytest.mark.slow
def test_user_project(site: Path, tmp_path: Path) -> None:
    for path in (Path(__file__).parent / "user_project").glob("*.py"):
        shutil.copy(path, tmp_path)
    done = run_outside(site, tmp_path, "-m", "lightnet_lab", "run", "my_result.py", "--preset", "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    (finished,) = (tmp_path / "runs").rglob("DONE")
    result = json.loads((finished.parent / "result.json").read_text())
    assert [claim["claim"] for claim in result["claims"]] == ["mine/fits"]
    assert len(result["claims"][0]["values"]) == 2
    assert list(finished.parent.rglob("*.png"))


@pytest.mark.slow
def test_committed_results_are_found_in_the_wheel(site: Path, tmp_path: Path) -> None:
    committed = sorted(path.parent for path in (ROOT / "experiments").glob("*/results/*/cpu/result.json"))
    assert committed
    for folder in committed:
        id = f"{folder.parents[2].name}/{folder.parent.name}"
        done = run_outside(site, tmp_path, "-m", "experiments", "show", id, "--preset", "cpu")
        assert done.returncode == 0, done.stderr
        stored = site / folder.relative_to(ROOT)
        assert f"folder:   {stored}\n" in done.stdout and f"figure: {stored / 'figure.png'}\n" in done.stdout
        assert all(
            claim["claim"] in done.stdout for claim in json.loads((folder / "result.json").read_text())["claims"]
        )
