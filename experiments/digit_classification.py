"""Classifiers of scikit-learn's digits as several papers train them: the images, the loss and the accuracy.

The images stand in random places by up to a pixel or so while a model is trained, as is usual for such small ones, and
labels are smoothed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax

    from experiments.sources.digits import Digits
    from experiments.training.together import OneLoss

CLASSES = 10
Read = Callable[[Any], Any]


def standardised_parts(test_images: int) -> tuple[Digits, Digits, str]:
    """Digits to train on and to test on, with the mean and the deviation of the former's pixels removed.

    Args:
        test_images: how many are tested on; the same for everybody who asks for as many.

    Returns:
        (training part, test part, hash of the source).

    Example:
        >>> train, test, _ = standardised_parts(500)
        >>> len(train), len(test), bool(abs(train.images.mean()) < 1e-5)
        (1297, 500, True)
    """
    from experiments.sources.digits import Digits, load_digits

    digits = load_digits()
    train, test = digits.split(test_images / len(digits))
    mean, deviation = train.images.mean(), train.images.std()
    first, second = (Digits((part.images - mean) / deviation, part.labels) for part in (train, test))
    return first, second, digits.sha256


def pixels(images: Any) -> Any:
    """Images (n, 8, 8, 1) as sequences (n, 64, 2), row by row: each pixel and a one.

    A block begins with a norm, which takes the length away from its input: of a pixel times a vector the sign would be
    left. Of the sum with another vector, that of the ones, the angle tells how bright the pixel is.

    Example:
        >>> import numpy as np
        >>> pixels(np.arange(64.0).reshape(1, 8, 8, 1))[0, 8:10].tolist()
        [[8.0, 1.0], [9.0, 1.0]]
    """
    import jax.numpy as jnp

    sequences = images.reshape(len(images), -1, 1)
    return jnp.concatenate([sequences, jnp.ones_like(sequences)], axis=-1)


def smoothed_loss(model: Any, train: Digits, *, shift: int, smoothing: float, read: Read | None = None) -> OneLoss:
    """Cross-entropy of smoothed labels on shifted images.

    Args:
        model: a linen classifier.
        train: images to train on.
        shift: most pixels by which an image is shifted, along each axis.
        smoothing: probability of the labels that is spread over all classes.
        read: images -> what the model is called with, such as `pixels`; None is the images.

    Returns:
        (parameters, rows (B,), key) -> scalar, as `experiments.training.together` takes it.
    """

    def loss(params: Any, rows: jax.Array, key: jax.Array) -> jax.Array:
        import jax
        import jax.numpy as jnp
        import optax

        from experiments.sources.shifts import shifted

        images, labels = jnp.asarray(train.images)[rows], jnp.asarray(train.labels)[rows]
        images = shifted(images, key, shift)
        logits = model.apply({"params": params}, images if read is None else read(images))
        targets = optax.smooth_labels(jax.nn.one_hot(labels, CLASSES), smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean()

    return loss


def accuracies(model: Any, test: Digits, seeds: Sequence[int], read: Read | None = None) -> Callable[[Any], Any]:
    """What evaluates stacked models.

    Args:
        model: a linen classifier.
        test: images to test on.
        seeds: one per model.
        read: see `smoothed_loss`.

    Returns:
        Stacked parameters -> {"accuracy SEED": %}.
    """
    import jax
    import jax.numpy as jnp

    inputs = jnp.asarray(test.images) if read is None else read(test.images)

    @jax.jit
    def right(params: Any) -> jax.Array:
        return jax.lax.map(
            lambda own: 100.0 * (model.apply({"params": own}, inputs).argmax(axis=-1) == test.labels).mean(), params
        )

    def evaluate(params: Any) -> dict[str, float]:
        return {f"accuracy {seed}": float(value) for seed, value in zip(seeds, right(params), strict=True)}

    return evaluate
