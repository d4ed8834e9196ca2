"""Where a convolutional network looks: the first principal component of its features (Eigen-CAM, arXiv 2008.00299)."""

import jax
import jax.numpy as jnp


def eigen_cam(features: jax.Array) -> jax.Array:
    """Class-free activation maps.

    .. math:: A = U \\Sigma V^T, \\qquad L = A v_1

    with the features of an image as a matrix A of places by channels, not centred, and its first right singular vector.
    The sign of a singular vector is free: here the map's largest absolute value is positive.

    Args:
        features: (B, height, width, channels), of one layer.

    Returns:
        (B, height, width).

    Raises:
        ValueError: the features have another number of axes.

    Example:
        >>> map = jnp.array([[1.0, 2.0], [2.0, 1.0]])
        >>> eigen_cam(map[None, :, :, None] * jnp.array([[[[3.0, 4.0]]]]))[0].round(3).tolist()
        [[5.0, 10.0], [10.0, 5.0]]
    """
    if features.ndim != 4:
        raise ValueError(f"features: got {features.ndim} axes, expected (B, height, width, channels)")
    places = features.reshape(len(features), -1, features.shape[-1])
    vectors = jnp.linalg.svd(places, full_matrices=False)[2][:, 0]
    maps = jnp.einsum("bpc,bc->bp", places, vectors, precision="highest")
    largest = jnp.take_along_axis(maps, jnp.abs(maps).argmax(axis=1)[:, None], axis=1)
    return (maps * jnp.where(largest < 0, -1.0, 1.0)).reshape(features.shape[:3])


def overlap(a: jax.Array, b: jax.Array) -> jax.Array:
    """Correlation of two maps of each image; 0 where one is constant.

    Args:
        a: (B, height, width).
        b: the same shape.

    Returns:
        (B,) from -1 to 1.

    Example:
        >>> a = jnp.array([[[0.0, 1.0], [2.0, 3.0]]])
        >>> overlap(a, 2 * a + 1).round(4).tolist(), overlap(a, jnp.ones((1, 2, 2))).tolist()
        ([1.0], [0.0])
    """
    a, b = (x.reshape(len(x), -1) - x.reshape(len(x), -1).mean(axis=1, keepdims=True) for x in (a, b))
    product = jnp.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return jnp.where(product > 0, (a * b).sum(axis=1) / jnp.where(product > 0, product, 1.0), 0.0)
