"""Pictures moved by whole pixels while they are trained on."""

import jax
import jax.numpy as jnp


def shifted(images: jax.Array, key: jax.Array, most: int) -> jax.Array:
    """Images moved by as many pixels as the key says, each by itself, from -most to most along both axes.

    Args:
        images: (B, H, W, C).
        key: random key.
        most: pixels; what comes in from outside is the smallest value there is, the background.

    Returns:
        The same shape.

    Example:
        >>> shifted(jnp.ones((2, 8, 8, 1)), jax.random.key(0), 1).shape
        (2, 8, 8, 1)
    """
    if not most:
        return images
    edges = ((0, 0), (most, most), (most, most), (0, 0))
    padded = jnp.pad(images, edges, constant_values=jnp.min(images))
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * most + 1)
    size = images.shape[1:]
    return jax.vmap(lambda image, by: jax.lax.dynamic_slice(image, (by[0], by[1], 0), size))(padded, offsets)
