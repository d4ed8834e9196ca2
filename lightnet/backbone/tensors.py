"""How parameters lie in the tensors of a checkpoint, and their way from there to devices and back."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from lightnet.backbone.files import read_tensor
from lightnet.typing import Array

Name = tuple[str, ...]


class Entry(NamedTuple):
    """One parameter and its tensors.

    Attributes:
        path: of the parameter.
        keys: names of the tensors; of several, one is behind the other along axis 1 of the parameter.
        stored: shape of each tensor.
        shape: of what each becomes: its axes are reversed, as kernels are the other way round, and then split.
            None leaves it as it is.
        rows: which of a tensor's rows (axis 0) are the parameter's, the first and the one behind the last; the others
            are those of other parameters. None takes all.

    Example:
        >>> entry = Entry(("kernel",), ("weight",), stored=(2, 3), shape=(3, 2))
        >>> entry.join([np.arange(6).reshape(2, 3)]).tolist()
        [[0, 3], [1, 4], [2, 5]]
    """

    path: Name
    keys: Name
    stored: tuple[int, ...]
    shape: tuple[int, ...] | None = None
    rows: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """Numbers in the parameter."""
        return len(self.keys) * math.prod(self._part)

    @property
    def _part(self) -> tuple[int, ...]:
        """Shape of what is the parameter's in each tensor."""
        return self.stored if self.rows is None else (self.rows[1] - self.rows[0], *self.stored[1:])

    def join(self, tensors: list[np.ndarray]) -> np.ndarray:
        """The parameter, from its rows of the tensors."""
        if self.shape is not None:
            tensors = [tensor.T.reshape(self.shape) for tensor in tensors]
        return np.stack(tensors, axis=1) if len(tensors) > 1 else tensors[0]

    def split(self, parameter: Array | np.ndarray) -> dict[str, np.ndarray]:
        """The parameter's rows of the tensors.

        Raises:
            ValueError: the parameter has another shape than it should.
        """
        part = self._part if self.shape is None else self.shape
        expected = (part[0], len(self.keys), *part[1:]) if len(self.keys) > 1 else part
        if parameter.shape != expected:
            raise ValueError(f"{'/'.join(self.path)}: got shape {list(parameter.shape)}, expected {list(expected)}")
        whole = np.asarray(parameter)
        parts = list(np.moveaxis(whole, 1, 0)) if len(self.keys) > 1 else [whole]
        if self.shape is not None:
            parts = [part.reshape(self._part[::-1]).T for part in parts]
        # safetensors writes the memory of an array as it lies there.
        return {key: np.ascontiguousarray(part) for key, part in zip(self.keys, parts, strict=True)}

    def read(self, files: Mapping[str, Path], dtype: Any) -> np.ndarray:
        """The parameter, from files.

        Args:
            files: see `lightnet.backbone.files.tensor_files`.
            dtype: to cast to; None keeps what is stored.

        Raises:
            ValueError: a tensor has another shape than it should, or does not hold floating point numbers, or numbers
                that JAX is not set to keep.
        """
        tensors = [read_tensor(files[key], key, self.stored, self.rows) for key in self.keys]
        joined = self.join(tensors)
        kept = joined.dtype if dtype is None else np.dtype(dtype)
        if jax.dtypes.canonicalize_dtype(kept) != kept:
            raise ValueError(f"{self.keys[0]}: got {kept}, which needs jax_enable_x64, or a dtype to cast to")
        return joined.astype(kept, copy=False)


def load_parameters(
    entries: Iterable[Entry],
    files: Mapping[str, Path],
    dtype: Callable[[Name], Any],
    shardings: Mapping[Name, Sharding | None],
) -> dict[Name, Array]:
    """Parameters, read one by one, each straight to where it belongs.

    The largest comes first: while it is copied there is little else, so no more than the parameters themselves is ever
    held at once, unless one of them is most of the model.

    Args:
        entries: of the parameters.
        files: see `lightnet.backbone.files.tensor_files`.
        dtype: of a parameter, by its path; None keeps what is stored.
        shardings: of each parameter, by its path; None is the default device.

    Returns:
        Path -> parameter.

    Raises:
        ValueError: as for `Entry.read`.
    """
    parameters = {}
    for entry in sorted(entries, key=lambda entry: entry.size, reverse=True):
        placed = _placed(entry.read(files, dtype(entry.path)), shardings[entry.path])
        # Without waiting, several would be held in both places.
        parameters[entry.path] = placed.block_until_ready()
    return parameters


def to_tensors(entries: Iterable[Entry], parameters: Mapping[Name, Array | np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint: `load_parameters` the other way round, but for the files.

    Args:
        entries: of all parameters; they cover each tensor.
        parameters: path -> parameter.

    Returns:
        Name -> tensor.

    Raises:
        ValueError: a parameter has another shape than it should, or those of one tensor have several precisions.

    Example:
        >>> rows = [Entry((name,), ("weight",), (3,), rows=rows) for name, rows in (("a", (0, 2)), ("b", (2, 3)))]
        >>> to_tensors(rows, {("a",): jnp.array([1, 2]), ("b",): jnp.array([3])})["weight"].tolist()
        [1, 2, 3]
    """
    tensors: dict[str, np.ndarray] = {}
    for entry in entries:
        for key, part in entry.split(parameters[entry.path]).items():
            tensor = tensors.setdefault(key, part if entry.rows is None else np.empty(entry.stored, part.dtype))
            if tensor.dtype != part.dtype:
                path = "/".join(entry.path)
                raise ValueError(f"{path}: got {part.dtype}, but others of the same tensor {key} are {tensor.dtype}")
            if entry.rows is not None:
                tensor[slice(*entry.rows)] = part
    return tensors


def _placed(array: np.ndarray, sharding: Sharding | None) -> Array:
    if sharding is None:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
