"""Random changes of a batch of pictures and its labels, inside a compiled step: erasing, mixup and CutMix."""

import jax
import jax.numpy as jnp

_ATTEMPTS = 10


def erased(images: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    """Rectangles of pictures replaced by noise: random erasing (Zhong et al., arXiv 1708.04896).

    A rectangle has 2 to 33 % of the area, uniformly, and a height over width between 0.3 and 1 / 0.3, log-uniformly. Of
    ten that are drawn the first that fits is taken.

    Args:
        images: (B, H, W, C), standardised.
        key: random key.
        probability: that a picture has such a rectangle.

    Returns:
        The same shape; what is inside is standard normal.

    Example:
        >>> erased(jnp.ones((1, 8, 8, 3)), jax.random.key(0), 0.0).all().item()
        True
    """
    noise, choice, places = jax.random.split(key, 3)
    inside = jax.vmap(lambda own: _rectangle(own, images.shape))(jax.random.split(places, len(images)))
    chosen = jax.random.uniform(choice, (len(images), 1, 1)) < probability
    return jnp.where((inside & chosen)[..., None], jax.random.normal(noise, images.shape, images.dtype), images)


def _rectangle(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inside (H, W) of a random rectangle in pictures (B, H, W, C)."""
    _, *size, _ = shape
    keys = jax.random.split(key, 4)
    area = size[0] * size[1] * jax.random.uniform(keys[0], (_ATTEMPTS,), minval=0.02, maxval=1 / 3)
    most = jnp.log(1 / 0.3)
    aspect = jnp.exp(jax.random.uniform(keys[1], (_ATTEMPTS,), minval=-most, maxval=most))
    heights, widths = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (heights < size[0]) & (widths < size[1])
    first = jnp.argmax(fits)
    height, width = heights[first], widths[first]
    top = jnp.floor(jax.random.uniform(keys[2]) * (size[0] - height + 1))
    left = jnp.floor(jax.random.uniform(keys[3]) * (size[1] - width + 1))
    return _box(shape, top, top + height, left, left + width) & fits[first]


def mixed(
    images: jax.Array, targets: jax.Array, key: jax.Array, *, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Each picture mixed with another one of the batch, and its label with the other's.

    .. math:: x' = \\lambda x + (1 - \\lambda) \\bar x, \\quad y' = \\lambda y + (1 - \\lambda) \\bar y

    with the batch in reverse order beside it and one weight per batch from Beta(a, a): mixup (Zhang et al., arXiv
    1710.09412). Or a box of the other picture is put in, and the weight of the label is the share of the area that is
    left: CutMix (Yun et al., arXiv 1905.04899). If both are asked for, a coin decides which of them a batch gets.

    Args:
        images: (B, H, W, C).
        targets: (B, classes), probabilities.
        key: random key.
        mixup: a of mixup; 0 has none.
        cutmix: a of CutMix; 0 has none.

    Returns:
        Pictures and probabilities of the same shapes.

    Example:
        >>> x, y = mixed(jnp.zeros((2, 4, 4, 1)), jnp.eye(2), jax.random.key(0), mixup=0.8, cutmix=0.0)
        >>> bool(jnp.allclose(y.sum(axis=1), 1) & (y > 0).all())
        True
    """
    coin, beta, place = jax.random.split(key, 3)
    if not mixup and not cutmix:
        return images, targets
    if mixup and cutmix:
        branches = [lambda: _mixup(images, beta, mixup), lambda: _cutmix(images, beta, place, cutmix)]
        images, weight = jax.lax.cond(jax.random.bernoulli(coin), *branches)
    else:
        images, weight = _mixup(images, beta, mixup) if mixup else _cutmix(images, beta, place, cutmix)
    return images, weight * targets + (1 - weight) * targets[::-1]


def _mixup(images: jax.Array, key: jax.Array, a: float) -> tuple[jax.Array, jax.Array]:
    weight = jax.random.beta(key, a, a)
    return (weight * images + (1 - weight) * images[::-1]).astype(images.dtype), weight


def _cutmix(images: jax.Array, key: jax.Array, place: jax.Array, a: float) -> tuple[jax.Array, jax.Array]:
    """The box is centred anywhere and cut off at the edges, so that its area is the smaller there."""
    size = images.shape[1:3]
    side = jnp.sqrt(1 - jax.random.beta(key, a, a))
    half = [jnp.floor(side * n) // 2 for n in size]
    centre = [jnp.floor(jax.random.uniform(own) * n) for own, n in zip(jax.random.split(place), size, strict=True)]
    box = _box(images.shape, centre[0] - half[0], centre[0] + half[0], centre[1] - half[1], centre[1] + half[1])
    return jnp.where(box[None, :, :, None], images[::-1], images), 1 - box.mean()


def _box(shape: tuple[int, ...], top: jax.Array, bottom: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """Which pixels (H, W) are at least at `top` and `left` and before `bottom` and `right`."""
    rows, columns = jnp.arange(shape[1])[:, None], jnp.arange(shape[2])[None]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
