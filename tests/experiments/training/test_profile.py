"""A trace of a few steps when it is asked for, of the first training only."""

import pytest

from experiments.training import profile
from experiments.training.profile import StepTrace, profiling


@pytest.fixture
def calls(monkeypatch):
    import jax

    made = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: made.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: made.append(("stop",)))
    return made


def steps_traced(calls, steps, start=0):
    """Drive one training of so many steps; the steps between start and stop."""
    trace, traced = StepTrace(steps), []
    for step in range(start, steps):
        trace.at(step, None)
        if sum(call[0] == "start" for call in calls) > sum(call[0] == "stop" for call in calls):
            traced.append(step)
    trace.stop()
    return traced


@pytest.mark.parametrize(("steps", "expected"), [(100, range(10, 20)), (20, range(1, 20)), (2, [1]), (1, [0])])
def test_ten_steps_are_traced_or_what_a_short_training_has(calls, tmp_path, steps, expected):
    with profiling(tmp_path):
        assert steps_traced(calls, steps, start=steps) == []
        assert steps_traced(calls, steps) == list(expected)
        assert steps_traced(calls, steps) == []
    assert calls == [("start", str(tmp_path)), ("stop",)]


def test_a_resumed_training_is_traced_from_where_it_goes_on(calls, tmp_path):
    with profiling(tmp_path):
        assert steps_traced(calls, 100, start=60) == list(range(70, 80))


def test_nothing_is_traced_unless_asked_for(calls):
    assert steps_traced(calls, 100) == [] and calls == []
    assert profile._folder.get() is None
