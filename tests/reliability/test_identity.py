"""A run folder is continued only as the run that it was started as, and a finished one is left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import main

ROOT = Path(__file__).resolve().parents[2]

TRAINING = '''"""A linear regression."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from experiments import results
from experiments.results import About, Result
from experiments.runs import record_data
from experiments.training.config import TrainConfig

ABOUT = About("A toy paper (arXiv 0000.00000)", "Figure 1", {"smoke": 0.1})


@dataclass(frozen=True)
class Config(results.Config):
    """How long."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=3))


PRESETS = {"smoke": Config(seeds=(0,))}
CLAIMS = ()


def run(config: Config, run_dir: Path) -> Result:
    import jax.numpy as jnp
    import numpy as np

    from experiments.training.data import fingerprint
    from experiments.training.loop import train
    from experiments.training.task import Task

    data = {"x": np.arange(24.0, dtype=np.float32) / 24}
    data["x"][7] += float(os.environ.get("SHIFT", "0"))
    record_data(run_dir, {"line": fingerprint(data)})

    def loss(params, batch, key):
        return jnp.mean((params["w"] - batch["x"]) ** 2), {}

    task = Task(lambda key: {"w": jnp.ones(())}, loss)
    outcome = train(config.train, task, data, run_dir / "training", seed=0)
    return Result({}, {"train": {"step": outcome.train["step"].tolist(), "loss": outcome.train["loss"].tolist()}}, {})


def plot(result):
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))
'''


@pytest.fixture
def words(tmp_path, monkeypatch) -> list[str]:
    """The command line of a finished run."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "line_fit.py").write_text(TRAINING)
    words = ["run", str(tmp_path / "line_fit.py"), "--preset", "smoke", "--run_dir", str(tmp_path / "run")]
    assert main(words) == 0
    yield words
    sys.modules.pop("line_fit", None)


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changed", "shift", "field", "steps"),
    [
        (["--config.train.steps", "5"], "0", "train.steps", 5),
        (["--config.train.optimizer.b2", "0.5"], "0", "train.optimizer.b2", 3),
        ([], "0.25", "data", 3),
    ],
)
def test_another_config_or_other_data_are_refused_or_allowed_and_logged(
    words, tmp_path, capsys, monkeypatch, changed, shift, field, steps
):
    run = tmp_path / "run"
    monkeypatch.setenv("SHIFT", shift)
    if field == "data":  # a finished run reads no data
        (run / "DONE").unlink()
        (run / "result.json").unlink()
    before = files(run / "training")
    capsys.readouterr()
    assert main([*words, *changed]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ") and told.endswith(f"allow it with --allow_mismatch {field}")
    assert files(run / "training") == before
    assert main([*words, *changed, "--allow_mismatch", field]) == 0
    logged = [line for line in capsys.readouterr().err.splitlines() if line.endswith(", as allowed")]
    assert [line for line in logged if f"{field.removeprefix('train.')} was " in line], logged
    allowed = {change["field"] for change in json.loads((run / "allowed.json").read_text())}
    assert allowed == {"data.line" if field == "data" else field}
    result = json.loads((run / "result.json").read_text())
    assert result["allowed"] == json.loads((run / "allowed.json").read_text())
    assert result["tables"]["train"]["step"] == list(range(1, steps + 1))


def test_running_a_finished_run_again_does_nothing_and_never_loads_jax(words, tmp_path):
    before = files(tmp_path / "run")
    command = [sys.executable, "-X", "importtime", "-m", "experiments", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "experiments" in loaded and not loaded & {"jax", "flax", "orbax", "grain", "matplotlib"}
    assert files(tmp_path / "run") == before
