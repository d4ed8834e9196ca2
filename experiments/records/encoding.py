"""A record as bytes: a dictionary of arrays in the format of safetensors, which runs no code when it is read."""

from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

Record = Mapping[str, np.ndarray]


def encode(record: Record) -> bytes:
    """A record as bytes; the same record gives the same bytes.

    Args:
        record: arrays of any shape, by name.

    Returns:
        A header of about 60 bytes per array, then the arrays.

    Raises:
        ValueError: there is no array, or one of objects or text.

    Example:
        >>> decode(encode({"tokens": np.arange(3, dtype=np.uint16)}))
        {'tokens': array([0, 1, 2], dtype=uint16)}
    """
    if not record:
        raise ValueError("record: got no arrays, expected at least one")
    arrays = {name: np.asarray(record[name], order="C") for name in sorted(record)}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":  # nothing that NumPy cannot name, bfloat16 for one
            raise ValueError(f"record[{name!r}]: got {array.dtype}, expected booleans, integers or floats")
    return save(arrays)


def decode(data: bytes) -> dict[str, np.ndarray]:
    """The record that `encode` made these bytes of.

    Args:
        data: the bytes.

    Returns:
        Arrays by name.

    Raises:
        ValueError: they are not those of a record.
    """
    try:
        return dict(sorted(load(data).items()))  # safetensors gives them in any order
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"data: got {len(data)} bytes that are no record ({error})") from None
