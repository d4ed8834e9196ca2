"""Two or four real processes train one model: they lose one, are preempted, continue, and equal one process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.training.data import examples

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCH = 20, 8
# A mean over the batch in another order is off by at most BATCH roundings, and each update passes its own on.
ROUNDING = STEPS * BATCH * float(np.finfo(np.float32).eps)

TRAINING = f'''"""A linear regression that writes down what each process reads and which files it opens."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from experiments.results import About, Result
from experiments.results import Config as BaseConfig

ABOUT = About("A toy paper (arXiv 0000.00000)", "Figure 1", {{"smoke": 0.1}})


@dataclass(frozen=True)
class Config(BaseConfig):
    """Seeds alone."""


PRESETS = {{"smoke": Config(seeds=(0,))}}
CLAIMS = ()
NOTES = Path(os.environ["NOTES"])
NUMBER = os.environ.get("LIGHTNET_PROCESS", "0")


def note(kind, words):
    with open(NOTES / f"{{kind}}-{{NUMBER}}", "a") as file:
        file.write(f"{{words}}\\n")


def run(config: Config, run_dir: Path) -> Result:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from experiments.training.config import CheckpointConfig, TrainConfig
    from experiments.training.loop import Task, train

    def hook(event, words):
        writing = event in ("os.mkdir", "os.rename", "os.remove") or (
            event == "open" and (words[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        )
        if writing and os.path.abspath(str(words[0])).startswith(f"{{os.path.abspath(run_dir)}}/"):
            note("writes", words[0])

    sys.addaudithook(hook)
    hand_over = jax.make_array_from_process_local_data

    def noted(sharding, leaf, *shape):
        if shape and leaf.dtype == np.int32:
            note("reads", " ".join(map(str, leaf)))
        return hand_over(sharding, leaf, *shape)

    jax.make_array_from_process_local_data = noted
    random = np.random.default_rng(0)
    x = random.normal(size=(1000, 5)).astype(np.float32)
    y = (x @ np.arange(5) + random.normal(size=1000)).astype(np.float32)
    y[0] += int(NUMBER) * bool(os.environ.get("OTHER_DATA"))
    data = {{"id": np.arange(1000, dtype=np.int32), "x": x, "y": y}}

    def loss(variables, batch, key):
        return jnp.mean((batch["x"] @ variables["params"]["w"] - batch["y"]) ** 2), {{}}

    def evaluate(variables):
        note("evaluations", "")
        time.sleep(float(os.environ.get("DELAY", "0")))
        return {{"norm": jnp.linalg.norm(variables["params"]["w"])}}

    settings = TrainConfig(steps={STEPS}, batch_size={BATCH}, eval_every=1, checkpoint=CheckpointConfig(every=3))
    task = Task(lambda key: {{"params": {{"w": jnp.zeros(5)}}}}, loss, evaluate)
    outcome = train(settings, task, data, run_dir / "training", seed=0)
    history = {{name: values.tolist() for name, values in outcome.train.items()}}
    weights = np.asarray(outcome.params["params"]["w"]).tolist()
    return Result({{}}, {{"train": history, "weights": {{"w": weights}}}}, {{}})


def plot(result):
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))
'''


class Launcher:
    """Runs the training in a folder of its own, with notes of what its processes do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "regression.py"
        self.file.write_text(TRAINING)

    def start(self, name: str, processes: int, delay: float = 0.0) -> subprocess.Popen:
        notes = self.folder / f"{name}-notes"
        notes.mkdir(exist_ok=True)
        ours = {"PYTHONPATH": str(ROOT), "NOTES": str(notes), "DELAY": str(delay), "XDG_CACHE_HOME": str(self.folder)}
        environment = {**os.environ, **ours}
        words = ["run", self.file, "--preset", "smoke", "--run_dir", self.folder / name, "--processes", processes]
        command = [sys.executable, "-m", "experiments", *map(str, words)]
        return subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)

    def finished(self, name: str, processes: int) -> tuple[dict, str]:
        """Tables of the result, and what was said."""
        done = self.start(name, processes)
        _, told = done.communicate(timeout=120)
        assert done.returncode == 0, told
        return json.loads((self.folder / name / "result.json").read_text())["tables"], told

    def notes(self, name: str, kind: str, number: int) -> list[str]:
        path = self.folder / f"{name}-notes" / f"{kind}-{number}"
        return path.read_text().splitlines() if path.exists() else []

    def wait_until(self, reached: Callable[[], bool], running: subprocess.Popen) -> None:
        for _ in range(1200):
            if reached():
                return
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        raise AssertionError("waited for a minute in vain")

    def killed(self, name: str, processes: int, victim: int) -> str:
        """What is said of a run whose process is killed, which is named."""
        told, status = self.losing(name, processes, victim, signal.SIGKILL)
        assert status == 128 + signal.SIGKILL
        expected = f"process {victim} was killed by SIGKILL; run the same command again to continue"
        assert told.splitlines()[-1] == expected, told
        return told

    def losing(self, name: str, processes: int, victim: int, signum: int) -> tuple[str, int]:
        """What is said of a run whose process gets a signal once it has a checkpoint to go on from; its status."""
        running = self.start(name, processes, delay=0.5)
        # Saving is not awaited: a number of updates does not tell that a checkpoint is there.
        saved = self.folder / name / "training" / "checkpoints"
        self.wait_until(lambda: any(path.name.isdecimal() for path in saved.glob("*")), running)
        os.kill(children(running.pid)[victim], signum)
        _, told = running.communicate(timeout=90)
        return told, running.returncode


@pytest.fixture(scope="session")
def launcher(tmp_path_factory) -> Launcher:
    return Launcher(tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="session")
def undisturbed(launcher) -> dict:
    return launcher.finished("two", 2)[0]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_two_processes_lose_what_one_loses(launcher, undisturbed):
    alone, _ = launcher.finished("one", 1)
    assert undisturbed["train"]["step"] == alone["train"]["step"] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(undisturbed["train"]["loss"], alone["train"]["loss"], rtol=ROUNDING)


@pytest.mark.slow
def test_they_read_disjoint_examples_and_together_all(launcher, undisturbed):
    shares = [[list(map(int, row.split())) for row in launcher.notes("two", "reads", number)] for number in (0, 1)]
    assert {len(row) for share in shares for row in share} == {BATCH // 2}
    read = [{example for row in share[:STEPS] for example in row} for share in shares]
    assert not read[0] & read[1]
    order = examples({"id": np.arange(1000, dtype=np.int32)}, seed=0)
    whole = [{int(order[step * BATCH + row]["id"]) for row in range(BATCH)} for step in range(STEPS)]
    assert [{*first, *second} for first, second in zip(*shares, strict=False)][:STEPS] == whole


@pytest.mark.slow
def test_only_the_first_process_writes_into_the_run_folder(launcher, undisturbed):
    assert launcher.notes("two", "writes", 0)
    # Orbax lets every process describe its arrays; replicated ones are stored by the first process alone.
    assert {Path(path).parts[-2:] for path in launcher.notes("two", "writes", 1)} <= {("array_metadatas", "process_1")}
    assert not list((launcher.folder / "two").rglob("ocdbt.process_1"))


@pytest.mark.slow
def test_processes_with_different_data_are_refused(launcher, monkeypatch):
    monkeypatch.setenv("OTHER_DATA", "1")
    refused = launcher.start("different", 2)
    _, told = refused.communicate(timeout=120)
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert refused.returncode == 2 and errors == told.splitlines()[-1:], told
    assert errors[0].startswith("error: the processes do not agree on ") and "process 1 has another" in errors[0]


@pytest.mark.slow
def test_killed_then_preempted_then_continued_equals_undisturbed(launcher, undisturbed):
    told = launcher.killed("disturbed", 2, victim=1)
    assert "Traceback" not in told

    seen = len(launcher.notes("disturbed", "evaluations", 0))
    running = launcher.start("disturbed", 2, delay=0.2)
    launcher.wait_until(lambda: len(launcher.notes("disturbed", "evaluations", 0)) >= seen + 4, running)
    running.terminate()
    _, told = running.communicate(timeout=60)
    assert running.returncode == 75, told
    assert "SIGTERM, saved after" in told.splitlines()[-2], told

    tables, told = launcher.finished("disturbed", 2)
    assert "going on from" in told
    assert tables == undisturbed


@pytest.mark.slow
@pytest.mark.exhaustive  # the runtime waits 25 s for a heartbeat
def test_of_four_the_one_that_hangs_is_named_not_those_that_are_aborted_for_it(launcher):
    told, status = launcher.losing("hanging", 4, victim=1, signum=signal.SIGSTOP)
    assert status == 128 + signal.SIGABRT
    assert told.splitlines()[-1] == "process 1 no longer answers; run the same command again to continue", told
    assert "stack trace" not in told and "heartbeats" not in told


@pytest.mark.slow
def test_of_four_one_is_killed_and_two_go_on_in_the_same_order(launcher, undisturbed):
    launcher.killed("four", 4, victim=2)
    tables, told = launcher.finished("four", 2)
    begun = int(re.search(r"going on from .* after (\d+) updates", told)[1])
    np.testing.assert_allclose(tables["train"]["loss"], undisturbed["train"]["loss"], rtol=ROUNDING)
    shares = [[list(map(int, row.split())) for row in launcher.notes("four", "reads", number)] for number in range(4)]
    quarters = [[set(row) for row in share if len(row) == BATCH // 4] for share in shares]
    halves = [[set(row) for row in share if len(row) == BATCH // 2] for share in shares[:2]]
    order = examples({"id": np.arange(1000, dtype=np.int32)}, seed=0)
    whole = [{int(order[step * BATCH + row]["id"]) for row in range(BATCH)} for step in range(STEPS)]
    assert [set.union(*parts) for parts in zip(*quarters, strict=False)][:begun] == whole[:begun]
    assert [set.union(*parts) for parts in zip(*halves, strict=False)][: STEPS - begun] == whole[begun:]
