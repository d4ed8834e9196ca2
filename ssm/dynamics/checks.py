"""What the functions of this package check of their arguments, and the softplus that they share."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# What a public function is given: numbers in any form. It refuses the rest by name, which a narrower type, checked
# before the function is entered, would not.
Numbers: TypeAlias = Any
Floats: TypeAlias = NDArray[np.floating[Any]]


def as_numbers(name: str, value: Numbers, shape: str, sizes: dict[str, int] | None = None) -> Floats:
    """Real finite numbers as a float64 array, or a refusal by name.

    Args:
        name: of the argument.
        value: what was given.
        shape: letters of the axes, for example "L D"; empty for one number.
        sizes: letter -> size; letters seen for the first time are added.

    Returns:
        The array, of which no axis is empty.

    Raises:
        ValueError: with what was given and what is expected.

    Example:
        >>> as_numbers("x0", [1, 2], "L").tolist()
        [1.0, 2.0]
        >>> as_numbers("a", float("nan"), "")
        Traceback (most recent call last):
        ValueError: a: got nan, expected a finite number
    """
    sizes = {} if sizes is None else sizes
    letters = shape.split()
    array: Floats | None = None
    try:
        raw = np.asarray(value)
        array = None if raw.dtype.kind in "cOSUMm" else raw.astype(np.float64)
    except (TypeError, ValueError):  # ragged, or no numbers at all
        pass
    found = dict(sizes)
    if (
        array is None
        or array.ndim != len(letters)
        or any(
            size < 1 or found.setdefault(letter, size) != size
            for letter, size in zip(letters, array.shape, strict=True)
        )
    ):
        expected = _described(letters, [sizes.get(letter) for letter in letters])
        raise ValueError(f"{name}: got {_given(value, array)}, expected {expected}")
    if not np.isfinite(array).all():
        if not letters:
            raise ValueError(f"{name}: got {float(array)}, expected a finite number")
        raise ValueError(f"{name}: got {_given(value, array)} with NaN or infinity, expected finite numbers")
    sizes.update(found)
    return array


def as_number(name: str, value: Numbers, *, positive: bool = False) -> float:
    """One real finite number, or a refusal by name.

    Args:
        name: of the argument.
        value: what was given.
        positive: whether it has to be above 0.

    Returns:
        The number.

    Raises:
        ValueError: with what was given and what is expected.

    Example:
        >>> as_number("a", 0, positive=True)
        Traceback (most recent call last):
        ValueError: a: got 0.0, expected above 0
    """
    number = float(as_numbers(name, value, ""))
    if positive and number <= 0:
        raise ValueError(f"{name}: got {number}, expected above 0")
    return number


def as_times(value: Numbers) -> Floats:
    """Times as a float64 array (T,), at least 0, in any order; or a refusal.

    Args:
        value: what was given.

    Returns:
        The array.

    Raises:
        ValueError: with what was given and what is expected.

    Example:
        >>> as_times([0, -1])
        Traceback (most recent call last):
        ValueError: times: got -1.0 among them, expected at least 0
    """
    times = as_numbers("times", value, "T")
    if times.min() < 0:
        raise ValueError(f"times: got {times.min()} among them, expected at least 0")
    return times


def softplus(z: Floats) -> Floats:
    """ln(1 + e^z) without overflow.

    Example:
        >>> softplus(np.array([-800.0, 0.0, 800.0])).round(4).tolist()
        [0.0, 0.6931, 800.0]
    """
    return np.asarray(np.logaddexp(0.0, z))


def log_softplus(z: Floats) -> Floats:
    """ln ln(1 + e^z), which is z - e^z / 2 + O(e^2z) for z far below 0, where the softplus itself underflows.

    Example:
        >>> log_softplus(np.array([-800.0, 0.0])).round(4).tolist()
        [-800.0, -0.3665]
    """
    low = np.minimum(z, -18.0)  # e^2z is below the rounding from here on
    return np.where(z < -18.0, low - np.exp(low) / 2, np.log(softplus(np.maximum(z, -18.0))))


def _given(value: Numbers, array: Floats | None) -> str:
    if array is None or array.ndim == 0:
        return f"{type(value).__name__}" if hasattr(value, "__len__") and not isinstance(value, str) else f"{value!r}"
    return f"numbers of shape {array.shape}"


def _described(letters: list[str], sizes: list[int | None]) -> str:
    if not letters:
        return "one real number"
    known = "" if None in sizes else f" = ({', '.join(map(str, sizes))}{',' * (len(sizes) == 1)})"
    return f"real numbers ({', '.join(letters)}{',' * (len(letters) == 1)}){known}, no axis empty"
