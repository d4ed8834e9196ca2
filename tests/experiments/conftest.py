"""A result file outside the checkout, as a user would write it, without JAX; and the command line called on it."""

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TOY = '''"""A toy result: seeds divided by steps."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from experiments.results import About, Claim, Result
from experiments.results import Config as BaseConfig
from experiments.runs import record_data

ABOUT = About("A toy paper (arXiv 0000.00000)", "Figure 1", {"smoke": 0.01, "cpu": 0.02})


@dataclass(frozen=True)
class Train:
    """How long."""

    steps: int = 10
    """optimizer updates"""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected at least 1")


@dataclass(frozen=True)
class Config(BaseConfig):
    """What the toy does."""

    train: Train = field(default_factory=Train)
    offset: float = 0.0  # added to every value
    sizes: tuple[int, ...] = (1, 2)
    """two of them"""
    pairs: tuple[tuple[int, float], ...] = ((1, 0.5), (2, 0.25))

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.sizes) < 1:
            raise ValueError(f"the smallest of sizes: got {min(self.sizes)}, expected at least 1")


PRESETS = {"smoke": Config(seeds=(0,)), "cpu": Config(train=Train(steps=100))}
CLAIMS = (
    Claim("toy/small", "mean of the values, no unit", "below", 1.0),
    Claim("toy/exact", "the exact value, no unit", "within", 2.0, 0.5, deterministic=True),
    Claim("toy/never", "nothing, no unit", "above", 0.0),
)


def run(config: Config, run_dir: Path) -> Result:
    trouble = os.environ.get("TOY_TROUBLE")
    if trouble == "interrupt":
        raise KeyboardInterrupt
    if trouble == "crash":
        raise ZeroDivisionError("a bug")
    if trouble == "value":
        raise ValueError("p: got 2.0, expected between 0 and 1")
    if trouble == "library":
        raise RuntimeError("RESOURCE_EXHAUSTED: writing chunk: No space left on device\\n  a second line")
    record_data(run_dir, {"numbers": os.environ.get("TOY_DATA", "aa")})
    with open(run_dir / "runs.txt", "a") as file:
        file.write("run\\n")
    values = [config.offset + seed / config.train.steps for seed in config.seeds]
    return Result(
        {"toy/small": values, "toy/exact": [2.0]},
        {"loss": {"seed": list(config.seeds), "loss": values}},
        {"curve": {"x": np.arange(3), "y": np.arange(3.0)}},
    )


def plot(result):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    figure.subplots().plot(result.series["curve"]["x"], result.series["curve"]["y"])
    return figure
'''


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    """Path of the toy; the current folder is one where nothing was run yet."""
    path = tmp_path / "mine" / "toy.py"
    path.parent.mkdir()
    path.write_text(TOY)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("LIGHTNET_RUNS", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield path
    for name in ("toy", "toy_result_file"):
        sys.modules.pop(name, None)


@pytest.fixture
def call(capsys):
    """Calls the command line in this process: words -> (status, stdout, stderr)."""
    from experiments.__main__ import main

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def demo(toy, monkeypatch) -> Path:
    """The toy as the result demo/toy of a paper."""
    from experiments.registry import load_path

    toy.write_text(toy.read_text().replace('"toy/', '"demo/'))

    def load(_id):
        return dataclasses.replace(load_path(toy), id="demo/toy", target="demo/toy")

    for name in ("evidence", "reporting.collect", "commands.list", "commands.report", "commands.show"):
        module = importlib.import_module(f"experiments.{name}")
        monkeypatch.setattr(module, "load_id", load)
        monkeypatch.setattr(module, "discover", lambda: {"demo/toy": toy})
    monkeypatch.setattr(importlib.import_module("experiments.commands.run"), "select", lambda _: [load("demo/toy")])
    return toy


@pytest.fixture
def two_sizes(demo) -> Path:
    """The result demo/toy with a preset gpu, at which demo/small is not measured."""
    text = demo.read_text().replace('"cpu": 0.02}', '"cpu": 0.02, "gpu": 0.03}')
    text = text.replace("PRESETS = {", 'PRESETS = {"gpu": Config(train=Train(steps=1000)), ')
    small = '**({"demo/small": values} if config.train.steps < 1000 else {}),'
    demo.write_text(text.replace('"demo/small": values,', small))
    return demo


@pytest.fixture
def store(monkeypatch):
    """The object store behind every gs:// address."""
    from tests.experiments.object_store import stored_at_gs

    with stored_at_gs(monkeypatch) as objects:
        yield objects


@pytest.fixture
def process():
    """Calls the command line in a process of its own."""

    def run(*words: object, cwd: Path | None = None, **options) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
        command = [sys.executable, "-m", "experiments", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, **options)

    return run


@pytest.fixture
def refused():
    """Takes the outcome of a call that was refused: one line, which it returns."""

    def line(outcome: tuple[int, str, str]) -> str:
        status, out, err = outcome
        assert status == 2 and out == "", outcome
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
        return err.removeprefix("error: ").rstrip("\n")

    return line


@pytest.fixture
def run_folders():
    """Lists the run folders of the current folder."""
    return lambda: sorted(path.parent for path in Path("runs").glob("**/config.json"))
