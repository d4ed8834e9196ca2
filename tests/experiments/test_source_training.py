"""Training on fresh texts: seeds do not know of each other, data are drawn anew, escapes are read off curves."""

from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import results
from experiments.planning.trainings import recorded
from experiments.source_training import escape_steps, train_on_source
from experiments.training.config import TrainConfig

CONFIG = TrainConfig(steps=6, batch_size=4, eval_every=3)


@dataclass(frozen=True)
class Planned(results.Config):
    """What `plan` asks a result for."""

    train: TrainConfig = CONFIG


def mean_of_noise(folder, seeds):
    """One number, pulled towards the mean of fresh normal numbers around the seed."""

    def measure(params, target):
        return {"error": (params["w"] - target) ** 2, "w": params["w"]}

    return train_on_source(
        CONFIG,
        lambda key: {"w": jax.random.normal(key)},
        lambda params, batch: ((params["w"] - batch) ** 2).mean(),
        lambda key: jax.random.normal(key, (4,)),
        folder,
        seeds=seeds,
        label="noise",
        evaluation=[jnp.float32(seed) for seed in seeds],
        measure=measure,
    )


@pytest.mark.slow
def test_each_seed_is_trained_as_if_alone_and_evaluated_on_its_own_set(tmp_path):
    both, alone = (mean_of_noise(tmp_path / str(len(seeds)), seeds) for seeds in ((3, 5), (5,)))
    assert both.step.tolist() == [0, 3, 6]
    assert both.metrics["w"].shape == (2, 3)
    np.testing.assert_allclose(both.metrics["w"][1], alone.metrics["w"][0], rtol=1e-6)
    np.testing.assert_allclose(both.metrics["error"], (both.metrics["w"] - [[3], [5]]) ** 2, rtol=1e-5)
    assert both.params["w"].shape == (2,) and both.params["w"][0] != both.params["w"][1]


def test_a_training_that_is_only_written_down_has_its_metrics(tmp_path):
    seen = []

    def run(config, run_dir):
        seen.append(mean_of_noise(run_dir, (3, 5)))

    found = recorded(SimpleNamespace(id="demo/noise", run=run), Planned())
    assert (len(found.trainings), found.stopped) == (1, "")
    assert {name: values.shape for name, values in seen[0].metrics.items()} == {"error": (2, 3), "w": (2, 3)}


def test_one_evaluation_set_per_seed(tmp_path):
    with pytest.raises(ValueError, match="evaluation: got 1 sets, expected one for each of 2 seeds"):
        train_on_source(
            CONFIG,
            None,
            None,
            None,
            tmp_path,
            seeds=(0, 1),
            label="",
            evaluation=[0],
            measure=None,  # type: ignore
        )


def test_escapes_are_read_off_the_curve():
    step = np.array([0, 5, 10, 15])
    losses = np.array([[0.9, 0.59, 0.7, 0.5], [0.9, 0.7, 0.61, 0.55], [0.7, 0.7, 0.7, 0.7]])
    assert escape_steps(step, losses, 0.7, 0.5).tolist() == [5, 15, 15]
