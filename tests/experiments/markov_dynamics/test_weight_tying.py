"""Tied against untied weights: the smoke run, how escapes become claims, presets and refusals."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.markov_dynamics import weight_tying
from experiments.markov_dynamics.chain_transformer import chain_transformer
from experiments.markov_dynamics.weight_tying import PRESETS, Config
from tests.experiments.result_run import check_run


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("preset", ["paper", "smoke"])
def test_two_updates_at_least_depth(preset, tmp_path):
    config = PRESETS[preset]
    short = {"seeds": (0,), "depths": (1,), "evaluation_rows": 2}
    config = replace(config, **short, train=replace(config.train, steps=2, eval_every=2))
    result = check_run(weight_tying, config, tmp_path, absent={"M-depth-escapes"})
    assert set(result.series) == {"untied, 1 layers", "tied, 1 layers"}
    assert result.series["tied, 1 layers"]["loss"].shape == (1, 2)
    # Untrained models guess uniformly.
    assert result.series["tied, 1 layers"]["loss"][:, 0] == pytest.approx(np.log(2), abs=0.03)


def test_ratios_of_escapes_and_losses_in_units_of_the_gap():
    config = Config(seeds=(0, 1), depths=(1, 4))
    losses = {(False, 1): [0.5, 0.52], (True, 1): [0.7, 0.6], (True, 4): [0.5, 0.5]}
    curves = {name: SimpleNamespace(metrics={"loss": np.array(last)[:, None]}) for name, last in losses.items()}
    escapes = {(False, 1): np.array([0, 50]), (True, 1): np.array([40, 200]), (True, 4): np.array([60, 20])}
    measured = weight_tying._measured(config, curves, escapes, 0.5, 0.7)
    assert measured["markov_dynamics/M2-plateau-length"] == [40.0, 4.0]  # an escape at step 0 counts as step 1
    assert measured["markov_dynamics/M2-untied-optimal"] == pytest.approx([0, 0.02])
    assert measured["markov_dynamics/M2-tied-stuck-untied-fine"] == pytest.approx([1.0, 0.5])
    assert measured["markov_dynamics/M-depth-escapes"] == [20.0, -180.0]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("p", 0.0, "p: got 0"), ("depths", (), "the number of depths: got 0"), ("length", 1, "length: got 1")],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})


def test_the_published_setting_and_the_size_of_its_model():
    paper = PRESETS["paper"]
    assert (paper.p, paper.q, paper.length, paper.width, len(paper.seeds)) == (0.5, 0.8, 1024, 8, 5)
    optimizer = paper.train.optimizer
    assert (paper.train.batch_size, optimizer.learning_rate, optimizer.weight_decay) == (16, 2e-3, 1e-3)
    model = chain_transformer(paper.length, layers=1, width=paper.width)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    # 1024 positions, 2 symbols, their biases; attention 4 D^2, MLP 8 D^2, three norms.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1024 * 8 + 2 * 8 + 2 + 12 * 8**2 + 3 * 8
