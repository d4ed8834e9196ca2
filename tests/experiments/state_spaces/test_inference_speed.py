"""Inference speed: what the floors count, which times a ratio is of, and that the peer is the same model."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from experiments.state_spaces import inference_speed
from experiments.state_spaces.inference_speed import FORWARD, PEER, PRODUCTS, READ, STEP

SMALL = replace(inference_speed.PRESETS["smoke"], length=7, layers=2, width=16, vocabulary=29)


def build(config):
    model = inference_speed.mamba(config)
    tokens = np.arange(config.length, dtype=np.int32)[None]
    return model, nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens)), tokens


@pytest.mark.slow
def test_the_shape_is_the_published_one():
    model = inference_speed.mamba(inference_speed.PRESETS["cpu"])
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 129_135_360


def dots(jaxpr):
    """Multiply-adds of each product in a program, by the product's shapes."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (inner, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            found.append(int(np.prod([left[axis] for axis in inner])) * int(np.prod(equation.outvars[0].aval.shape)))
        for inside in jaxprs_in_params(equation.params):
            found += dots(inside)
    return found


def test_the_products_are_those_of_the_forward_pass():
    model, variables, tokens = build(SMALL)
    x = jnp.zeros((*tokens.shape, SMALL.width))
    floor = dots(jax.make_jaxpr(lambda v, x: inference_speed.matrix_products(model, v, x))(variables, x).jaxpr)
    mix = variables["params"]["backbone"]["blocks_0"]["mix"]
    names = ("in_proj", "x_proj", "dt_proj", "out_proj")
    expected = SMALL.layers * [SMALL.length * mix[name]["kernel"].size for name in names]
    assert floor == [*expected, SMALL.length * SMALL.vocabulary * SMALL.width]
    whole = dots(jax.make_jaxpr(model.apply)(variables, tokens).jaxpr)
    assert [count for count in whole if count in floor] == floor


def test_ratios_are_of_the_times_of_a_repetition():
    rows = {FORWARD: (3.0, 4.0), PRODUCTS: (2.0, 1.0), PEER: (30.0, 10.0), STEP: (5.0, 6.0), READ: (4.0, 2.0)}
    columns = {"program": [], "cpu_ms": []}
    for repetition in range(2):
        for name, times in rows.items():
            columns["program"].append(name)
            columns["cpu_ms"].append(times[repetition])
    found = inference_speed._measured(columns)
    assert {id.partition("/")[2]: values.tolist() for id, values in found.items()} == {
        "mamba-forward-near-products": [1.5, 4.0],
        "mamba-faster-than-transformers": [10.0, 2.5],
        "mamba-step-near-reading": [1.25, 3.0],
    }


@pytest.mark.slow
def test_the_peer_has_the_logits_of_the_weights_it_is_given():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model, variables, tokens = build(SMALL)
    assert PEER in inference_speed.forward_programs(replace(SMALL, peer=True), model, variables, tokens)
    moved = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    peer = inference_speed.transformers_program(model, moved, tokens)
    assert not np.allclose(peer(), jax.jit(model.apply)(variables, tokens), atol=1e-3)
