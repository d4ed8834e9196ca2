"""Run folders: identity, one writer, data, and what a finished one contains."""

import subprocess
import sys

import numpy as np
import pytest

from experiments import runs
from experiments.errors import UserError
from experiments.files import make_folder, read_json
from experiments.runs import Identity, check_identity, differences, record_data, writing

IDENTITY = Identity("demo/a", "cpu", {"seeds": [0, 1], "train": {"steps": 10, "rate": 0.5}})


def changed(**train) -> Identity:
    return Identity("demo/a", "cpu", {"seeds": [0, 1], "train": {"steps": 10, "rate": 0.5, **train}})


def test_the_hash_depends_on_every_part_and_on_nothing_else():
    others = [
        Identity("demo/b", "cpu", IDENTITY.config),
        Identity("demo/a", "gpu", IDENTITY.config),
        changed(steps=11),
        Identity("demo/a", "cpu", {**IDENTITY.config, "seeds": [1, 0]}),
    ]
    assert len({IDENTITY.hash8, *(other.hash8 for other in others)}) == 5
    reordered = Identity("demo/a", "cpu", {"train": {"rate": 0.5, "steps": 10}, "seeds": [0, 1]})
    assert reordered.hash8 == IDENTITY.hash8
    # Pinned: another way to hash would orphan every run folder.
    assert IDENTITY.hash8 == "4e04e8c5"


def test_runs_folder_is_the_argument_else_the_environment_else_here(monkeypatch):
    monkeypatch.setenv("LIGHTNET_RUNS", "/elsewhere")
    assert str(runs.runs_folder("given")) == "given"
    assert str(runs.runs_folder()) == "/elsewhere"
    monkeypatch.delenv("LIGHTNET_RUNS")
    assert str(runs.runs_folder()) == "runs"


def test_differences_name_nested_and_missing_fields():
    found = differences({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 2, "d": 4}, "e": 5})
    assert [(change["field"], change["was"], change["now"]) for change in found] == [
        ("a", 1, None),
        ("b.d", 3, 4),
        ("e", None, 5),
    ]


def test_a_folder_is_bound_to_its_identity(tmp_path):
    with writing(tmp_path / "run", IDENTITY) as folder:
        assert read_json(folder / "config.json") == {"id": "demo/a", "preset": "cpu", "config": IDENTITY.config}
    with writing(tmp_path / "run", IDENTITY):
        pass
    with pytest.raises(UserError, match=r"train.steps was 10 and is now 11; .*--allow_mismatch train.steps$"):
        check_identity(tmp_path / "run", changed(steps=11))
    with pytest.raises(UserError, match="is a run of demo/a, not of demo/b"):
        check_identity(tmp_path / "run", Identity("demo/b", "cpu", IDENTITY.config), allow=["id"])


def test_each_difference_must_be_allowed_by_name_and_is_recorded(tmp_path):
    with writing(tmp_path, IDENTITY):
        pass
    runs.mark_done(tmp_path)
    now = Identity("demo/a", "gpu", changed(steps=11, rate=0.25).config)
    for allow in ([], ["train"], ["train.steps"], ["train.steps", "train.rate"], ["preset"]):
        with pytest.raises(UserError), writing(tmp_path, now, allow):
            pytest.fail("it was let in")
        assert runs.is_finished(tmp_path)
    with writing(tmp_path, now, ["train.steps", "train.rate", "preset"]):
        assert runs.is_finished(tmp_path) and check_identity(tmp_path, IDENTITY) == []
        runs.replace_result(tmp_path, now)
        assert not runs.is_finished(tmp_path)
    assert read_json(tmp_path / "config.json")["preset"] == "gpu"
    assert read_json(tmp_path / "allowed.json") == [
        {"field": "preset", "was": "cpu", "now": "gpu"},
        {"field": "train.steps", "was": 10, "now": 11},
        {"field": "train.rate", "was": 0.5, "now": 0.25},
    ]
    assert check_identity(tmp_path, now) == []


def test_infinite_settings_are_equal_to_themselves(tmp_path):
    identity = Identity("demo/a", "cpu", {"limit": float("inf"), "none": float("nan")})
    with writing(tmp_path, identity):
        pass
    assert check_identity(tmp_path, identity) == []


def test_a_folder_with_other_files_is_not_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a run folder"), writing(tmp_path, IDENTITY):
        pytest.fail("it was let in")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"id": "demo')
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        check_identity(tmp_path, IDENTITY)


