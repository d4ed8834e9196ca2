"""Widths of GLUs with which models are equally large."""

import jax
import jax.numpy as jnp
import pytest

from experiments.equal_size import count_parameters, hidden_for
from experiments.long_memory.arena_models import classifier
from experiments.long_memory.arena_tasks import TASKS
from experiments.long_memory.networks import ModelConfig
from lightnet.scan.dispatch import lowered_for


def test_hidden_is_the_nearest_width():
    sizes = {hidden: 1000 + 48 * hidden for hidden in range(1, 100)}
    for parameters in (1500, 2000, 3333):
        nearest = min(sizes, key=lambda hidden: abs(sizes[hidden] - parameters))
        assert hidden_for(sizes.__getitem__, parameters) == nearest


@pytest.mark.parametrize("name", ["lightnet+both", "s4d+none"])
def test_the_blocks_of_a_model_all_count(name):
    model, _ = classifier(ModelConfig(3, 8, 2, 3000), name, TASKS["retrieval"], 20, both_ways=True)
    inputs = jnp.zeros((1, 40), jnp.uint8), jnp.ones((1, 2), jnp.int32)
    with lowered_for("cpu"):
        variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    assert count_parameters(model, *inputs) == sum(leaf.size for leaf in jax.tree.leaves(variables))
