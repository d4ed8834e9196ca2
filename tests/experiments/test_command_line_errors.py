"""Mistakes, crashes and a system that refuses: one line where it is no bug, and nothing half-written."""

import errno
import os
import resource
import sys
from pathlib import Path

import pytest

from experiments.files import read_json


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("rnu",), "unknown command 'rnu'; nearest: run"),
        (("run",), "run needs the id of a result; there is: "),
        (
            ("run", "tokenization/entropy_gpa"),
            "unknown result 'tokenization/entropy_gpa'; nearest: tokenization/entropy_gap",
        ),
        (("run", "absent.py"), "no result file "),
        (("run", "TOY", "--preset", "smok"), "unknown preset of toy 'smok'; nearest: smoke"),
        (("run", "TOY", "--preset", "paper"), "unknown preset of toy 'paper'; there is: smoke, cpu"),
        (("run", "TOY", "--preset"), "--preset: needs a value"),
        (("run", "TOY", "--config.train.steps"), "--config.train.steps: needs a value"),
        (("run", "TOY", "--PRESET", "smoke"), "unknown flag '--PRESET'; nearest: --preset"),
        (
            ("run", "TOY", "--config.pairs", "1", "2", "3"),
            "--config.pairs: expected values such as 1 0.5 2 0.25, got 1 2 3",
        ),
        (("run", "TOY", "--config.sizes", "0"), "the smallest of sizes: got 0, expected at least 1"),
        (("run", "TOY", "--run_dir", ""), "--run_dir: needs a path, got an empty one"),
        (("run", "TOY", "--run_dir="), "--run_dir: needs a path, got an empty one"),
        (("list", "--runs_dir", ""), "--runs_dir: needs a path, got an empty one"),
        (("report", "--out", ""), "--out: needs a path, got an empty one"),
        (("show", "absent", "--rows", "-3"), "--rows: got -3, expected at least 0"),
        (
            ("run", "TOY", "--seeds", "9" * 20),
            f"--config.seeds: seeds must be integers from 0 to 2**31 - 1, got ({'9' * 20},)",
        ),
        (
            ("run", "TOY", "--seeds", "0:1000000000000"),
            "--config.seeds: a range names at most 10000 integers, got 0:1000000000000",
        ),
        (("run", "TOY", "--config.train.step", 1), "unknown flag '--config.train.step'; nearest: --config.train.steps"),
        (("run", "TOY", "--config.train.steps", "many"), "--config.train.steps: expected an integer, got 'many'"),
        (("run", "TOY", "--config.train.steps", "1.5"), "--config.train.steps: expected an integer, got '1.5'"),
        (("run", "TOY", "--config.train.steps", "-5"), "--config.train.steps: got -5, expected at least 1"),
        (("run", "TOY", "--config.offset", "x"), "--config.offset: expected a number, got 'x'"),
        (
            ("run", "TOY", "--config.sizes", "1,x"),
            "--config.sizes: integers are written 0:5, 0,3,4 or 0 3 4, got '1,x'",
        ),
        (("run", "TOY", "--seeds", "0,0"), "--config.seeds: seeds must be distinct, got (0, 0)"),
        (("run", "TOY", "--seeds", "5:5"), "--config.seeds: seeds must name at least one seed, got none"),
        (("run", "TOY", "--seeds=-1"), "--config.seeds: seeds must be integers from 0 to 2**31 - 1, got (-1,)"),
        (("run", "TOY", "extra"), "unexpected argument 'extra'"),
        (
            ("run", "TOY", "--allow_mismatch", "train.step"),
            "--allow_mismatch: unknown field 'train.step'; nearest: train.steps",
        ),
        (("run", "--config.offset", "1"), "name the result before its flags"),
        (("run", "tokenization", "--run_dir", "x"), "--run_dir is the folder of one run"),
        (("run", "tokenization", "--config.train.steps", "1"), "unknown flag '--config.train.steps'"),
        (("show",), "RUN is missing"),
        (("show", "absent"), "unknown run folder or result 'absent'"),
        (("show", "."), ". is not a run folder"),
        (
            ("show", "tokenization/entropy_gap", "--runs_dir", "x", "--preset", "smoke"),
            "no finished run of tokenization/",
        ),
        (("compare", "a"), "the second RUN is missing"),
        (("compare", "a", "b", "c"), "unexpected argument 'c'"),
        (("list", "--runs_dirs", "x"), "unknown flag '--runs_dirs'; nearest: --runs_dir"),
        (("report", "x"), "unexpected argument 'x'"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(call, toy, words, told, refused):
    line = refused(call(*(toy if word == "TOY" else word for word in words)))
    assert line.startswith(told)
    assert list(Path().iterdir()) == []


def test_debug_shows_the_traceback_as_well(call):
    status, _, err = call("run", "nothing_like_this", "--debug")
    assert status == 2 and err.startswith("Traceback") and err.splitlines()[-1].startswith("error: unknown result")


def test_an_interrupted_run_says_how_to_go_on_and_does(call, toy, monkeypatch, refused, run_folders):
    monkeypatch.setenv("TOY_TROUBLE", "interrupt")
    status, _, err = call("run", toy)
    assert status == 130 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("interrupted: the same command continues")
    (folder,) = run_folders()
    assert "not finished" in refused(call("show", folder))
    monkeypatch.delenv("TOY_TROUBLE")
    assert call("run", toy)[0] == 0
    assert run_folders() == [folder] and (folder / "DONE").exists()


@pytest.mark.parametrize(
    ("trouble", "status", "last", "traceback"),
    [
        ("crash", 1, "error: ZeroDivisionError: a bug", True),
        ("value", 2, "error: p: got 2.0, expected between 0 and 1", False),
        ("library", 2, "error: RESOURCE_EXHAUSTED: writing chunk: No space left on device", False),
    ],
)
def test_a_crash_has_a_traceback_and_a_refusal_has_not(
    call, toy, monkeypatch, trouble, status, last, traceback, run_folders
):
    monkeypatch.setenv("TOY_TROUBLE", trouble)
    code, out, err = call("run", toy)
    assert (code, out) == (status, "")
    assert err.splitlines()[-1] == last and ("Traceback" in err) == traceback
    # Before it wrote anything, a mistake leaves nothing; a crash leaves what may help to find the bug.
    assert Path("runs").exists() == traceback
    assert not any((folder / "DONE").exists() for folder in run_folders())


def test_a_mistake_removes_only_folders_that_it_made_and_in_which_nothing_was_written(call, toy, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TOY_TROUBLE", "value")
        Path("runs/other").mkdir(parents=True)
        Path("empty").mkdir()
        assert call("run", toy)[0] == call("run", toy, "--run_dir", "empty")[0] == 2
        assert list(Path("runs").iterdir()) == [Path("runs/other")]
        assert Path("empty/config.json").exists()
    toy.write_text(toy.read_text().replace("return Result(", "raise ValueError('late')\n    return Result("))
    assert call("run", toy, "--run_dir", "a/b/c")[0] == 2
    assert Path("a/b/c/runs.txt").exists() and Path("a/b/c/config.json").exists()


@pytest.mark.parametrize("own", ["config.json", "a"])
def test_a_refused_folder_stays_as_it_is(call, toy, refused, own):
    Path("junk").mkdir()
    Path("junk", own).write_text('{"id": "demo/other"}\n')
    assert refused(call("run", toy, "--run_dir", "junk")).startswith("junk ")
    assert [path.name for path in Path("junk").iterdir()] == [own]


def test_one_result_that_fails_keeps_no_other_from_running(call, toy, monkeypatch):
    import experiments.commands.run as command
    from experiments.registry import load_path

    broken = toy.with_name("broken_toy.py")
    broken.write_text(
        toy.read_text().replace("toy/", "broken/").replace("def plot(", "def plot(*_):\n    1 / 0\n\n\ndef _(", 1)
    )
    refusing = toy.with_name("refusing_toy.py")
    refusing.write_text(toy.read_text().replace("(run_dir, {", "(run_dir, 1 if run_dir else {", 1))
    monkeypatch.setattr(command, "select", lambda _: [load_path(path) for path in (broken, toy)])
    status, out, err = call("run", "all", "--seeds", "0:4")
    assert status == 1 and "toy/small" in out and "broken_toy failed" in err
    assert err.splitlines()[-1] == "error: ZeroDivisionError: division by zero"
    assert read_json(next(Path("runs/toy").iterdir()) / "config.json")["config"]["seeds"] == [0, 1, 2, 3]
    assert not list(Path("runs/broken_toy").glob("*/DONE"))
    for name in ("broken_toy", "refusing_toy"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"toy/exact": [2.0]', '"toy/exat": [2.0]', "toy measured unknown claim 'toy/exat'; nearest: toy/exact"),
        (
            '"toy/small": values',
            '"toy/small": values[:2]',
            "claim toy/small needs one value for each of 3 seeds, and toy measured 2",
        ),
        (
            '"toy/exact": [2.0]',
            '"toy/exact": [2.0] * 3',
            "claim toy/exact needs deterministic: one value, and toy measured 3",
        ),
        (
            '"loss": values}}',
            '"loss": values[:1]}}',
            "table 'loss' of toy has columns of unequal length: {'seed': 3, 'loss': 1}",
        ),
        (
            "return Result(",
            "return dict if 1 else Result(",
            "run of toy must return an experiments.results.Result, got type",
        ),
    ],
)
def test_a_result_that_breaks_its_contract_is_told(call, toy, old, new, told, run_folders):
    assert old in toy.read_text()
    toy.write_text(toy.read_text().replace(old, new))
    status, _, err = call("run", toy)
    assert status == 2 and err.splitlines()[-1] == f"error: {told}"
    assert not (run_folders()[0] / "DONE").exists() and not (run_folders()[0] / "result.json").exists()


def test_a_file_where_the_runs_folder_should_be(call, toy, refused):
    Path("runs").write_text("")
    assert refused(call("run", toy)) == "runs is a file, and a folder is needed there"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_made(call, toy, monkeypatch, number, refused):
    def refuse(path, *_arguments):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    assert refused(call("run", toy)).startswith(f"{os.strerror(number)}: runs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(call, toy, refused):
    Path("runs").mkdir(mode=0o555)
    assert refused(call("run", toy)).startswith("Permission denied: runs")


@pytest.mark.parametrize("survive", range(9))
def test_a_disk_that_fills_at_any_write_leaves_nothing_half_written(call, toy, monkeypatch, survive):
    """The run has nine files and, once there is space, the same command finishes it."""
    calls = []

    def fill(descriptor):
        calls.append(descriptor)
        if len(calls) > 2 * survive:  # each write syncs the file and then its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill)
        status, out, err = call("run", toy)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: No space left on device: runs/toy/cpu-") and "Traceback" not in err
    assert Path("runs").exists() == (survive > 2)  # config.json, env.json and data.json alone are of no use
    assert not list(Path("runs").glob("**/DONE")) and not list(Path("runs").glob("**/.*.tmp"))
    for path in Path("runs").glob("**/*.json"):
        read_json(path)
    status, out, _ = call("run", toy)
    assert status == 0 and len(list(Path("runs/toy").glob("*/DONE"))) == 1


@pytest.mark.slow
def test_a_limit_on_file_size_is_one_line(toy, process, run_folders):
    limit = 3000  # config.json and env.json fit, the figure does not
    done = process("run", toy, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: File too large: runs/toy/cpu-")
    assert "Traceback" not in done.stderr
    (folder,) = run_folders()
    assert not (folder / "DONE").exists() and not list(folder.glob(".*.tmp"))


def test_a_result_file_that_cannot_be_imported_is_one_line_with_the_cause(call, toy, refused):
    (toy.parent / "my_broken_module.py").write_text("raise RuntimeError('first\\nsecond')\n")
    text = toy.read_text()
    for line, told in {
        "import no_such_module": "ModuleNotFoundError: No module named 'no_such_module'",
        "from pathlib import Pth": "ImportError: cannot import name 'Pth' from 'pathlib'",
        "import my_broken_module": "RuntimeError: first second",
        "int('x')": "ValueError: invalid literal for int() with base 10: 'x'",
    }.items():
        toy.write_text(f"{text}\n\n{line}\n")
        assert refused(call("run", toy)).startswith(f"toy.py cannot be imported: {told}")
