"""Running results from the command line: help, files, seeds, folders; finished runs return at once."""

import os
from pathlib import Path

import pytest

import experiments.files
from experiments.commands import COMMANDS
from experiments.files import read_json


def lines_of_runs(folder: Path) -> int:
    return len((folder / "runs.txt").read_text().splitlines())


@pytest.mark.parametrize("words", [("--help",), *((name, "--help") for name in COMMANDS)])
def test_help_is_at_most_100_columns(call, words):
    status, out, err = call(*words)
    assert (status, err) == (0, "")
    assert "usage:" in out and max(map(len, out.splitlines())) <= 100


def test_help_of_a_result_shows_its_settings_at_the_preset(call, toy, run_folders):
    _, out, _ = call("run", toy, "--help")
    assert "A toy result" in out and "optimizer updates (default: 100)" in out and "added to every value" in out
    assert "optimizer updates (default: 10)" in call("run", toy, "--preset", "smoke", "--help")[1]
    assert run_folders() == []


def test_no_command_prints_help_and_fails(call):
    assert call()[0] == 2


def test_a_run_leaves_all_of_its_files_and_done_last(call, toy, monkeypatch, run_folders):
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
        "seconds.json",
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


def test_claims_are_recorded_with_all_of_their_fields(call, toy, run_folders):
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


def test_smoke_tests_no_claim(call, toy, run_folders):
    status, out, _ = call("run", toy, "--preset", "smoke")
    assert status == 0 and "holds" not in out
    assert {claim["verdict"] for claim in read_json(run_folders()[0] / "result.json")["claims"]} == {"not run"}


def test_a_finished_run_is_not_run_again(call, toy, run_folders):
    call("run", toy)
    status, out, err = call("run", toy)
    assert status == 0 and "already finished" in out and "holds" in out and err == ""
    assert lines_of_runs(run_folders()[0]) == 1


def test_a_finished_run_is_read_where_nothing_can_be_written(call, toy, monkeypatch):
    import experiments.runs

    call("run", toy)
    monkeypatch.setattr(experiments.runs, "writing", lambda *_: pytest.fail("a finished run was opened for writing"))
    assert "already finished" in call("run", toy)[1]


def test_thresholds_are_those_that_were_stated_before_the_run(call, toy, run_folders):
    call("run", toy)
    toy.write_text(toy.read_text().replace('"below", 1.0', '"below", 0.001'))
    status, out, _ = call("run", toy)
    assert status == 0 and f"the claims were changed after this run; remove {run_folders()[0]} to test them" in out
    assert read_json(run_folders()[0] / "result.json")["claims"][0]["expected"] == 1.0


def test_flags_and_seeds_give_another_run(call, toy, run_folders):
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
        "pairs": [[1, 0.5], [2, 0.25]],
    }
    command = read_json(folder / "result.json")["command"]
    assert command == "python -m experiments run toy.py --preset smoke --config.train.steps 7"


@pytest.mark.parametrize(
    "words", [("--config.sizes", "3,4,5"), ("--config.sizes", "3", "4", "5"), ("--config.sizes=3:6",)]
)
def test_lists_of_integers_are_written_in_three_ways(call, toy, words, run_folders):
    assert call("run", toy, *words)[0] == 0
    assert read_json(run_folders()[0] / "config.json")["config"]["sizes"] == [3, 4, 5]


def test_an_explicit_folder_resumes_only_its_own_config(call, toy, refused):
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
    for name in ("DONE", "result.json"):
        Path("mine", name).unlink()
    monkeypatch.setenv("TOY_DATA", "bb")
    status, _, err = call("run", toy, "--run_dir", "mine")
    assert status == 2 and err.splitlines()[-1].endswith("other data: numbers; allow it with --allow_mismatch data")
    assert not Path("mine/DONE").exists()
    assert call("run", toy, "--run_dir", "mine", "--allow_mismatch", "data")[0] == 0
    assert read_json("mine/result.json")["data"] == {"numbers": "bb"}