def test_two_processes_do_not_write_one_folder(tmp_path):
    mine = Identity("demo/a", "cpu", {"seeds": [0]})
    code = (
        "import sys, time\n"
        "from experiments.runs import Identity, writing\n"
        "with writing(sys.argv[1], Identity('demo/a', 'cpu', {'seeds': [0]})):\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"is being written by process {other.pid}$"), writing(tmp_path, mine):
            pytest.fail("it was let in")
        other.kill()  # a process that dies leaves no lock behind
    with writing(tmp_path, mine):
        pass


def test_data_is_bound_to_the_folder(tmp_path):
    record_data(tmp_path, {"digits": "aa", "text": "bb"})
    record_data(tmp_path, {"text": "bb", "digits": "aa"})
    for other in ({"digits": "aa"}, {"digits": "aa", "text": "cc"}, {}):
        with pytest.raises(UserError, match=r"other data: .*--allow_mismatch data"):
            record_data(tmp_path, other)
    assert read_json(tmp_path / "data.json") == {"digits": "aa", "text": "bb"}


def test_other_data_is_taken_when_allowed_and_only_then(tmp_path):
    with writing(tmp_path, IDENTITY) as folder:
        record_data(folder, {"digits": "aa"})
    with writing(tmp_path, IDENTITY, ["data"]) as folder:
        record_data(folder, {"digits": "bb"})
    assert read_json(tmp_path / "data.json") == {"digits": "bb"}
    assert read_json(tmp_path / "allowed.json") == [{"field": "data.digits", "was": "aa", "now": "bb"}]
    with pytest.raises(UserError):
        record_data(tmp_path, {"digits": "cc"})


def test_arrays_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    series = {
        "loss per seed": {"x": np.arange(17), "band": rng.normal(size=(17, 2, 3)).astype(np.float32)},
        "poles": {
            "z": rng.normal(size=5) + 1j,
            "none": np.zeros((0, 4)),
            "one": np.float64(2.5),
            "on": np.array([True]),
        },
    }
    described = runs.write_arrays(tmp_path, series)
    assert described["poles"]["none"] == {"shape": [0, 4], "dtype": "float64"}
    back = runs.read_arrays(tmp_path)
    for name, fields in series.items():
        for field, array in fields.items():
            np.testing.assert_array_equal(back[name][field], array)
            assert back[name][field].dtype == np.asarray(array).dtype


@pytest.mark.parametrize("names", [("a/b", "c"), ("", "c"), ("a", "")])
def test_names_that_could_not_be_told_apart_again_are_refused(tmp_path, names):
    with pytest.raises(UserError, match="series"):
        runs.write_arrays(tmp_path, {names[0]: {names[1]: np.zeros(1)}})


def test_newest_finished_run_comes_first(tmp_path):
    times = ["2026-01-02T00:00:00.000001+00:00", "2026-01-02T00:00:00+00:00", "2025-12-31T23:59:59.999999+00:00"]
    for name, time in zip(["cpu-11111111", "cpu-22222222", "gpu-33333333"], times, strict=True):
        folder = tmp_path / "demo" / "a" / name
        folder.mkdir(parents=True)
        (folder / "DONE").write_text(f"{time}\n")
    (tmp_path / "demo" / "a" / "cpu-44444444").mkdir()  # not finished
    names = [folder.name for folder in runs.finished_runs("demo/a", None, tmp_path)]
    assert names == ["cpu-11111111", "cpu-22222222", "gpu-33333333"]
    assert [folder.name for folder in runs.finished_runs("demo/a", "gpu", tmp_path)] == ["gpu-33333333"]
    assert runs.finished_runs("demo/absent", None, tmp_path) == []


def test_runs_that_finish_one_after_the_other_are_in_this_order(tmp_path):
    """Also where files have no time, or one of whole seconds."""
    names = [f"cpu-{n:08d}" for n in (3, 1, 4, 0, 5, 9, 2, 6)]
    for name in names:
        make_folder(tmp_path / "demo" / "a" / name)
        runs.mark_done(tmp_path / "demo" / "a" / name)
    assert [folder.name for folder in runs.finished_runs("demo/a", None, tmp_path)] == names[::-1]


def test_of_several_processes_only_the_first_records_data(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNET_PROCESS", "1")
    record_data(tmp_path, {"digits": "aa"})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("LIGHTNET_PROCESS", "0")
    record_data(tmp_path, {"digits": "aa"})
    monkeypatch.setenv("LIGHTNET_PROCESS", "1")
    with pytest.raises(UserError, match="other data"):
        record_data(tmp_path, {"digits": "bb"})
    with runs.allowing(["data"]):
        record_data(tmp_path, {"digits": "bb"})
    assert read_json(tmp_path / "data.json") == {"digits": "aa"}


@pytest.mark.parametrize("content", ["{}", "[]", '{"id": "a"}', "not json"])
def test_a_damaged_result_is_named(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        runs.read_result(tmp_path)
