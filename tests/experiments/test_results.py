"""Config, Claim and About refuse what could not be run or judged; stored results are read back."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import experiments.runs
from experiments.errors import UserError
from experiments.results import Claim, Config, load


@pytest.mark.parametrize(
    ("seeds", "told"),
    [
        ((), "at least one"),
        ((1, 1), "distinct"),
        ((0, -1), "from 0"),
        ((2**31,), "2\\*\\*31"),
        ((0.5,), "integers"),
        ((True,), "integers"),
    ],
)
def test_config_refuses_seeds(seeds, told):
    with pytest.raises(ValueError, match=f"^seeds must .*{told}"):
        Config(seeds=seeds)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"test": "near"}, "test"),
        ({"kind": "theirs"}, "kind"),
        ({"expected": math.nan}, "expected"),
        ({"expected": math.inf}, "expected"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"test": "below", "tolerance": 0.1}, "tolerance belongs"),
    ],
)
def test_claim_refuses_what_no_measurement_could_decide(fields, told):
    with pytest.raises(ValueError, match=f"claim demo/a: {told}"):
        Claim(**{"id": "demo/a", "quantity": "a number", "test": "within", "expected": 1.0, **fields})


def test_load_reads_the_newest_run(toy, call):
    for offset in (0.25, 0.5):
        assert call("run", toy, "--config.offset", offset)[0] == 0
    stored = load("toy")
    assert stored.config["offset"] == 0.5
    assert stored.seeds == (0, 1, 2) and stored.preset == "cpu" and stored.id == "toy"
    assert stored.table("loss") == {"seed": [0, 1, 2], "loss": [0.5, 0.51, 0.52]}
    assert stored.claim("toy/small")["values"] == [0.5, 0.51, 0.52]
    np.testing.assert_array_equal(stored.series["curve"]["x"], np.arange(3))
    assert stored.data == {"numbers": "aa"}
    with pytest.raises(UserError, match="no table 'los'; it has: loss"):
        stored.table("los")
    with pytest.raises(UserError, match="tests no claim"):
        stored.claim("toy/other")
    with pytest.raises(
        UserError, match="no finished run of toy at preset gpu; make one: python -m experiments run toy"
    ):
        load("toy", "gpu")
    with pytest.raises(UserError, match="no finished run"):
        load("toy", runs_dir="elsewhere")


def test_load_falls_back_on_the_committed_result(toy, call, tmp_path, monkeypatch):
    call("run", toy)
    package = tmp_path / "package"
    committed = package / "demo" / "results" / "a" / "cpu"
    committed.mkdir(parents=True)
    source = load("toy").path
    for name in ("result.json", "arrays.npz", "figure.png"):
        shutil.copy(source / name, committed / name)
    monkeypatch.setattr(experiments.runs, "__file__", str(package / "runs.py"))
    stored = load("demo/a")
    assert stored.path == committed
    assert stored.series["curve"]["y"].shape == (3,)
    assert not Path("runs/demo").exists()


def test_load_of_a_registered_result_imports_nothing_heavy():
    code = (
        "import sys\nfrom experiments import results\n"
        "assert results.load('tokenization/entropy_gap').series\n"
        "heavy = ('jax', 'flax', 'grain', 'matplotlib', 'tokenizers', 'tyro', 'scipy')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
