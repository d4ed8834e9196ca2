"""A result file outside the checkout, as a user would write it, without JAX."""

import sys
from pathlib import Path

import pytest

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
