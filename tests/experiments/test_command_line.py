"""The command line as a user meets it: one line for each mistake, nothing half-written, finished runs at once."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import experiments.files
from experiments.commands import COMMANDS
from experiments.commands.doctor import other_packages
from experiments.files import read_json
from experiments.registry import discover

ROOT = Path(__file__).resolve().parents[2]


def process(*words, cwd=None, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-m", "experiments", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, **options)


def refused(outcome) -> str:
    """The one line of a refusal."""
    status, out, err = outcome
    assert status == 2 and out == "", outcome
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    return err.removeprefix("error: ").rstrip("\n")


def run_folders() -> list[Path]:
    return sorted(path.parent for path in Path("runs").glob("**/config.json"))


def lines_of_runs(folder: Path) -> int:
    return len((folder / "runs.txt").read_text().splitlines())


# --- help


@pytest.mark.parametrize("words", [("--help",), *((name, "--help") for name in COMMANDS)])
def test_help_is_at_most_100_columns(call, words):
    status, out, err = call(*words)
    assert (status, err) == (0, "")
    assert "usage:" in out and max(map(len, out.splitlines())) <= 100


def test_help_of_a_result_shows_its_settings_at_the_preset(call, toy):
    _, out, _ = call("run", toy, "--help")
    assert "A toy result" in out and "optimizer updates (default: 100)" in out and "added to every value" in out
    assert "optimizer updates (default: 10)" in call("run", toy, "--preset", "smoke", "--help")[1]
    assert run_folders() == []


def test_no_command_prints_help_and_fails(call):
    assert call()[0] == 2


# --- mistakes


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
        (("run", "TOY", "--preset"), "Missing value for argument '--preset'"),
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
        (("run", "TOY", "--seeds=-1"), "--config.seeds: seeds must be integers from 0 up, got (-1,)"),
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
def test_a_mistake_is_one_line_and_writes_nothing(call, toy, words, told):
    line = refused(call(*(toy if word == "TOY" else word for word in words)))
    assert line.startswith(told)
    assert list(Path().iterdir()) == []


def test_debug_shows_the_traceback_as_well(call):
    status, _, err = call("run", "nothing_like_this", "--debug")
    assert status == 2 and err.startswith("Traceback") and err.splitlines()[-1].startswith("error: unknown result")


# --- running


def test_a_run_leaves_all_of_its_files_and_done_last(call, toy, monkeypatch):
    written = []
    original = experiments.files.os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (original(a, b), written.append(Path(b).name))[0])
    status, out, err = call("run", toy)
    assert status == 0 and "toy: preset cpu, 3 seeds" in err
    assert written == [
        "config.json",
        "env.json",
        "data.json",
        "arrays.npz",
        "env.json",
        "result.json",
        "figure.png",
        "figure.svg",
        "DONE",
    ]
    (folder,) = run_folders()
    assert f"figure: {folder}/figure.png" in out and "toy/small" in out and "holds" in out
    assert max(map(len, out.splitlines())) <= 100
    assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))
    record = read_json(folder / "result.json")
    assert record["command"] == "python -m experiments run toy.py"
    assert record["series"]["curve"]["x"] == {"shape": [3], "dtype": "int64"}
    assert record["env"]["versions"]["numpy"] and record["env"] == read_json(folder / "env.json")
    assert record["config"] == read_json(folder / "config.json")["config"]


def test_claims_are_recorded_with_all_of_their_fields(call, toy):
    call("run", toy)
    small, exact, never = read_json(run_folders()[0] / "result.json")["claims"]
    assert small == {
        "claim": "toy/small",
        "source": "Figure 1",
        "kind": "paper",
        "scale": "analogue",
        "quantity": "mean of the values, no unit",
        "test": "below",
        "expected": 1.0,
        "tolerance": 0.0,
        "deterministic": False,
        "n": 3,
        "measured": pytest.approx(0.01),
        "sd": pytest.approx(0.01),
        # 4.3027 is the 0.975 quantile of Student's t with two degrees of freedom.
        "ci95": pytest.approx([0.01 - 4.302652729911275 * 0.01 / 3**0.5, 0.01 + 4.302652729911275 * 0.01 / 3**0.5]),
        "verdict": "holds",
        "values": [0.0, 0.01, 0.02],
    }
    assert (exact["ci95"], exact["verdict"], exact["n"]) == ([2.0, 2.0], "holds", 1)
    assert (never["measured"], never["ci95"], never["verdict"], never["values"]) == (None, None, "not run", [])


def test_a_verdict_does_not_change_the_exit_status(call, toy):
    status, out, _ = call("run", toy, "--config.offset", 5)
    assert status == 0 and "does not hold" in out


def test_smoke_tests_no_claim(call, toy):
    status, out, _ = call("run", toy, "--preset", "smoke")
    assert status == 0 and "holds" not in out
    assert {claim["verdict"] for claim in read_json(run_folders()[0] / "result.json")["claims"]} == {"not run"}


def test_a_finished_run_is_not_run_again(call, toy):
    call("run", toy)
    status, out, err = call("run", toy)
    assert status == 0 and "already finished" in out and "holds" in out and err == ""
    assert lines_of_runs(run_folders()[0]) == 1


def test_a_finished_run_is_read_where_nothing_can_be_written(call, toy, monkeypatch):
    import experiments.runs

    call("run", toy)
    monkeypatch.setattr(experiments.runs, "writing", lambda *_: pytest.fail("a finished run was opened for writing"))
    assert "already finished" in call("run", toy)[1]


def test_thresholds_are_those_that_were_stated_before_the_run(call, toy):
    call("run", toy)
    toy.write_text(toy.read_text().replace('"below", 1.0', '"below", 0.001'))
    status, out, _ = call("run", toy)
    assert status == 0 and f"the claims were changed after this run; remove {run_folders()[0]} to test them" in out
    assert read_json(run_folders()[0] / "result.json")["claims"][0]["expected"] == 1.0


def test_flags_and_seeds_give_another_run(call, toy):
    for words in [(), ("--seeds", "0:5"), ("--config.seeds", "0", "1", "2", "3", "4"), ("--seeds=0,1,2,3,4",)]:
        assert call("run", toy, *words)[0] == 0
    folders = run_folders()
    assert len(folders) == 2 and [lines_of_runs(folder) for folder in folders] == [1, 1]
    # Flags may come before the result and hyphens may stand for underscores.
    assert call("run", "--preset", "smoke", "--config.train.steps", 7, toy, "--runs-dir", "other")[0] == 0
    (folder,) = Path("other/toy").iterdir()
    assert read_json(folder / "config.json")["config"] == {
        "seeds": [0],
        "train": {"steps": 7},
        "offset": 0.0,
        "sizes": [1, 2],
    }
    command = read_json(folder / "result.json")["command"]
    assert command == "python -m experiments run toy.py --preset smoke --config.train.steps 7"


@pytest.mark.parametrize(
    "words", [("--config.sizes", "3,4,5"), ("--config.sizes", "3", "4", "5"), ("--config.sizes=3:6",)]
)
def test_lists_of_integers_are_written_in_three_ways(call, toy, words):
    assert call("run", toy, *words)[0] == 0
    assert read_json(run_folders()[0] / "config.json")["config"]["sizes"] == [3, 4, 5]


def test_an_explicit_folder_resumes_only_its_own_config(call, toy):
    assert call("run", toy, "--run_dir", "mine")[0] == 0
    line = refused(call("run", toy, "--run_dir", "mine", "--config.train.steps", 5, "--config.offset", 0.5))
    assert line.endswith("allow it with --allow_mismatch train.steps,offset")
    words = ("run", toy, "--run_dir", "mine", "--config.train.steps", 5, "--config.offset", 0.5)
    assert "offset" in refused(call(*words, "--allow_mismatch", "train.steps"))
    assert Path("mine/DONE").exists()
    assert call(*words, "--allow_mismatch", "train.steps", "--allow_mismatch", "offset")[0] == 0
    assert lines_of_runs(Path("mine")) == 2
    assert [change["field"] for change in read_json("mine/result.json")["allowed"]] == ["train.steps", "offset"]
    assert "already finished" in call(*words)[1]


def test_other_data_is_refused_unless_it_is_allowed(call, toy, monkeypatch):
    monkeypatch.setenv("TOY_TROUBLE", "")
    call("run", toy, "--run_dir", "mine")
    Path("mine/DONE").unlink()
    monkeypatch.setenv("TOY_DATA", "bb")
    status, _, err = call("run", toy, "--run_dir", "mine")
    assert status == 2 and err.splitlines()[-1].endswith("other data: numbers; allow it with --allow_mismatch data")
    assert not Path("mine/DONE").exists()
    assert call("run", toy, "--run_dir", "mine", "--allow_mismatch", "data")[0] == 0
    assert read_json("mine/result.json")["data"] == {"numbers": "bb"}


def test_an_interrupted_run_says_how_to_go_on_and_does(call, toy, monkeypatch):
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
def test_a_crash_has_a_traceback_and_a_refusal_has_not(call, toy, monkeypatch, trouble, status, last, traceback):
    monkeypatch.setenv("TOY_TROUBLE", trouble)
    code, out, err = call("run", toy)
    assert (code, out) == (status, "")
    assert err.splitlines()[-1] == last and ("Traceback" in err) == traceback
    assert not (run_folders()[0] / "DONE").exists()


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
def test_a_result_that_breaks_its_contract_is_told(call, toy, old, new, told):
    assert old in toy.read_text()
    toy.write_text(toy.read_text().replace(old, new))
    status, _, err = call("run", toy)
    assert status == 2 and err.splitlines()[-1] == f"error: {told}"
    assert not (run_folders()[0] / "DONE").exists() and not (run_folders()[0] / "result.json").exists()


# --- the system refuses


def test_a_file_where_the_runs_folder_should_be(call, toy):
    Path("runs").write_text("")
    assert refused(call("run", toy)) == "runs is a file, and a folder is needed there"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_made(call, toy, monkeypatch, number):
    def refuse(path, *_arguments):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    assert refused(call("run", toy)).startswith(f"{os.strerror(number)}: runs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(call, toy):
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
    folder = next(Path("runs/toy").iterdir())
    assert not (folder / "DONE").exists() and not list(folder.glob(".*.tmp"))
    for path in folder.glob("*.json"):
        read_json(path)
    status, out, _ = call("run", toy)
    assert status == 0 and (folder / "DONE").exists()


def test_a_limit_on_file_size_is_one_line(toy):
    limit = 3000  # config.json and env.json fit, the figure does not
    done = process("run", toy, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: File too large: runs/toy/cpu-")
    assert "Traceback" not in done.stderr
    (folder,) = run_folders()
    assert not (folder / "DONE").exists() and not list(folder.glob(".*.tmp"))


# --- the other commands


def test_show_and_compare(call, toy):
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


def test_a_terminal_without_unicode_gets_the_tables_too(toy):
    done = process("run", toy, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "toy/small" in done.stdout


def test_doctor_finds_nothing_broken(toy):
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
