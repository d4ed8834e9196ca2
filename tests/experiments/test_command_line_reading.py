"""The commands that only read: show, compare, list and doctor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.commands.doctor import other_packages
from experiments.files import read_json
from experiments.registry import discover

ROOT = Path(__file__).resolve().parents[2]


def test_show_and_compare(call, toy, run_folders):
    call("run", toy)
    call("run", toy, "--config.offset", 0.25, "--seeds", "2,1,7")
    first, second = sorted(run_folders(), key=lambda path: read_json(path / "config.json")["config"]["offset"])
    status, out, _ = call("show", first)
    assert status == 0 and max(map(len, out.splitlines())) <= 100
    for text in ("A toy result", "seeds 0, 1, 2", "toy/small", "holds", "mean of the values", "0.02", "figure.svg"):
        assert text in out
    assert "18 more" not in out and "1 more rows in result.json" in call("show", first, "--rows", 2)[1]
    assert f"folder:   {second}" in call("show", "toy")[1]  # the newest
    status, out, _ = call("compare", first, second)
    assert status == 0 and max(map(len, out.splitlines())) <= 100
    # Seeds 1 and 2 are in both; both differences are -0.25 exactly up to rounding.
    assert "offset" in out and "seeds" in out and "-0.25 (n 2)" in out.replace("-0.2500", "-0.25")
    assert "equal configs" in call("compare", first, first)[1]


def test_list_names_every_result(call):
    status, out, _ = call("list")
    assert status == 0 and max(map(len, out.splitlines())) <= 100
    assert all(id in out for id in discover())


def test_list_shows_a_broken_file_and_the_others(call, monkeypatch):
    import experiments.commands.list as command
    from experiments.errors import UserError

    def load(id):
        raise UserError("broken.py cannot be imported")

    monkeypatch.setattr(command, "load_id", load)
    status, out, _ = call("list")
    assert status == 0 and "cannot be used" in out and "broken.py cannot be imported" in out


@pytest.mark.slow
def test_list_and_a_finished_run_do_not_load_jax(toy, call):
    call("run", toy)
    for words in (["list"], ["run", str(toy)], ["show", "toy"]):
        code = (
            f"import sys\nfrom experiments.__main__ import main\nassert main({words!r}) == 0\n"
            "print([name for name in ('jax', 'flax', 'matplotlib', 'tensorflow') if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_output_may_be_cut_off(toy):
    command = f"{sys.executable} -m experiments list | head -n 1; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert done.stderr == "" and done.returncode in (0, 141)


def test_a_terminal_without_unicode_gets_the_tables_too(toy, process):
    done = process("run", toy, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "toy/small" in done.stdout


@pytest.mark.slow
def test_doctor_finds_nothing_broken(toy, process):
    done = process("doctor")
    assert done.returncode == 0, done.stdout
    assert "everything required works" in done.stdout and "BROKEN" not in done.stdout


def test_doctor_reports_what_is_broken_and_goes_on(call, toy, monkeypatch):
    import experiments.commands.doctor as doctor

    def broken():
        raise RuntimeError("a check that fails itself\nwith two lines")

    for name in ("_libraries", "_devices", "_optional"):
        monkeypatch.setattr(doctor, name, broken)
    Path("runs").write_text("")
    status, out, err = call("doctor")
    assert (status, err) == (1, "")
    assert "RuntimeError: a check that fails itself" in out and "broken: " in out and "temporary folder" in out


def test_doctor_finds_packages_that_hide_ours(tmp_path):
    (tmp_path / "plain" / "experiments").mkdir(parents=True)  # a folder without __init__.py hides nothing
    (tmp_path / "package" / "experiments").mkdir(parents=True)
    (tmp_path / "package" / "experiments" / "__init__.py").write_text("")
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "experiments.py").write_text("")
    found = other_packages([str(tmp_path / name) for name in ("plain", "package", "module")] + [str(ROOT)])
    assert found == [tmp_path / "package" / "experiments", tmp_path / "module" / "experiments.py"]


def test_doctor_says_what_a_package_of_our_name_in_the_current_folder_does(call, toy, monkeypatch):
    import experiments.commands.doctor as doctor

    for name in ("_libraries", "_devices", "_optional"):
        monkeypatch.setattr(doctor, name, list)
    Path("experiments").mkdir()
    Path("experiments/__init__.py").write_text("")
    out = call("doctor")[1]
    assert f"`python -m experiments` from {Path.cwd()} fails in Python itself" in out and "use lightnet-lab" in out
