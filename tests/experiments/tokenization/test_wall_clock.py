"""Loss against seconds: the smoke run with given times, two updates of the published setting, made-up claims."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.scan_benchmark import measure as clock
from experiments.tokenization import wall_clock
from experiments.tokenization.rows_config import RowsConfig
from experiments.tokenization.wall_clock import CLAIMS, PRESETS, Config, arrival, measure
from tests.experiments.result_run import check_run

ALL = {claim.id.partition("/")[2] for claim in CLAIMS}


def timed(milliseconds):
    """Stands for the clock: each call of `take_turns` finds the next times."""
    return lambda calls, repeats: [clock.Timing(0.0, next(milliseconds), 0.0, repeats) for _ in calls]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_seconds_are_updates_times_the_time_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "take_turns", timed(iter((20.0, 40.0))))
    result = check_run(wall_clock, PRESETS["smoke"], tmp_path, absent=ALL)
    curve = result.series["characters-width-4"]
    np.testing.assert_allclose(curve["seconds"], [[0.0, 0.04], [0.0, 0.08]])
    models = result.tables["models"]
    assert models["seconds_per_update"] == [0.02, 0.04] and models["arrived"] == [False, False]
    np.testing.assert_allclose(models["seconds"], [0.04, 0.08])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_updates_of_the_published_setting(tmp_path):
    published = PRESETS["paper"]
    assert (published.length, published.layers, published.train.steps) == (512, 3, 300)
    assert published.models == ((2, 10), (2, 20), (20, 20))
    config = replace(
        published,
        seeds=(0,),
        layers=1,
        models=published.models[::2],
        calls=1,
        rows=RowsConfig(tokenizer_characters=10_000, pool=16, evaluation=2, reference=4),
        train=replace(published.train, steps=2, eval_every=2),
    )
    result = check_run(wall_clock, config, tmp_path, absent={claim for claim in ALL if "same" in claim})
    assert min(result.tables["models"]["seconds"]) > 0


def test_the_first_arrival_counts_and_never_is_the_last():
    step, losses = np.array([0, 5, 10, 15]), np.array([0.7, 0.55, 0.6, 0.5])
    assert [arrival(step, losses, goal) for goal in (0.8, 0.55, 0.52, 0.1)] == [0, 5, 15, 15]


def test_claims_of_made_up_rows():
    rows = [
        {"size": size, "width": width, "seconds": seconds, "last_loss": loss}
        for size, width, seconds, loss in ((2, 10, 9.0, 0.52), (2, 20, 8.0, 0.5), (20, 20, 2.0, 0.51))
    ]
    found = measure(Config(seeds=(0,)), rows, 0.5)
    assert {id.partition("/")[2]: value for id, (value,) in found.items()} == {
        "F5-bpe-faster-smallest-models": -7.0,
        "F5-smallest-models-arrive": pytest.approx(1.04),
        "F5-same-architecture": pytest.approx(0.01),
        "F5-same-architecture-faster": -6.0,
    }


@pytest.mark.parametrize(
    ("field", "value", "message"), [("models", ((1, 2),), "each dictionary size"), ("calls", 0, "calls: got 0")]
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
