"""The benchmark measures what it says; how fast this machine is, no test can know."""

import time

import pytest

from experiments.__main__ import main
from experiments.training import benchmark
from experiments.training.data import DeviceBatches
from experiments.training.update import Report


def idle(state, batch):
    """An update that takes no time."""
    return state._replace(step=state.step + 1), Report({"loss": 1.0}, -1, 0)


class Slow:
    """Checkpoints that take 50 ms each."""

    def save(self, *_, **__):
        time.sleep(0.05)

    def check(self):
        pass


@pytest.mark.slow
def test_a_slow_source_and_slow_saves_show_in_the_ratio(monkeypatch):
    steps, read = benchmark.WARM_UP + 110, DeviceBatches.__next__
    fast = benchmark._looped(idle, steps)
    timed = benchmark._Timed(Slow())
    assert benchmark._looped(idle, steps, 0, timed) < fast
    assert len(timed.seconds) == 2 and min(timed.seconds) >= 0.05
    monkeypatch.setattr(DeviceBatches, "__next__", lambda self: time.sleep(0.01) or read(self))
    assert benchmark._looped(idle, steps) < 0.5 * fast


@pytest.mark.slow
@pytest.mark.exhaustive
def test_all_that_is_measured_is_there():
    fast, slow = benchmark.loop_overhead(pairs=1, seconds=0.1)
    assert len(fast.ratios) == len(slow.ratios) == 1
    assert fast.step_ms < slow.step_ms
    small, large = benchmark.saving_overhead(pairs=1, saves=2)
    assert 0 < small.megabytes < 1 < 10 < large.megabytes and small.blocked > 0
    assert benchmark.data_tokens_per_second(seconds=0.1) > 0


def test_mistakes_are_one_line(capsys):
    assert main(["bench", "lop"]) == main(["bench", "loop", "--pairs", "0"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "nearest: loop" in first and second == "error: --pairs: got 0, expected at least 1"
