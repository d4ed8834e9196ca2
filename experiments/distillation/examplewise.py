"""What is measured of a student beside its teacher, as means over examples: for sets that are read in batches.

All but the calibration error is such a mean. That is the sum, over bins, of absolute values of one: of the gap between
being right and the confidence, at the examples in the bin.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from experiments.distillation.measures import BINS, beside

_ERRORS = ("calibration error", "teacher calibration error")


def example_measures(student: jax.Array, teacher: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """One value per example, of which `collected` takes the means.

    Args:
        student: logits (B, classes).
        teacher: logits (B, classes).
        labels: (B,).

    Returns:
        Arrays (B,) by name.
    """
    found = jax.vmap(lambda *one: beside(*(x[None] for x in one)))(student, teacher, labels)
    values = {name: value for name, value in found.items() if name not in _ERRORS}
    for name, logits in zip(_ERRORS, (student, teacher), strict=True):
        values |= {f"{name}/{number}": gap for number, gap in enumerate(_gaps(logits, labels).T)}
    return values


def collected(means: Mapping[str, float]) -> dict[str, float]:
    """What `experiments.distillation.measures.beside` says of all examples together.

    Args:
        means: of `example_measures`, by name.

    Returns:
        Numbers by name.

    Example:
        >>> logits, labels = jnp.array([[0.0, 3.0], [0.0, 1.0], [2.0, 0.0]]), jnp.array([1, 0, 0])
        >>> found = example_measures(logits, logits, labels)
        >>> one = collected({name: float(value.mean()) for name, value in found.items()})
        >>> whole = beside(logits, logits, labels)
        >>> all(abs(one[name] - float(value)) < 1e-5 for name, value in whole.items())
        True
    """
    errors = {name: sum(abs(means[f"{name}/{number}"]) for number in range(BINS)) for name in _ERRORS}
    return {name: value for name, value in means.items() if "/" not in name} | errors


def _gaps(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Being right less the confidence, in the column of the bin of the confidence (B, bins)."""
    confidence = jax.nn.softmax(logits).max(axis=-1)
    number = jnp.clip(jnp.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return jax.nn.one_hot(number, BINS) * ((logits.argmax(axis=-1) == labels) - confidence)[:, None]
