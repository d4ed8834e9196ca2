"""What every public function checks of its arguments: shapes and kinds always, values where they are known."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lightnet.typing import Array

# What a public function is given: an array of JAX or NumPy, or None where it says so. `as_arrays` refuses the rest by
# name, which a narrower type, checked before the function is entered, would not.
ArrayInput: TypeAlias = Any


def got(x: Any) -> str:
    """An array as an error names it.

    Example:
        >>> got(jnp.zeros((2, 3)))
        'float32[2, 3]'
    """
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") and hasattr(x, "dtype") else f"{type(x).__name__}"


def as_arrays(**operands: Any) -> tuple[Any, ...]:
    """JAX and NumPy arrays as JAX arrays, None as it is; anything else is refused.

    Args:
        **operands: what was given, by the name of the argument.

    Returns:
        The arrays, in the order of the arguments.

    Raises:
        ValueError: naming the first that is no array.

    Example:
        >>> as_arrays(x=np.zeros(2, np.float32), mask=None)
        (Array([0., 0.], dtype=float32), None)
        >>> as_arrays(x=[0.0, 1.0])
        Traceback (most recent call last):
        ValueError: x: got list, expected an array of JAX or NumPy
    """
    for name, x in operands.items():
        if x is not None and not isinstance(x, jax.Array | np.ndarray):
            raise ValueError(f"{name}: got {got(x)}, expected an array of JAX or NumPy")
    return tuple(None if x is None else jnp.asarray(x) for x in operands.values())


def check_array(name: str, x: Any, shape: str, sizes: dict[str, int], *, complex_allowed: bool = False) -> None:
    """Refuse an array of another rank, size or kind than stated.

    Args:
        name: of the argument.
        x: what was given.
        shape: letters of the axes, for example "B L D"; "1|L" accepts a size-1 axis as well.
        sizes: letter -> size; letters seen for the first time are added.
        complex_allowed: whether complex numbers are.

    Raises:
        ValueError: with what was given and what is expected.

    Example:
        >>> sizes = {"B": 2}
        >>> check_array("x", jnp.zeros((2, 3)), "B L", sizes)
        >>> sizes
        {'B': 2, 'L': 3}
        >>> check_array("y", jnp.zeros((2, 4)), "B L", sizes)
        Traceback (most recent call last):
        ValueError: y: got float32[2, 4], expected a float array (B, L) = (2, 3)
    """
    letters = shape.split()
    kinds = (jnp.floating, jnp.complexfloating) if complex_allowed else (jnp.floating,)
    fits = hasattr(x, "shape") and len(x.shape) == len(letters) and any(jnp.issubdtype(x.dtype, k) for k in kinds)
    if fits:
        for letter, size in zip(letters, x.shape, strict=True):
            plain = letter.removeprefix("1|")
            if size == 1 and plain != letter:
                continue
            fits = fits and size > 0 and size == sizes.setdefault(plain, size)
    if not fits:
        kind = "float or complex" if complex_allowed else "float"
        known = [str(sizes.get(letter.removeprefix("1|"), letter)) for letter in letters]
        known = [f"1 or {k}" if "|" in letter else k for k, letter in zip(known, letters, strict=True)]
        axes = ", ".join(letter.replace("1|", "1 or ") for letter in letters)
        values = f" = ({', '.join(known)})" if ", ".join(known) != axes else " with at least one element"
        raise ValueError(f"{name}: got {got(x)}, expected a {kind} array ({axes}){values}")


def check_per_token(sizes: Mapping[str, int], segment_ids: Array | None, mask: Array | None) -> None:
    """Refuse segment ids that are no integers (B, L), and a mask that is no boolean (B, L).

    Raises:
        ValueError: with what was given and what is expected.
    """
    shape = (sizes["B"], sizes["L"])
    for name, x, kind, word in (
        ("segment_ids", segment_ids, jnp.integer, "integer"),
        ("mask", mask, jnp.bool_, "bool"),
    ):
        if x is not None and (getattr(x, "shape", None) != shape or not jnp.issubdtype(x.dtype, kind)):
            raise ValueError(f"{name}: got {got(x)}, expected {word}{list(shape)}")


def check_values(
    name: str, x: Array, *, at_most: float | int | None = None, at_least: float | int | None = None, mask: Any = None
) -> None:
    """Refuse values out of range, where the array is concrete; under `jit` values are not known.

    Args:
        name: of the argument.
        x: (B, L, ...).
        at_most: largest accepted value.
        at_least: smallest accepted value.
        mask: (B, L); what stands at masked tokens does not matter.

    Raises:
        ValueError: with the first such value.

    Example:
        >>> check_values("log_decay", jnp.array([[-1.0, 0.5]]), at_most=0)
        Traceback (most recent call last):
        ValueError: log_decay: got 0.5 at [0, 1], expected values of at most 0
    """
    if not all(known(array) for array in (x, mask)):
        return
    values = np.asarray(x)
    fits = np.ones(values.shape, bool)
    if at_most is not None:
        fits &= values <= at_most
    if at_least is not None:
        fits &= values >= at_least
    if mask is not None:
        fits |= ~np.asarray(mask).reshape(mask.shape + (1,) * (values.ndim - 2))
    if not fits.all():
        where = np.unravel_index(np.argmin(fits), fits.shape)
        expected = f"of at most {at_most:g}" if at_most is not None else f"of at least {at_least:g}"
        place = [int(i) for i in where]
        raise ValueError(f"{name}: got {float(values[where]):g} at {place}, expected values {expected}")


def known(x: Any) -> bool:
    """Whether this process can read the values: no tracer, and no part of it on the devices of another process."""
    return not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)
