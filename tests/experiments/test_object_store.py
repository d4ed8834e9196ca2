"""Runs on an object store: no rename, no append, no folders, and DONE is a marker object."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import evidence, runs
from experiments.errors import UserError
from experiments.files import as_path, atomic_write_text, is_object_store, make_folder, read_json, write_json
from experiments.results import load

RUNS = "gs://bucket/runs"

# Two steps for each seed; an interrupted run goes on with the seeds that it lacks.
STEPS = """
    for seed in config.seeds:
        if not (run_dir / f"seed{seed}").exists():
            if trouble == f"after {seed}":
                raise KeyboardInterrupt
            (run_dir / f"seed{seed}").write_bytes(str(config.offset + seed / config.train.steps).encode())
    values = [float((run_dir / f"seed{seed}").read_text()) for seed in config.seeds]
"""


@pytest.fixture
def toy(toy) -> Path:
    """The toy without its file that is appended to."""
    text = toy.read_text()
    start, end = text.index('    with open(run_dir / "runs.txt"'), text.index("    return Result(")
    toy.write_text(text[:start] + STEPS.lstrip("\n") + text[end:])
    return toy


@pytest.fixture(autouse=True)
def nothing_local(store, tmp_path, monkeypatch):
    """No test here leaves a file in the current folder, which an address taken for a path would.

    The folder is the test's own: tests beside it leave files in the checkout.
    """
    here = tmp_path / "current"
    here.mkdir()
    monkeypatch.chdir(here)
    yield
    assert not list(here.iterdir())


def test_the_fake_can_do_no_more_than_an_object_store(monkeypatch):
    from tests.experiments.object_store import stored_at_gs

    with pytest.raises(AssertionError, match="refused: "), stored_at_gs(monkeypatch) as store:
        path = as_path("gs://bucket/a/b")
        with path.open("wb") as file:
            file.write(b"half")
            assert not path.exists() and store.names() == []
        assert path.read_bytes() == b"half" and path.parent.is_dir() and path.is_file()
        with pytest.raises(AssertionError, match="cannot rename"):
            path.rename("gs://bucket/a/c")
        with pytest.raises(AssertionError, match="cannot rename"):
            path.replace("gs://bucket/a/c")
        with pytest.raises(AssertionError, match="cannot open with mode ab"):
            path.open("ab")
        assert len(store.refused) == 3
        path.unlink()
        assert not path.parent.exists()


def test_files_are_written_in_one_piece(store):
    path = as_path("gs://bucket/deep/er/a.json")
    assert make_folder(path.parent) == path.parent and store.names() == []
    write_json(path, {"x": [1, float("inf")]})
    atomic_write_text(path, path.read_text() + "\n")
    assert read_json(path) == {"x": [1, float("inf")]}
    assert store.puts == ["bucket/deep/er/a.json"] * 2 and store.names() == ["bucket/deep/er/a.json"]
    with pytest.raises(UserError, match="gs://bucket/b.json does not exist"):
        read_json("gs://bucket/b.json")


@pytest.mark.parametrize("place", ["flag", "environment", "run_dir"])
def test_a_run_is_the_same_as_in_a_local_folder(store, toy, call, monkeypatch, tmp_path, place):
    words = {"flag": ("--runs_dir", RUNS), "environment": (), "run_dir": ("--run_dir", f"{RUNS}/mine")}[place]
    if place == "environment":
        monkeypatch.setenv("LIGHTNET_RUNS", RUNS)
    status, out, _ = call("run", toy, *words)
    assert status == 0 and f"figure: {RUNS}/" in out
    written = [Path(name).name for name in store.puts]
    assert written[0] == "config.json" and written[-4:] == ["seconds.json", "figure.png", "figure.svg", "DONE"]
    folder = as_path("gs://" + store.puts[-1]).parent
    assert call("run", toy, "--run_dir", tmp_path / "local")[0] == 0
    here, there = (runs.read_result(path) for path in (tmp_path / "local", folder))
    assert (here.claims, here.tables, here.config, here.command) == (
        there.claims,
        there.tables,
        there.config,
        there.command,
    )
    np.testing.assert_array_equal(here.series["curve"]["y"], there.series["curve"]["y"])
    assert (folder / "figure.png").read_bytes() == (tmp_path / "local" / "figure.png").read_bytes()
    before = list(store.puts)
    assert "already finished" in call("run", toy, *words)[1] and store.puts == before


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(store, toy, call, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TOY_TROUBLE", "after 1")
        assert call("run", toy, "--runs_dir", RUNS)[0] == 130
    (config,) = as_path(RUNS).glob("*/*/config.json")
    assert not runs.is_finished(config.parent) and (config.parent / "seed0").exists()
    first = read_json(config.parent / "seconds.json")
    with pytest.raises(UserError, match="is not finished"):
        evidence.find(str(config.parent))
    assert call("run", toy, "--runs_dir", RUNS)[0] == 0
    assert store.puts.count(f"{str(config.parent)[5:]}/seed0") == 1
    stored = load("toy", runs_dir=RUNS)
    assert stored.path == config.parent and runs.is_finished(stored.path) and stored.seconds >= first
    assert stored.claim("toy/small")["values"] == [0.0, 0.01, 0.02]
    with pytest.raises(UserError, match="was started with another config"):
        runs.check_identity(stored.path, runs.Identity("toy", "cpu", {**stored.config, "offset": 0.5}))


def test_a_mistake_leaves_nothing(store, toy, call, monkeypatch):
    monkeypatch.setenv("TOY_TROUBLE", "value")
    assert call("run", toy, "--runs_dir", RUNS)[0] == 2
    assert store.names() == [] and "bucket/runs/toy" in store.puts[0]
    store.put("bucket/runs/mine/thesis.tex", b"years of work")
    assert "not a run folder" in call("run", toy, "--run_dir", f"{RUNS}/mine")[2]
    assert store.names() == ["bucket/runs/mine/thesis.tex"]


def test_every_command_reads_runs_there(store, demo, call, tmp_path):
    for words in (("--config.offset", 0.5), ()):
        assert call("run", "demo/toy", "--runs_dir", RUNS, *words)[0] == 0
    newest, other = runs.finished_runs("demo/toy", None, RUNS)
    assert load("demo/toy", runs_dir=RUNS).path == newest and is_object_store(newest)
    assert call("show", newest)[1] == call("show", "demo/toy", "--runs_dir", RUNS)[1]
    assert f"figure: {newest}/figure.png" in call("show", newest)[1]
    assert "offset" in call("compare", other, "demo/toy", "--runs_dir", RUNS)[1]
    assert "2 hold (cpu), 1 not run" in call("list", "--runs_dir", RUNS)[1]
    for out in (tmp_path / "report", "gs://bucket/report"):
        assert call("report", "--runs_dir", RUNS, "--out", out)[0] == 0
        assert (as_path(out) / "REPORT.html").exists()
    assert (as_path("gs://bucket/report") / "REPORT.md").read_bytes() == (tmp_path / "report/REPORT.md").read_bytes()
    assert f"{RUNS} is writable" in call("doctor", "--runs_dir", RUNS)[1]
    assert not [name for name in store.names() if "doctor" in name]


def test_a_profile_is_for_local_folders(store, toy, call, refused):
    assert "--profile writes into a folder of this machine" in refused(
        call("run", toy, "--runs_dir", RUNS, "--profile")
    )
    assert store.puts == []


def test_runs_of_outside_files_are_listed(store, toy, call):
    assert call("run", toy, "--runs_dir", RUNS)[0] == 0
    assert evidence.outside_ids(RUNS) == ["toy"]


def test_an_unfinished_replacement_is_no_result(store, toy, call, monkeypatch):
    """DONE goes first and comes last, so that an upload which fails in between leaves no run that seems finished."""
    folder = f"{RUNS}/mine"
    call("run", toy, "--run_dir", folder)
    words = ("run", toy, "--run_dir", folder, "--config.offset", 0.5, "--allow_mismatch", "offset")
    put = store.put

    def fail(name, content):
        if name.endswith("result.json"):
            raise KeyboardInterrupt
        put(name, content)

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", fail)
        assert call(*words)[0] == 130
    assert not runs.is_finished(folder) and not (as_path(folder) / "result.json").exists()
    assert call(*words)[0] == 0 and runs.is_finished(folder)
    assert json.loads(store.objects["bucket/runs/mine/result.json"])["config"]["offset"] == 0.5


@pytest.mark.slow
def test_orbax_saves_restores_and_deletes_there(store):
    import jax
    import orbax.checkpoint as ocp

    rng = np.random.default_rng(0)
    states = [{"a": rng.normal(size=(3, 5)).astype(np.float32), "b": {"c": np.arange(step, 7)}} for step in range(4)]
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(as_path("gs://bucket/checkpoints"), options=options) as manager:
        for step, state in enumerate(states):
            manager.save(step, args=ocp.args.StandardSave(jax.tree.map(jax.numpy.asarray, state)))
    with ocp.CheckpointManager(as_path("gs://bucket/checkpoints")) as manager:
        assert manager.all_steps() == [2, 3]
        for step in (2, 3):
            restored = manager.restore(step, args=ocp.args.StandardRestore(states[step]))
            jax.tree.map(np.testing.assert_array_equal, restored, states[step])


@pytest.mark.slow
def test_a_training_that_was_interrupted_ends_with_the_same_bits(store, tmp_path):
    """Twice: between two checkpoints, and right behind one; the history is complete, each step once."""
    import jax
    import jax.numpy as jnp

    from experiments.training.config import CheckpointConfig, TrainConfig
    from experiments.training.loop import train
    from experiments.training.metrics import read_rows
    from experiments.training.task import Task

    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3)).astype(np.float32)
    columns = {"x": x, "y": x @ np.array([1.0, -2.0, 0.5], np.float32)}
    config = TrainConfig(steps=11, batch_size=8, eval_every=3, checkpoint=CheckpointConfig(every=4))

    def fit(folder, interrupted: int | None = None):
        evaluations = iter(range(100))

        def loss(params, batch, key):
            error = batch["x"] @ params["kernel"] - batch["y"] + 0.1 * jax.random.normal(key, batch["y"].shape)
            return jnp.mean(error**2), {"error": jnp.abs(error).max()}

        def evaluate(params):
            if next(evaluations) == interrupted:
                raise KeyboardInterrupt
            return {"first": params["kernel"][0]}

        task = Task(lambda key: {"kernel": jax.random.normal(key, (3,))}, loss, evaluate)
        return train(config, task, columns, folder, seed=3)

    undisturbed = fit(tmp_path / "local")
    for interrupted in (2, 1):  # at update 6, then at update 9, with checkpoints of 4 and 8
        with pytest.raises(KeyboardInterrupt):
            fit("gs://bucket/train", interrupted)
    outcome = fit("gs://bucket/train")
    jax.tree.map(np.testing.assert_array_equal, outcome.params, undisturbed.params)
    np.testing.assert_equal(outcome.train, undisturbed.train)
    np.testing.assert_equal(outcome.evaluation, undisturbed.evaluation)
    rows = list(read_rows("gs://bucket/train"))
    assert rows == list(read_rows(tmp_path / "local")) and len(rows) == 11 + 5
    before = list(store.puts)
    fit("gs://bucket/train", 0)
    assert [name for name in store.puts[len(before) :] if "/checkpoints/" in name] == []
