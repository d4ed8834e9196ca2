"""The benchmark measures what it says; how fast this machine is, no test can know."""

import time

import grain
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.__main__ import main
from experiments.training import benchmark
from experiments.training.loop import TrainState


def test_a_slow_source_shows_in_the_ratio(monkeypatch):
    def update(state, batch):
        return TrainState(state.step + 1, state.params, state.optimizer), {"loss": jnp.zeros(())}

    def slow(batch):
        time.sleep(0.01)
        return batch

    fast = grain.MapDataset.source([{"x": np.ones((2, 2), np.float32)}]).repeat()
    steps = benchmark.WARM_UP + 30
    assert benchmark._looped(update, fast.map(slow), steps) < 0.5 * benchmark._looped(update, fast, steps)


@pytest.mark.slow
def test_both_cases_are_compared():
    fast, slow = benchmark.loop_overhead(pairs=1, seconds=0.1)
    assert len(fast.ratios) == len(slow.ratios) == 1
    assert fast.step_ms < slow.step_ms


def test_mistakes_are_one_line(capsys):
    assert main(["bench", "lop"]) == main(["bench", "loop", "--pairs", "0"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "nearest: loop" in first and second == "error: --pairs: got 0, expected at least 1"
