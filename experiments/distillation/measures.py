"""What is measured of a student beside its teacher: accuracy, agreement, entropies, calibration."""

import jax
import jax.numpy as jnp

BINS = 15


def calibration_error(logits: jax.Array, labels: jax.Array, bins: int = BINS) -> jax.Array:
    """Expected calibration error with bins of equal width (Naeini et al. 2015; Guo et al. 2017, equation 3).

    .. math:: ECE = \\sum_b \\frac{n_b}{n} |acc_b - conf_b|

    Args:
        logits: (n, classes).
        labels: (n,).
        bins: of the largest probability.

    Returns:
        One number from 0 to 1.

    Example:
        >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.75, 0.25]]))
        >>> print(f"{calibration_error(logits, jnp.array([0, 1])):.2f}")
        0.25
    """
    confidence = jax.nn.softmax(logits).max(axis=-1)
    right = logits.argmax(axis=-1) == labels
    # a bin has its upper end, as in the published code
    number = jnp.clip(jnp.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = jax.ops.segment_sum(right - confidence, number, bins)
    return jnp.abs(gap).sum() / len(labels)


def entropy(logits: jax.Array) -> jax.Array:
    """Mean of -sum p log p over a batch, nats.

    Example:
        >>> print(f"{entropy(jnp.zeros((3, 4))):.4f}")
        1.3863
    """
    log_p = jax.nn.log_softmax(logits)
    return -(jnp.exp(log_p) * log_p).sum(axis=-1).mean()


def accuracy_of(logits: jax.Array, labels: jax.Array, which: jax.Array | int) -> jax.Array:
    """Accuracy on the images of one class, %.

    Args:
        logits: (n, classes).
        labels: (n,).
        which: the class, of which there is at least one image.

    Returns:
        One number.

    Example:
        >>> float(accuracy_of(jnp.eye(3), jnp.array([0, 1, 1]), 1))
        50.0
    """
    own = labels == which
    return 100.0 * (own & (logits.argmax(axis=-1) == labels)).sum() / own.sum()


def beside(student: jax.Array, teacher: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Everything that is logged of a student and its teacher on held-out images.

    Args:
        student: logits (n, classes).
        teacher: logits (n, classes).
        labels: (n,).

    Returns:
        Scalars by name; accuracies and agreement in %, entropies in nats.

    Example:
        >>> found = beside(jnp.eye(2), jnp.eye(2), jnp.array([0, 0]))
        >>> float(found["accuracy"]), float(found["agreement"])
        (50.0, 100.0)
    """
    said, taught = student.argmax(axis=-1), teacher.argmax(axis=-1)
    return {
        "accuracy": 100.0 * (said == labels).mean(),
        "agreement": 100.0 * (said == taught).mean(),
        "entropy": entropy(student),
        "calibration error": calibration_error(student, labels),
        "teacher accuracy": 100.0 * (taught == labels).mean(),
        "teacher entropy": entropy(teacher),
        "teacher calibration error": calibration_error(teacher, labels),
    }
