"""Pictures moved by whole pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sources.shifts import shifted


@pytest.mark.slow
def test_images_move_by_whole_pixels_and_background_comes_in():
    image = jnp.zeros((1, 8, 8, 1)).at[0, 0, 3, 0].set(5.0).at[0, 4, 4, 0].set(-1.0)
    moved = shifted(jnp.repeat(image, 200, axis=0), jax.random.key(0), 1)[..., 0]
    at = np.argwhere(np.asarray(moved) == 5.0)
    assert set(at[:, 2]) == {2, 3, 4} and set(at[:, 1]) == {0, 1}  # a third has left the picture
    assert float(moved[:, 7].max()) == 0.0 and float(moved.min()) == -1.0
    np.testing.assert_array_equal(shifted(image, jax.random.key(0), 0), image)
