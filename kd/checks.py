"""What every public function checks of its arguments: shapes and kinds always, values where they are known."""

import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from kd.typing import Array, Number

# What a public function is given: an array of JAX or NumPy, or None where it says so. The checks refuse the rest by
# name, which a narrower type, checked before the function is entered, would not.
ArrayInput: TypeAlias = Any


def got(x: Any) -> str:
    """An array as an error names it.

    Example:
        >>> got(jnp.zeros((2, 3)))
        'float32[2, 3]'
    """
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") and hasattr(x, "dtype") else f"{type(x).__name__}"


def as_floats(shape: str, **operands: Any) -> tuple[Array, ...]:
    """Float arrays that agree in their axes, as JAX arrays in their own precision.

    Args:
        shape: letters of the axes, for example "B C"; "... V" accepts any number of axes in that place.
        **operands: what was given, by the name of the argument.

    Returns:
        The arrays, in the order of the arguments.

    Raises:
        ValueError: naming the first that is no float array of these axes, is empty or differs from the first.

    Example:
        >>> s, t = as_floats("B C", s=np.zeros((2, 3), np.float32), t=jnp.zeros((2, 3)))
        >>> as_floats("B C", s=s, t=jnp.zeros((2, 4)))
        Traceback (most recent call last):
        ValueError: t: got float32[2, 4], expected a float array (B, C) = (2, 3)
    """
    letters = shape.split()
    known = ""
    first: tuple[int, ...] | None = None
    for name, x in operands.items():
        fits = isinstance(x, jax.Array | np.ndarray) and jnp.issubdtype(x.dtype, jnp.floating)
        if fits and "..." in letters:
            fits = x.ndim >= len(letters) - 1
        elif fits:
            fits = x.ndim == len(letters)
        if not fits or math.prod(x.shape) == 0 or (first is not None and x.shape != first):
            expected = known or " with at least one element"
            raise ValueError(f"{name}: got {got(x)}, expected a float array ({', '.join(letters)}){expected}")
        first = x.shape
        known = f" = ({', '.join(str(size) for size in first)})"
    return tuple(jnp.asarray(x) for x in operands.values())


def as_mask(mask: Any, shape: tuple[int, ...], *, name: str = "mask") -> Array | None:
    """A boolean array of a shape, or None.

    Raises:
        ValueError: it is something else.

    Example:
        >>> as_mask(np.array([True, False]), (2,)).tolist()
        [True, False]
        >>> as_mask(np.array([1.0, 0.0]), (2,))
        Traceback (most recent call last):
        ValueError: mask: got float64[2], expected bool[2]
    """
    if mask is None:
        return None
    fits = isinstance(mask, jax.Array | np.ndarray) and mask.dtype == jnp.bool_ and mask.shape == shape
    if not fits:
        raise ValueError(f"{name}: got {got(mask)}, expected bool{list(shape)}")
    return jnp.asarray(mask)


def as_counted(mask: Any, **operands: Any) -> tuple[Array | None, tuple[Array, ...]]:
    """A mask, and one number per token of each operand, in float32 at least and 0 where nothing counts.

    Args:
        mask: (...), or None.
        **operands: (...), by the name of the argument.

    Returns:
        The mask, and the arrays in the order of the arguments: whatever stood where nothing counts is gone before it
        is computed with, so that it reaches neither a value nor a gradient.

    Raises:
        ValueError: one of them is not as stated.

    Example:
        >>> _, (x,) = as_counted(np.array([True, False]), x=jnp.array([2.0, jnp.nan]))
        >>> x.tolist()
        [2.0, 0.0]
    """
    arrays = as_floats("...", **operands)
    mask = as_mask(mask, arrays[0].shape)
    arrays = tuple(at_least_float32(x) for x in arrays)
    return mask, arrays if mask is None else tuple(jnp.where(mask, x, 0) for x in arrays)


