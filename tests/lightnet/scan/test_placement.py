"""Activations between layers: what the compiler is told of where they lie."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from lightnet.backbone import Backbone
from lightnet.mixers import SoftmaxAttention
from lightnet.scan.placement import spread


def lowered(function, *shape, kind=AxisType.Auto, **mesh):
    """The program for some devices that need not be there."""
    abstract = AbstractMesh(tuple(mesh.values()), tuple(mesh), axis_types=(kind,) * len(mesh))
    with jax.sharding.use_abstract_mesh(abstract):
        traced = jax.jit(function).trace(jax.ShapeDtypeStruct(shape, jnp.float32))
        return traced.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize(
    ("shape", "constraint"),
    [
        ((4, 6, 8), '[{"data"}, {"sequence"}, {}]'),
        ((3, 6, 8), '[{}, {"sequence"}, {}]'),
        ((4, 5, 8), '[{"data"}, {}, {}]'),
    ],
    ids=["both", "three rows for two devices", "five tokens for two devices"],
)
def test_rows_and_sequence_are_spread_where_they_divide(shape, constraint):
    text = lowered(partial(spread, letters="B L W"), *shape, data=2, sequence=2, tensor=2)
    assert f"sdy.sharding_constraint %arg0 <@mesh, {constraint}>" in text


def test_between_the_layers_of_a_backbone_the_sequence_stays_spread():
    """Equal outputs would not show it: the compiler may compute the whole sequence on every device."""
    backbone = Backbone(partial(SoftmaxAttention, num_heads=2), num_layers=2, width=8)
    variables = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((4, 6, 8)))
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables)
    text = lowered(lambda x: backbone.apply(variables, x)[0], 4, 6, 8, data=2, sequence=2)
    assert text.count("sdy.sharding_constraint") == text.count('<@mesh, [{"data"}, {"sequence"}, {}]>') == 3


def test_where_nothing_is_to_be_spread_the_program_has_no_constraint():
    for mesh in ({"data": 1, "sequence": 1}, {}):
        assert "sharding_constraint" not in lowered(partial(spread, letters="B L W"), 4, 6, 8, **mesh)
    text = lowered(partial(spread, letters="B L W"), 4, 6, 8, kind=AxisType.Explicit, data=2, sequence=2)
    assert "sharding_constraint" not in text
