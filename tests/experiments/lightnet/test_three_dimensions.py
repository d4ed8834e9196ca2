"""The three-dimensional task: its preset runs, and what each encoding cannot know by symmetry."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lightnet import three_dimensions
from experiments.lightnet.voxels import placements, volumes

CONFIG = replace(three_dimensions.PRESETS["smoke"], side=3)


@cache
def far_model(encoding):
    """A function of grids: a model whose parameters are all far from their initial values, compiled once."""
    model = three_dimensions.model_of(CONFIG, encoding)
    params = model.init(jax.random.key(0), jnp.asarray(volumes(placements(3)[0][:1], 3)))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.5 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return partial(jax.jit(model.apply), jax.tree.unflatten(tree, moved))


def logits_of(encoding, grids):
    """Of the model that is far from its initial values."""
    return np.asarray(far_model(encoding)(jnp.asarray(grids)))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_without_positions_all_placements_look_the_same():
    logits = logits_of("none", volumes(placements(3)[0], 3))
    np.testing.assert_allclose(logits, np.broadcast_to(logits[0], logits.shape), atol=1e-4)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_lrpe_alone_cannot_tell_a_volume_from_its_mirror_image_but_an_axis_from_another():
    grids = volumes(placements(3)[0][::7], 3)
    logits = logits_of("lrpe", grids)
    for axis in (1, 2, 3):
        np.testing.assert_allclose(logits_of("lrpe", np.flip(grids, axis)), logits, atol=1e-4)
    assert abs(logits_of("lrpe", grids.transpose(0, 2, 1, 3, 4)) - logits).max() > 1e-3


@pytest.mark.slow
def test_both_encodings_tell_a_volume_from_its_mirror_images():
    grids = volumes(placements(3)[0][::7], 3)
    logits = logits_of("both", grids)
    for axis in (1, 2, 3):
        assert abs(logits_of("both", np.flip(grids, axis)) - logits).max() > 1e-2


def test_values_out_of_range_are_refused_by_name():
    with pytest.raises(ValueError, match="side: got 1, expected between 2 and 16"):
        replace(CONFIG, side=1)
    with pytest.raises(ValueError, match="encodings: got 'sine', expected some of none, lrpe"):
        replace(CONFIG, encodings=("both", "sine"))
