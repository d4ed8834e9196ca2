"""The training step that is timed does what the training loop does."""

import numpy as np
import pytest

from experiments.lightnet import training_speed


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_ratio_is_over_the_faster_softmax_model(tmp_path, monkeypatch):
    from experiments.scan_benchmark import measure

    times = iter((2.0, 8.0, 5.0))
    found = lambda calls, repeats: [measure.Timing(0.0, next(times), 0.0, 1) for _ in calls]  # noqa: E731
    monkeypatch.setattr(measure, "take_turns", found)
    result = training_speed.run(training_speed.PRESETS["smoke"], tmp_path)
    np.testing.assert_allclose(result.measured["lightnet/R7-training-speed"], [2.5])
    tokens = 2 * training_speed.PRESETS["smoke"].length
    np.testing.assert_allclose(result.tables["speeds"]["tokens_per_second"], [500 * tokens, 125 * tokens, 200 * tokens])