def test_a_diverged_run_does_not_hold_and_says_so(call, toy, run_folders):
    toy.write_text(toy.read_text().replace('"toy/small": values', '"toy/small": [float("nan"), 0.0, float("-inf")]'))
    status, out, _ = call("run", toy)
    assert status == 0 and "not finite (2 of 3)" in out and "does not hold" in out
    assert "not finite (2 of 3): does not" in call("compare", *run_folders() * 2)[1]  # wrapped after that


def test_a_figure_that_fails_is_drawn_later_without_computing_again(call, toy, run_folders):
    text = toy.read_text()
    toy.write_text(text.replace("    figure = Figure(", "    1 / 0\n    figure = Figure("))
    assert call("run", toy)[0] == 1
    (folder,) = run_folders()
    assert not (folder / "DONE").exists()
    before = (folder / "result.json").read_bytes()
    toy.write_text(text)
    status, out, err = call("run", toy)
    assert status == 0 and f"computed before, drawing its figure; remove {folder} to compute it again" in err
    assert "toy/small" in out and (folder / "figure.png").exists() and (folder / "DONE").exists()
    assert lines_of_runs(folder) == 1 and (folder / "result.json").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda folder, toy: toy.write_text(toy.read_text().replace('"below", 1.0', '"below", 0.5')),
        lambda folder, toy: (folder / "result.json").write_text("{"),
        lambda folder, toy: (folder / "arrays.npz").unlink(),
    ],
    ids=["claims", "damaged", "arrays"],
)
def test_a_result_without_its_figure_is_computed_again_when_it_is_not_the_same(call, toy, run_folders, change):
    call("run", toy)
    (folder,) = run_folders()
    (folder / "DONE").unlink()
    change(folder, toy)
    assert call("run", toy)[0] == 0
    assert lines_of_runs(folder) == 2 and (folder / "DONE").exists()


@pytest.mark.parametrize(("trouble", "status"), [("interrupt", 130), ("crash", 1), ("value", 2)])
def test_a_finished_run_survives_a_failed_attempt_to_continue_it_with_other_settings(
    call, toy, monkeypatch, trouble, status
):
    original = ("run", toy, "--run_dir", "mine")
    words = (*original, "--config.offset", 0.5, "--allow_mismatch", "offset")
    call(*original)
    kept = ("DONE", "config.json", "data.json", "result.json", "arrays.npz", "figure.png")
    before = [Path("mine", name).read_bytes() for name in kept]
    with monkeypatch.context() as patch:
        patch.setenv("TOY_TROUBLE", trouble)
        assert call(*words)[0] == call(*words)[0] == status
    assert [Path("mine", name).read_bytes() for name in kept] == before
    assert call("show", "mine")[0] == 0 and "already finished" in call(*original)[1]
    assert call(*words)[0] == 0 and "already finished" in call(*words)[1]
    assert read_json("mine/config.json")["config"]["offset"] == read_json("mine/result.json")["config"]["offset"] == 0.5
    assert read_json("mine/result.json")["allowed"] == [{"field": "offset", "was": 0.0, "now": 0.5}]


@pytest.mark.parametrize("name", ["arrays.npz", "config.json", "result.json", "figure.png"])
def test_a_kill_while_a_result_is_replaced_mixes_no_two_runs(call, toy, monkeypatch, name):
    original = ("run", toy, "--run_dir", "mine")
    words = (*original, "--config.offset", 0.5, "--allow_mismatch", "offset")
    call(*original)
    replace = os.replace

    def kill(source, target):
        if Path(target).name == name:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        assert call(*words)[0] == 130
    assert not Path("mine/DONE").exists() and Path("mine/result.json").exists() == (name == "figure.png")
    assert call(*words)[0] == 0
    assert read_json("mine/result.json")["config"]["offset"] == 0.5 and Path("mine/DONE").exists()
    assert read_json("mine/result.json")["allowed"] == [{"field": "offset", "was": 0.0, "now": 0.5}]


def test_version_and_commit(call):
    status, out, err = call("--version")
    assert (status, err) == (0, "") and out.startswith("lightnet-lab ") and ", commit " in out