def as_labels(y: Any, shape: tuple[int, ...], classes: int, *, name: str = "y", mask: Array | None = None) -> Array:
    """Integer labels in [0, classes); where they are known their values are checked, but for masked ones.

    Args:
        y: what was given.
        shape: expected.
        classes: number of classes.
        name: of the argument.
        mask: of the same shape; what stands where it is false does not matter, and becomes 0.

    Raises:
        ValueError: with what was given and what is expected.

    Example:
        >>> as_labels(np.array([0, 3]), (2,), 3)
        Traceback (most recent call last):
        ValueError: y: got 3 at [1], expected labels from 0 to 2
    """
    fits = isinstance(y, jax.Array | np.ndarray) and jnp.issubdtype(y.dtype, jnp.integer) and y.shape == shape
    if not fits:
        raise ValueError(f"{name}: got {got(y)}, expected integer{list(shape)}")
    y = jnp.asarray(y) if mask is None else jnp.where(mask, y, 0)
    if known(y):
        wrong = (np.asarray(y) < 0) | (np.asarray(y) >= classes)
        if wrong.any():
            place = [int(i) for i in np.argwhere(wrong)[0]]
            raise ValueError(
                f"{name}: got {int(np.asarray(y)[tuple(place)])} at {place}, expected labels from 0 to {classes - 1}"
            )
    return y


def check_number(
    name: str,
    x: Number,
    *,
    above: float | int | None = None,
    at_least: float | int | None = None,
    at_most: float | int | None = None,
    below: float | int | None = None,
) -> None:
    """Refuse a number out of range or not finite, and an array that is no scalar; traced values are not known.

    Raises:
        ValueError: with what was given and what is expected.

    Example:
        >>> check_number("temperature", 0.0, above=0)
        Traceback (most recent call last):
        ValueError: temperature: got 0.0, expected a number above 0
    """
    bounds = {"above": above, "of at least": at_least, "of at most": at_most, "below": below}
    words = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
    if jnp.ndim(x) or not isinstance(x, float | int | jax.Array | np.generic | np.ndarray):
        raise ValueError(f"{name}: got {got(x)}, expected one number {words}".rstrip())
    if not known(x):
        return
    value = float(x)
    fits = math.isfinite(value)
    fits = fits and (above is None or value > above) and (at_least is None or value >= at_least)
    fits = fits and (at_most is None or value <= at_most) and (below is None or value < below)
    if not fits:
        raise ValueError(f"{name}: got {value}, expected a number {words}".rstrip())


def check_count(name: str, x: Any, *, at_least: int = 1, at_most: int | None = None) -> None:
    """Refuse what is no integer in a range.

    Raises:
        ValueError: with what was given and what is expected.

    Example:
        >>> check_count("token_chunk", 0)
        Traceback (most recent call last):
        ValueError: token_chunk: got 0, expected an integer of at least 1
    """
    fits = isinstance(x, int | np.integer) and not isinstance(x, bool)
    if not fits or x < at_least or (at_most is not None and x > at_most):
        end = "" if at_most is None else f" and at most {at_most}"
        raise ValueError(f"{name}: got {x!r}, expected an integer of at least {at_least}{end}")


def check_mass(name: str, x: Array) -> None:
    """Refuse masses or probabilities of which one is below 0, where they are known.

    Raises:
        ValueError: with the smallest.

    Example:
        >>> check_mass("P", jnp.array([0.5, -2.0]))
        Traceback (most recent call last):
        ValueError: P: got -2, expected no number below 0
    """
    if known(x) and not (np.asarray(x) >= 0).all():
        raise ValueError(f"{name}: got {float(np.asarray(x).min()):g}, expected no number below 0")


def check_choice(name: str, x: Any, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not one of the choices.

    Raises:
        ValueError: with what was given and the choices.

    Example:
        >>> check_choice("convention", "top", ("bucket", "renorm"))
        Traceback (most recent call last):
        ValueError: convention: got 'top', expected one of bucket, renorm
    """
    if x not in choices:
        raise ValueError(f"{name}: got {x!r}, expected one of {', '.join(choices)}")


def known(x: Any) -> bool:
    """Whether this process can read the values: no tracer, and no part of it on the devices of another process."""
    return not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)


def at_least_float32(x: Array) -> Array:
    """In float32, or as it is where it is more precise.

    Example:
        >>> at_least_float32(jnp.zeros(2, jnp.bfloat16)).dtype
        dtype('float32')
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
